#include "checkpoints/rank_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <numeric>

#include "checkpoints/file_io.h"
#include "checkpoints/h5_layout.h"
#include "kernels/core/buffer.h"
#include "kernels/core/stream_copy.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cuda/device.h"

namespace stoa {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
}

std::int64_t cell_bytes(const TensorShard& s) {
    return s.row_count * s.col_count * size_of(s.view.dtype);
}

/// Where each shard begins in a snapshot: large ones at pages, as in the file, so that the device
/// takes them straight from there.
struct SnapshotLayout {
    std::vector<std::int64_t> offsets;
    std::int64_t bytes = 0;  // with room to begin at a page, where a shard has to
    bool pages = false;
};
SnapshotLayout lay_out_snapshot(const std::vector<TensorShard>& mine) {
    constexpr auto kLarge = static_cast<std::int64_t>(H5Image::kLargeBytes);
    constexpr auto kPage = static_cast<std::int64_t>(kDirectBytes);
    SnapshotLayout layout;
    for (const TensorShard& s : mine) {
        const bool large = cell_bytes(s) >= kLarge;
        layout.pages = layout.pages || large;
        layout.offsets.push_back(align_up(layout.bytes, large ? kPage : kAlignment));
        layout.bytes = layout.offsets.back() + align_up(cell_bytes(s));
    }
    if (layout.pages) layout.bytes += kPage;
    return layout;
}

/// The logical cells of a shard as pieces without padding, in their order: fn(offset, bytes).
template <class Fn>
void for_each_piece(const TensorShard& s, Fn&& fn) {
    const std::int64_t cell = size_of(s.view.dtype), stride = s.view.cols() * cell;
    const bool dense = s.col_count == s.view.cols();
    const std::int64_t pieces = dense ? 1 : s.row_count;
    const std::int64_t bytes = (dense ? s.row_count : 1) * s.col_count * cell;
    for (std::int64_t i = 0; i < pieces; ++i)
        fn(i * bytes, Bytes(s.view.data + i * stride, static_cast<std::size_t>(bytes)));
}

void append_image(StreamWriter& out, const H5Image& image, std::int64_t until) {
    std::vector<std::byte> piece(H5Image::kPageBytes);
    while (out.position() < until) {
        const auto n = std::min<std::int64_t>(until - out.position(), H5Image::kPageBytes);
        const auto part = std::span(piece).first(static_cast<std::size_t>(n));
        image.read(static_cast<std::uint64_t>(out.position()), part);
        out.append(part);
    }
}

/// The logical cells of a shard, row-major. Returns their hash.
std::string append_cells(StreamWriter& out, const TensorShard& s) {
    Xxh3 hash;
    for_each_piece(s, [&](std::int64_t, Bytes piece) { out.append(piece, &hash); });
    return hash.hex();
}

}  // namespace

bool writes_shard(const TensorShard& s, int tp_rank, int dp_rank) {
    return s.row_count * s.col_count > 0 && (!s.replicated || tp_rank == 0) &&
           (s.dp_part || dp_rank == 0);
}

std::vector<TensorShard> written_here(const std::vector<TensorShard>& shards, int tp_rank,
                                      int dp_rank) {
    std::vector<TensorShard> mine;
    std::ranges::copy_if(shards, std::back_inserter(mine),
                         [&](const TensorShard& s) { return writes_shard(s, tp_rank, dp_rank); });
    return mine;
}

std::int64_t snapshot_bytes(const std::vector<TensorShard>& shards, int tp_rank, int dp_rank) {
    return lay_out_snapshot(written_here(shards, tp_rank, dp_rank)).bytes;
}

