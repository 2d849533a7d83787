#include "checkpoints/run_directory.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>

#include "checkpoints/checkpoint.h"
#include "checkpoints/file_io.h"
#include "checkpoints/run_identity.h"
#include "kernels/core/log.h"

namespace stoa {
namespace fs = std::filesystem;
namespace {

/// "<dot>step-000000200[.g3]<suffix>" taken apart.
struct DirName {
    bool hidden = false;
    std::int64_t step = -1, generation = -1;  // -1: none in the name
    std::string suffix;                       // "", ".tmp", ".old", ".del", ".bad", ".bad-2" ...
};

/// A number at the front of `text`, taken off it; -1 where there is none or it is too long.
std::int64_t take_number(std::string& text) {
    std::size_t n = 0;
    while (n < text.size() && text[n] >= '0' && text[n] <= '9')
        ++n;
    if (n == 0 || n > 18) return -1;
    const std::int64_t value = std::stoll(text.substr(0, n));
    text.erase(0, n);
    return value;
}

std::optional<DirName> parse_name(const std::string& name) {
    DirName d{.hidden = name.starts_with("."), .suffix = name};
    if (d.hidden) d.suffix.erase(0, 1);
    if (!d.suffix.starts_with("step-")) return {};
    d.suffix.erase(0, 5);
    const std::size_t before = d.suffix.size();
    d.step = take_number(d.suffix);
    if (d.step < 0 || before - d.suffix.size() < 9) return {};
    if (d.hidden && d.suffix.starts_with(".g")) {
        d.suffix.erase(0, 2);
        d.generation = take_number(d.suffix);
        if (d.generation < 0) return {};
    }
    return d;
}

bool is_refused(const DirName& d) {
    return !d.hidden && (d.suffix.starts_with(".bad") || d.suffix.starts_with(".foreign"));
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
std::string temporary_dir(const std::string& run_dir, std::int64_t step, std::int64_t generation) {
    return fmt::format("{}/.{}.g{}.tmp", checkpoint_root(run_dir), step_name(step), generation);
}
std::string set_aside_dir(const std::string& run_dir, std::int64_t step) {
    return checkpoint_root(run_dir) + "/." + step_name(step) + ".old";
}

std::int64_t step_of_name(const std::string& name) {
    const auto d = parse_name(name);
    return d ? d->step : -1;
}

std::vector<std::string> list_checkpoints(const std::string& run_dir) {
    std::map<std::int64_t, std::string>
        by_step;  // a set-aside one counts while its successor is missing
    for (const std::string& name : names_in(checkpoint_root(run_dir))) {
        const auto d = parse_name(name);
        if (!d) continue;
        if (!d->hidden && d->suffix.empty())
            by_step[d->step] = committed_dir(run_dir, d->step);
        else if (d->hidden && d->generation < 0 && d->suffix == ".old")
            by_step.try_emplace(d->step, set_aside_dir(run_dir, d->step));
    }
    std::vector<std::string> dirs;
    for (const auto& [step, dir] : by_step)
        dirs.push_back(dir);
    return dirs;
}

std::vector<std::string> list_refused(const std::string& run_dir) {
    std::vector<std::string> dirs;
    for (const std::string& name : names_in(checkpoint_root(run_dir)))
        if (const auto d = parse_name(name); d && is_refused(*d))
            dirs.push_back(checkpoint_root(run_dir) + "/" + name);
    std::ranges::sort(dirs);
    return dirs;
}

std::string rename_refused(const std::string& dir, const std::string& suffix) {
    const fs::path path(dir);
    std::string name = path.filename().string();
    if (const auto d = parse_name(name)) name = step_name(d->step);
    const std::string base = path.parent_path().string() + "/" + name + suffix;
    std::string to = base;
    for (int n = 2; fs::exists(fs::symlink_status(to)); ++n)
        to = fmt::format("{}-{}", base, n);
    rename_path(dir, to);
    sync_directory(path.parent_path().string());
    return to;
}

void clean_run_directory(const std::string& run_dir, std::int64_t generation) {
    const std::string root = checkpoint_root(run_dir);
    for (const std::string& name : names_in(root)) {
        const auto d = parse_name(name);
        if (!d || !d->hidden) continue;
        if (d->suffix == ".tmp" && d->generation <= generation)
            delete_checkpoint(root + "/" + name);
        else if (d->suffix.ends_with(".del"))
            remove_tree(root + "/" + name);
        else if (d->suffix == ".old") {
            const std::string successor = committed_dir(run_dir, d->step);
            if (fs::exists(successor))
                remove_tree(root + "/" + name);
            else
                rename_path(root + "/" + name, successor);
        }
    }
}

void commit_directory(const std::string& run_dir, std::int64_t step, std::int64_t generation) {
    const std::string root = checkpoint_root(run_dir);
    const std::string final_dir = committed_dir(run_dir, step), old = set_aside_dir(run_dir, step);
    const std::string temporary = temporary_dir(run_dir, step, generation);
    sync_directory(temporary);
    require_generation(run_dir, generation);
    const bool replaces = fs::exists(fs::symlink_status(final_dir));
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
    std::string name = path.filename().string();
    if (name.starts_with(".")) name.erase(0, 1);
    const std::string junk = fmt::format("{}/.{}.del", path.parent_path().string(), name);
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
