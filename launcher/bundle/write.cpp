#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "checkpoints/file_io.h"
#include "kernels/core/error.h"
#include "launcher/bundle/bundle.h"

namespace stoa {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kManifest = "manifest.json";

DataError cannot_write(const std::string& path, const std::string& why) {
    return DataError({.what = "cannot write the bundle",
                      .where = path,
                      .actual = why,
                      .hint = "make the folder writable, free space, or choose another"});
}

std::string hash_of(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    Xxh3 hash;
    std::vector<char> chunk(std::size_t{1} << 20);
    while (in.read(chunk.data(), static_cast<std::streamsize>(chunk.size())) || in.gcount() > 0)
        hash.update(std::as_bytes(std::span(chunk.data(), static_cast<std::size_t>(in.gcount()))));
    return hash.hex();
}

void require_room(const std::string& parent, std::int64_t bytes) {
    std::error_code error;
    const auto space = fs::space(parent, error);
    if (error) throw cannot_write(parent, error.message());
    if (static_cast<std::int64_t>(space.available) < bytes)
        throw DataError(
            {.what = "not enough space for the bundle",
             .where = parent,
             .expected = fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1 << 20)),
             .actual =
                 fmt::format("{:.1f} MiB free", static_cast<double>(space.available) / (1 << 20)),
             .hint = "free space, or choose a folder on another file system"});
}

void write_one(const BundleFile& file, const std::string& dir) {
    const fs::path to = fs::path(dir) / file.to;
    std::error_code error;
    fs::create_directories(to.parent_path(), error);
    if (error) throw cannot_write(to.string(), error.message());
    if (file.from.empty()) {
        std::ofstream out(to, std::ios::binary);
        out << file.text;
        out.close();
        if (!out) throw cannot_write(to.string(), "the file is not whole");
    } else if (!fs::copy_file(file.from, to, error)) {
        throw cannot_write(to.string(), error.message());
    }
    const fs::perms read = fs::perms::owner_read | fs::perms::owner_write | fs::perms::group_read |
                           fs::perms::others_read;
    const fs::perms run = fs::perms::owner_exec | fs::perms::group_exec | fs::perms::others_exec;
    fs::permissions(to, file.executable ? read | run : read, error);
    if (error) throw cannot_write(to.string(), error.message());
}

void write_all(const BundlePlan& plan, const std::string& dir) {
    ordered_json manifest{{"stoa", STOA_VERSION}, {"files", ordered_json::array()}};
    for (const BundleFile& f : plan.files) {
        write_one(f, dir);
        const std::string path = dir + "/" + f.to;
        manifest["files"].push_back(
            {{"path", f.to}, {"bytes", fs::file_size(path)}, {"xxh3", hash_of(path)}});
    }
    manifest["of_the_node"] = plan.of_the_node;
    manifest["left_out"] = plan.left_out;
    for (const char* empty :
         {"lib/hwloc", "lib/ucx", "etc/pmix"})  // searched in place of the node's
        fs::create_directories(fs::path(dir) / empty);
    write_one({.to = kManifest, .from = "", .text = manifest.dump(1) + "\n"}, dir);
}

}  // namespace

void require_not_taken(const std::string& dir) {
    std::error_code error;
    if (fs::exists(dir, error) && !(fs::is_directory(dir, error) && fs::is_empty(dir, error)))
        throw ConfigError(
            {.what = "the bundle's folder is taken",
             .where = dir,
             .expected = "a folder that is not there yet, or is empty",
             .actual = fs::is_directory(dir, error) ? "a folder with files" : "a file",
             .hint = "remove it, or choose another name"});
}

void write_bundle(const BundlePlan& plan, const std::string& dir) {
    const fs::path target = fs::absolute(dir).lexically_normal();
    const fs::path whole = target.has_filename() ? target : target.parent_path();
    const std::string parent = whole.parent_path().string();
    std::error_code error;
    fs::create_directories(parent, error);
    if (error) throw cannot_write(parent, error.message());
    require_not_taken(whole.string());
    require_room(parent, plan.bytes);
    const std::string partial = fmt::format("{}.partial-{}", whole.string(), getpid());
    try {
        write_all(plan, partial);
        fs::rename(partial, whole);
    } catch (const fs::filesystem_error& e) {
        fs::remove_all(partial, error);
        throw cannot_write(whole.string(), e.code().message());
    } catch (const Error&) {
        fs::remove_all(partial, error);
        throw;
    }
}

std::int64_t check_bundle(const std::string& dir) {
    const std::string path = dir + "/" + kManifest;
    std::ifstream in(path);
    const auto manifest = nlohmann::json::parse(in, nullptr, false);
    if (!manifest.is_object() || !manifest.contains("files") || !manifest["files"].is_array())
        throw DataError({.what = "not a bundle",
                         .where = path,
                         .expected = "the manifest that `stoa bundle` writes",
                         .actual = fs::exists(path) ? "another text" : "no such file",
                         .hint = "make a bundle with `stoa bundle DIR`"});
    std::int64_t n = 0;
    for (const auto& f : manifest["files"]) {
        const std::string file = dir + "/" + f.value("path", "");
        const bool there = fs::is_regular_file(file);
        const std::string hash = there ? hash_of(file) : "no file";
        if (hash != f.value("xxh3", ""))
            throw DataError({.what = "a file of the bundle is not as it was written",
                             .where = file,
                             .expected = f.value("xxh3", ""),
                             .actual = hash,
                             .hint = "copy the bundle again"});
        ++n;
    }
    return n;
}

}  // namespace stoa