std::vector<TensorShard> take_snapshot(const std::vector<TensorShard>& mine,
                                       const TensorView& memory, Stream stream) {
    constexpr std::int64_t kPart = std::int64_t{4} << 20;
    struct Copy {
        std::byte* to;
        const std::byte* from;
        std::int64_t bytes;
    };
    const SnapshotLayout layout = lay_out_snapshot(mine);
    if (memory.bytes() < layout.bytes)
        throw CheckpointError({.what = "the snapshot's memory is too small",
                               .expected = fmt::format("{} bytes", layout.bytes),
                               .actual = fmt::format("{}", memory.bytes())});
    std::vector<Copy> copies;
    std::vector<TensorShard> kept = mine;
    const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(memory.data));
    std::byte* const first =
        memory.data +
        (layout.pages ? align_up(address, static_cast<std::int64_t>(kDirectBytes)) - address : 0);
    std::size_t next = 0;
    bool on_device = false;
    for (TensorShard& s : kept) {
        std::byte* const to = first + layout.offsets[next++];
        for_each_piece(s, [&](std::int64_t offset, Bytes piece) {
            const auto bytes = static_cast<std::int64_t>(piece.size());
            for (std::int64_t done = 0; done < bytes; done += kPart)
                copies.push_back(
                    {to + offset + done, piece.data() + done, std::min(kPart, bytes - done)});
        });
        if (s.view.device.is_cuda()) on_device = true;
        s.view.device = {};
        s.view.data = to;
        s.view.shape =
            s.global_shape.rank == 2 ? Shape{s.row_count, s.col_count} : Shape{s.col_count};
    }
    if (on_device) {  // all of a rank's shards are there
        for (const Copy& c : copies)
            cuda::copy_from_device(c.to, c.from, c.bytes, stream);
        return kept;
    }
    parallel_for(std::ssize(copies), 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const Copy& c = copies[static_cast<std::size_t>(i)];
            stream_copy(c.to, c.from, c.bytes);
        }
    });
    return kept;
}

RankTable write_rank_file(const std::string& dir, const std::vector<TensorShard>& mine, int rank,
                          bool read_back, Courtesy* courtesy) {
    const auto begin = Clock::now();
    std::vector<const TensorShard*> shards;
    for (const TensorShard& s : mine)
        shards.push_back(&s);
    RankFileLayout layout = lay_out_rank_file(shards);
    RankTable table{
        {fmt::format("rank-{:04}.h5", rank), static_cast<std::int64_t>(layout.image.end), ""}, {}};
    for (std::size_t i = 0; i < mine.size(); ++i) {
        const TensorShard& s = mine[i];
        table.tensors.push_back({s.name,
                                 s.global_shape,
                                 s.view.dtype,
                                 {{table.file.name, layout.offsets[i], s.row_begin, s.row_count,
                                   s.col_begin, s.col_count, ""}}});
    }
    // In the order of the file, so that one pass writes and hashes it.
    std::vector<std::size_t> order(mine.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::sort(order, {}, [&](std::size_t i) { return layout.offsets[i]; });
    const std::string path = dir + "/" + table.file.name;
    StreamWriter out(path, table.file.bytes, courtesy);
    for (const std::size_t i : order) {
        append_image(out, layout.image, layout.offsets[i]);
        if (out.position() != layout.offsets[i])
            throw CheckpointError(
                {.what = "HDF5 placed two datasets over each other", .where = mine[i].name});
        table.tensors[i].shards[0].xxh3 = append_cells(out, mine[i]);
    }
    append_image(out, layout.image, table.file.bytes);
    table.file.xxh3 = out.finish();
    table.write_s = seconds_since(begin);
    if (!read_back) return table;
    const auto written = Clock::now();
    if (const std::string stored = hash_stored_file(path, courtesy); stored != table.file.xxh3)
        throw CheckpointError({.what = "the device holds other bytes than were written",
                               .where = path,
                               .expected = "xxh3 " + table.file.xxh3,
                               .actual = stored,
                               .hint = "a failing disk or file system"});
    table.verify_s = seconds_since(written);
    return table;
}

CheckpointFile write_view(const std::string& dir, const std::vector<StoredTensor>& tensors) {
    const H5Image image = lay_out_view(tensors);
    CheckpointFile entry{kViewName, static_cast<std::int64_t>(image.end), ""};
    StreamWriter out(dir + "/" + entry.name, entry.bytes);
    append_image(out, image, entry.bytes);
    entry.xxh3 = out.finish();
    return entry;
}

}  // namespace stoa
