#include "checkpoints/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <ranges>
#include <set>
#include <sstream>

#include "checkpoints/file_io.h"
#include "checkpoints/read_cells.h"
#include "checkpoints/run_directory.h"
#include "kernels/core/log.h"
#include "parallel/agree.h"
#include "parallel/collectives.h"

namespace stoa {

void require_size(const std::string& dir, const CheckpointFile& f) {
    const std::string path = dir + "/" + f.name;
    const std::int64_t bytes = File::open_read(path).bytes();
    if (bytes != f.bytes)
        throw CheckpointError({.what = "wrong file size",
                               .where = path,
                               .expected = fmt::format("{} bytes", f.bytes),
                               .actual = fmt::format("{}", bytes)});
}

void require_hash(const std::string& dir, const CheckpointFile& f) {
    require_size(dir, f);
    const std::string path = dir + "/" + f.name, hash = hash_file(path);
    if (hash != f.xxh3)
        throw CheckpointError({.what = "damaged or foreign file",
                               .where = path,
                               .expected = "xxh3 " + f.xxh3,
                               .actual = hash});
}

std::string manifest_hash(const std::string& dir) {
    try {
        return read_manifest(dir).xxh3;
    } catch (const Error&) {
        return "";  // the caller meets the same error where all ranks can hear it
    }
}

void require_same_manifest(const std::string& dir, const std::string& hash_on_first,
                           const Manifest& m) {
    if (m.xxh3 != hash_on_first)
        throw CheckpointError(
            {.what = "this rank sees another checkpoint than rank 0",
             .where = dir + "/" + kManifestName,
             .expected = "xxh3 " + hash_on_first,
             .actual = m.xxh3,
             .hint = "the run directory must be on a file system that all hosts share"});
}

void require_shards(const std::vector<TensorShard>& shards) {
    std::set<std::string> names;
    for (const TensorShard& s : shards) {
        const int rank = s.global_shape.rank;
        const std::int64_t rows = rank == 2 ? s.global_shape[0] : 1;
        const std::int64_t cols = rank == 0 ? 0 : s.global_shape[rank - 1];
        const bool inside = (rank == 1 || rank == 2) && rows > 0 && cols > 0 && s.row_begin >= 0 &&
                            s.row_count >= 0 && s.row_begin + s.row_count <= rows &&
                            s.col_begin >= 0 && s.col_count >= 0 &&
                            s.col_begin + s.col_count <= cols;
        if (!inside || s.row_count > s.view.rows() || s.col_count > s.view.cols())
            throw ShapeError(
                {.what = "shard of a checkpoint",
                 .where = s.name,
                 .expected = "within " + s.global_shape.str() + " and its view",
                 .actual = fmt::format("rows {}+{}, cols {}+{}, view {}", s.row_begin, s.row_count,
                                       s.col_begin, s.col_count, s.view.shape.str())});
        if (!names.insert(s.name).second)
            throw ShapeError({.what = "two tensors of one name in a checkpoint", .where = s.name});
    }
}

std::vector<FileVerdict> judge_files(const std::string& dir) {
    std::vector<FileVerdict> verdicts;
    const auto judge = [&](const std::string& name, std::int64_t bytes, const auto& check) {
        try {
            check();
            verdicts.push_back({name, bytes, ""});
        } catch (const Error& e) {
            verdicts.push_back({name, bytes, e.what()});
        }
    };
    Manifest m;
    judge(kManifestName, 0, [&] { m = read_manifest(dir); });
    for (const CheckpointFile& f : m.files)
        judge(f.name, f.bytes, [&] { require_hash(dir, f); });
    return verdicts;
}

void verify_checkpoint(const std::string& dir) {
    const Manifest m = read_manifest(dir);
    for (const CheckpointFile& f : m.files)
        require_hash(dir, f);
}

CheckpointInfo read_checkpoint_info(const std::string& dir) {
    const Manifest m = read_manifest(dir);
    CheckpointInfo info{.dir = dir, .meta = m.meta, .tp = m.tp, .files = m.files, .tensors = {}};
    for (const StoredTensor& t : m.tensors)
        info.tensors.push_back({t.name, t.global_shape, t.dtype, hash_logical_tensor(dir, t)});
    return info;
}

namespace {

/// Rank 0's view of the directory, newest first, on all ranks.
std::vector<std::string> agreed_checkpoints(const std::string& run_dir, const Mesh& mesh) {
    std::string lines;
    agree(mesh.world, "list checkpoints", [&] {
        if (mesh.world.rank() == 0)
            for (const std::string& dir : std::views::reverse(list_checkpoints(run_dir)))
                lines += dir + "\n";
    });
    std::istringstream in(broadcast(lines, 0, mesh.world));
    std::vector<std::string> dirs;
    for (std::string dir; std::getline(in, dir);)
        dirs.push_back(dir);
    return dirs;
}

constexpr const char* kForeign = "a checkpoint of another run";

/// Every rank sees every file in its right size; the hashing, the long part, is dealt out.
void verify_together(const std::string& dir, const Mesh& mesh, const std::string& run_id) {
    const std::string hash_on_first = broadcast(manifest_hash(dir), 0, mesh.world);
    agree(mesh.world, "verify checkpoint", [&] {
        const Manifest m = read_manifest(dir);
        require_same_manifest(dir, hash_on_first, m);
        if (!run_id.empty() && !m.meta.run_id.empty() && m.meta.run_id != run_id)
            throw CheckpointError(
                {.what = kForeign,
                 .where = dir + "/" + kManifestName,
                 .expected = "run_id " + run_id,
                 .actual = m.meta.run_id,
                 .hint = "to take it on purpose: stoa ckpt adopt " + dir + " RUN_DIR"});
        const std::int64_t named = step_of_name(std::filesystem::path(dir).filename().string());
        if (named != m.meta.step)
            throw CheckpointError({.what = "the manifest is of another step",
                                   .where = dir + "/" + kManifestName,
                                   .expected = std::to_string(named),
                                   .actual = std::to_string(m.meta.step)});
        for (const CheckpointFile& f : m.files)
            require_size(dir, f);
        for (std::size_t i = 0; i < m.files.size(); ++i)
            if (static_cast<int>(i % static_cast<std::size_t>(mesh.world.size())) ==
                mesh.world.rank())
                require_hash(dir, m.files[i]);
    });
}

/// A file that is not there is damage; one that cannot be read (permission, a device's error) may
/// be whole.
RefusedCheckpoint::Why why_refused(const ErrorFields& e) {
    using enum RefusedCheckpoint::Why;
    if (e.what == kForeign) return foreign;
    const bool absent = e.actual == std::strerror(ENOENT) || e.actual == std::strerror(ELOOP) ||
                        e.actual == std::strerror(ENOTDIR) || e.actual == std::strerror(ENXIO);
    return e.what.starts_with("cannot ") && !absent ? unreadable : damaged;
}

}  // namespace

FoundCheckpoint find_newest(const std::string& run_dir, const Mesh& mesh, const std::string& run_id,
                            std::int64_t at_most) {
    std::vector<std::string> dirs = agreed_checkpoints(run_dir, mesh);
    std::erase_if(dirs, [&](const std::string& dir) {
        return step_of_name(std::filesystem::path(dir).filename().string()) > at_most;
    });
    FoundCheckpoint found;
    std::string hint;
    for (const std::string& dir : dirs) {
        try {
            verify_together(dir, mesh, run_id);
            found.dir = dir;
            return found;
        } catch (const Error& e) {
            // agree() made this one error everyone's, so all ranks go on to the next one together.
            if (e.code() != ExitCode::checkpoint) throw;
            found.refused.push_back({why_refused(e.fields()), dir, e.what()});
            if (found.refused.back().why == RefusedCheckpoint::Why::foreign) hint = e.fields().hint;
            if (mesh.world.rank() == 0) log_warn("passing over a checkpoint: {}", e.what());
        }
    }
    if (dirs.empty()) return found;
    throw CheckpointError(
        {.what = fmt::format("none of {} checkpoints verifies", dirs.size()),
         .where = checkpoint_root(run_dir),
         .expected = "at least one whole checkpoint of this run",
         .actual = found.refused.back().reason,
         .hint =
             !hint.empty()
                 ? hint
                 : "stoa ckpt verify " + run_dir +
                       " names every damaged file; to start from step 0, choose a new run.name"});
}

std::string find_checkpoint(const std::string& run_dir, const Mesh& mesh, std::int64_t at_most) {
    return find_newest(run_dir, mesh, "", at_most).dir;
}

std::vector<std::string> set_aside(const std::vector<RefusedCheckpoint>& refused) {
    std::vector<std::string> names;
    for (const RefusedCheckpoint& r : refused) {
        using enum RefusedCheckpoint::Why;
        names.push_back(r.why == unreadable
                            ? ""
                            : rename_refused(r.dir, r.why == foreign ? ".foreign" : ".bad"));
    }
    return names;
}

}  // namespace stoa
