#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "checkpoints/checkpoint.h"
#include "checkpoints/read_cells.h"
#include "checkpoints/verify.h"
#include "kernels/device_memory.h"
#include "parallel/agree.h"
#include "parallel/collectives.h"

namespace stoa {
namespace {

std::string describe(const Shape& s, DType d) { return s.str() + " " + dtype_name(d); }

/// Copies the cells of a block that lie in `to` from where they are to where they belong.
void copy_overlap(const TensorShard& to, const StoredShard& from, std::int64_t row,
                  std::int64_t col, Bytes cells) {
    const std::int64_t cell = size_of(to.view.dtype);
    const std::int64_t count = static_cast<std::int64_t>(cells.size()) / cell;
    const std::int64_t width = std::min(count, from.col_count);  // of one row of the block
    const std::int64_t col_first = std::max(col, to.col_begin);
    const std::int64_t col_last = std::min(col + width, to.col_begin + to.col_count);
    const std::int64_t row_first = std::max(row, to.row_begin);
    const std::int64_t row_last = std::min(row + count / width, to.row_begin + to.row_count);
    if (col_first >= col_last) return;
    for (std::int64_t r = row_first; r < row_last; ++r)
        std::memcpy(
            to.view.data + ((r - to.row_begin) * to.view.cols() + col_first - to.col_begin) * cell,
            cells.data() + ((r - row) * width + col_first - col) * cell,
            static_cast<std::size_t>((col_last - col_first) * cell));
}

bool overlaps(const TensorShard& a, const StoredShard& b) {
    return a.row_begin < b.row_begin + b.row_count && b.row_begin < a.row_begin + a.row_count &&
           a.col_begin < b.col_begin + b.col_count && b.col_begin < a.col_begin + a.col_count;
}

void fill_shard(const std::string& dir, const TensorShard& to, const StoredTensor& from) {
    for (const StoredShard& s : from.shards)
        if (overlaps(to, s))
            read_shard(dir, from, s, [&](std::int64_t row, std::int64_t col, Bytes cells) {
                copy_overlap(to, s, row, col, cells);
            });
}

// Cells that are not the checkpoint's (padding) stay what they are.
void fill_where_it_is(const std::string& dir, const TensorShard& to, const StoredTensor& from,
                      Stream stream) {
    if (!to.view.device.is_cuda()) return fill_shard(dir, to, from);
    const Exec exec{to.view.device, stream};
    const Tensor host(to.view.shape, to.view.dtype);
    TensorShard there = to;
    there.view = host;
    copy(host, to.view, exec);
    fill_shard(dir, there, from);
    copy(to.view, host, exec);
}

using TensorTable = std::map<std::string, const StoredTensor*>;

/// errors: CheckpointError for the first tensor of the run that the checkpoint does not hold as it
/// is, or the other way round
void require_same_tensors(const std::string& dir, const std::vector<TensorShard>& shards,
                          const TensorTable& stored, LoadTensors which) {
    const std::string hint = "resume with the model configuration that wrote it (stoa ckpt show)";
    std::set<std::string> wanted;
    for (const TensorShard& s : shards) {
        wanted.insert(s.name);
        const auto at = stored.find(s.name);
        const std::string expected = describe(s.global_shape, s.view.dtype);
        if (at == stored.end())
            throw CheckpointError({.what = "no tensor " + s.name,
                                   .where = dir,
                                   .expected = expected,
                                   .actual = "none of that name",
                                   .hint = hint});
        const std::string actual = describe(at->second->global_shape, at->second->dtype);
        if (actual != expected)
            throw CheckpointError({.what = "tensor " + s.name + " does not fit",
                                   .where = dir,
                                   .expected = expected,
                                   .actual = actual,
                                   .hint = hint});
    }
    if (which == LoadTensors::subset) return;
    for (const auto& [name, t] : stored)
        if (!wanted.contains(name))
            throw CheckpointError({.what = "tensor " + name + " is not part of this run",
                                   .where = dir,
                                   .expected = "none of that name",
                                   .actual = describe(t->global_shape, t->dtype),
                                   .hint = hint});
}

}  // namespace

CheckpointMeta load_checkpoint(const std::string& dir, const std::vector<TensorShard>& shards,
                               const Mesh& mesh, LoadTensors which, Stream stream) {
    const std::string hash_on_first = broadcast(manifest_hash(dir), 0, mesh.world);
    CheckpointMeta meta;
    agree(mesh.world, "load checkpoint", [&] {
        require_shards(shards);
        const Manifest m = read_manifest(dir);
        require_same_manifest(dir, hash_on_first, m);
        TensorTable stored;
        for (const StoredTensor& t : m.tensors)
            stored[t.name] = &t;
        require_same_tensors(dir, shards, stored, which);
        for (const CheckpointFile& f : m.files)
            require_size(dir, f);
        for (const TensorShard& s : shards)
            fill_where_it_is(dir, s, *stored.at(s.name), stream);
        meta = m.meta;
    });
    return meta;
}

}  // namespace stoa
