#include "checkpoints/run_directory.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>

#include "checkpoints/checkpoint.h"
#include "checkpoints/file_io.h"
#include "kernels/core/log.h"

namespace stoa {
namespace fs = std::filesystem;
namespace {

/// The step in "<prefix>step-000000200<suffix>".
std::optional<std::int64_t> step_of(const std::string& name, const std::string& prefix,
                                    const std::string& suffix) {
    const std::string head = prefix + "step-";
    if (name.size() < head.size() + 9 + suffix.size() || !name.starts_with(head) ||
        !name.ends_with(suffix))
        return {};
    const std::string digits = name.substr(head.size(), name.size() - head.size() - suffix.size());
    if (digits.size() > 18 ||
        !std::ranges::all_of(digits, [](char c) { return c >= '0' && c <= '9'; }))
        return {};
    return std::stoll(digits);
}

std::string step_name(std::int64_t step) { return fmt::format("step-{:09}", step); }

/// The names in <run>/ckpt, or none when there is no such directory.
std::vector<std::string> names_in(const std::string& root) {
    std::error_code error;
    std::vector<std::string> names;
    if (!fs::exists(root, error) && (!error || error == std::errc::not_a_directory)) return names;
    fs::directory_iterator it(root, error);
    for (; !error && it != fs::directory_iterator(); it.increment(error))
        names.push_back(it->path().filename().string());
    if (error) throw io_error(root, "list", error.value());
    return names;
}

void remove_tree(const std::string& path) {
    std::error_code error;
    fs::remove_all(path, error);
    if (error) throw io_error(path, "remove", error.value());
}

}  // namespace

std::string checkpoint_root(const std::string& run_dir) { return run_dir + "/ckpt"; }
std::string committed_dir(const std::string& run_dir, std::int64_t step) {
    return checkpoint_root(run_dir) + "/" + step_name(step);
}
std::string temporary_dir(const std::string& run_dir, std::int64_t step) {
    return checkpoint_root(run_dir) + "/." + step_name(step) + ".tmp";
}
std::string set_aside_dir(const std::string& run_dir, std::int64_t step) {
    return checkpoint_root(run_dir) + "/." + step_name(step) + ".old";
}

std::vector<std::string> list_checkpoints(const std::string& run_dir) {
    std::map<std::int64_t, std::string>
        by_step;  // a set-aside one counts while its successor is missing
    for (const std::string& name : names_in(checkpoint_root(run_dir))) {
        if (const auto step = step_of(name, "", ""))
            by_step[*step] = committed_dir(run_dir, *step);
        else if (const auto old = step_of(name, ".", ".old"))
            by_step.try_emplace(*old, set_aside_dir(run_dir, *old));
    }
    std::vector<std::string> dirs;
    for (const auto& [step, dir] : by_step)
        dirs.push_back(dir);
    return dirs;
}

void clean_run_directory(const std::string& run_dir) {
    const std::string root = checkpoint_root(run_dir);
    for (const std::string& name : names_in(root)) {
        if (step_of(name, ".", ".tmp")) remove_tree(root + "/" + name);
        if (const auto step = step_of(name, ".", ".old")) {
            const std::string successor = committed_dir(run_dir, *step);
            if (fs::exists(successor))
                remove_tree(root + "/" + name);
            else
                rename_path(root + "/" + name, successor);
        }
    }
}

void commit_directory(const std::string& run_dir, std::int64_t step) {
    const std::string root = checkpoint_root(run_dir);
    const std::string final_dir = committed_dir(run_dir, step), old = set_aside_dir(run_dir, step);
    const std::string temporary = temporary_dir(run_dir, step);
    sync_directory(temporary);
    const bool replaces = fs::exists(final_dir);
    if (replaces) rename_path(final_dir, old);
    try {
        rename_path(temporary, final_dir);
    } catch (const Error&) {
        if (replaces) rename_path(old, final_dir);
        throw;
    }
    sync_directory(root);
    if (replaces) remove_quietly(old);
}

void delete_checkpoint(const std::string& dir) {
    const fs::path path(dir);
    const std::string junk =
        fmt::format("{}/.{}.tmp", path.parent_path().string(), path.filename().string());
    remove_tree(junk);
    rename_path(dir, junk);
    remove_tree(junk);
}

void remove_quietly(const std::string& path) {
    std::error_code error;
    fs::remove_all(path, error);
    if (error) log_warn("cannot remove {}: {}", path, error.message());
}

void write_latest(const std::string& run_dir, std::int64_t step) {
    const std::string path = run_dir + "/LATEST", temporary = run_dir + "/.LATEST.tmp";
    try {
        write_text_synced(temporary, "ckpt/" + step_name(step) + "\n");
        rename_path(temporary, path);
        sync_directory(run_dir);
    } catch (const Error& e) {
        remove_quietly(temporary);
        log_warn("{} is not up to date: {}", path, e.what());
    }
}

}  // namespace stoa
