#include "checkpoints/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
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
        if (s.view.device.is_cuda())
            throw ShapeError({.what = "shard of a checkpoint lies on a GPU",
                              .where = s.name,
                              .hint = "copy it to the host first"});
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

/// Every rank sees every file in its right size; the hashing, the long part, is dealt out.
void verify_together(const std::string& dir, const Mesh& mesh) {
    const std::string hash_on_first = broadcast(manifest_hash(dir), 0, mesh.world);
    agree(mesh.world, "verify checkpoint", [&] {
        const Manifest m = read_manifest(dir);
        require_same_manifest(dir, hash_on_first, m);
        for (const CheckpointFile& f : m.files)
            require_size(dir, f);
        for (std::size_t i = 0; i < m.files.size(); ++i)
            if (static_cast<int>(i % static_cast<std::size_t>(mesh.world.size())) ==
                mesh.world.rank())
                require_hash(dir, m.files[i]);
    });
}

}  // namespace

std::string find_checkpoint(const std::string& run_dir, const Mesh& mesh, std::int64_t at_most) {
    std::vector<std::string> dirs = agreed_checkpoints(run_dir, mesh);
    std::erase_if(dirs, [&](const std::string& dir) {  // ".../step-000000200"
        return std::atoll(dir.substr(dir.rfind("step-") + 5).c_str()) > at_most;
    });
    std::string last_cause;
    for (const std::string& dir : dirs) {
        try {
            verify_together(dir, mesh);
            return dir;
        } catch (const Error& e) {
            // agree() made this one error everyone's, so all ranks go on to the next one together.
            if (e.code() != ExitCode::checkpoint) throw;
            last_cause = e.what();
            if (mesh.world.rank() == 0)
                log_warn("skipping a checkpoint that does not verify: {}", last_cause);
        }
    }
    if (dirs.empty()) return "";
    throw CheckpointError(
        {.what = fmt::format("none of {} checkpoints verifies", dirs.size()),
         .where = checkpoint_root(run_dir),
         .expected = "at least one whole checkpoint",
         .actual = last_cause,
         .hint = "stoa ckpt verify " + run_dir +
                 " names every damaged file; to start from step 0, choose a new run.name"});
}

void prune_checkpoints(const std::string& run_dir, std::int64_t keep) {
    const std::vector<std::string> dirs = list_checkpoints(run_dir);
    const auto newest = static_cast<std::size_t>(std::max<std::int64_t>(keep, 1));
    if (dirs.size() <= newest) return;
    bool good_is_kept = false;  // nothing goes before a newer one has been read back whole
    for (std::size_t age = 0; age < dirs.size(); ++age) {
        const std::string& dir = dirs[dirs.size() - 1 - age];
        if (good_is_kept && age >= newest) {
            delete_checkpoint(dir);
        } else if (!good_is_kept) {
            const auto verdicts = judge_files(dir);
            good_is_kept = std::ranges::all_of(
                verdicts, [](const FileVerdict& v) { return v.problem.empty(); });
        }
    }
}

}  // namespace stoa
