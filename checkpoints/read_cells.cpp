#include "checkpoints/read_cells.h"

#include <algorithm>

namespace stoa {
namespace {
constexpr std::int64_t kBlockBytes = std::int64_t{4} << 20;
}

void read_shard(const std::string& dir, const StoredTensor& t, const StoredShard& s,
                const std::function<void(std::int64_t, std::int64_t, Bytes)>& take) {
    const std::string path = dir + "/" + s.file;
    const std::int64_t cell = size_of(t.dtype);
    const std::int64_t cols = std::min(s.col_count, kBlockBytes / cell);  // of one block
    const std::int64_t rows =
        std::max<std::int64_t>(1, cols < s.col_count ? 1 : kBlockBytes / (cols * cell));
    const File file = File::open_read(path);
    std::vector<std::byte> block(
        static_cast<std::size_t>(std::min(rows, s.row_count) * cols * cell));
    Xxh3 hash;
    for (std::int64_t r = 0; r < s.row_count; r += rows)
        for (std::int64_t c = 0; c < s.col_count; c += cols) {
            const std::int64_t n =
                std::min(rows, s.row_count - r) * std::min(cols, s.col_count - c);
            const auto part = std::span(block).first(static_cast<std::size_t>(n * cell));
            file.read_at(s.offset + (r * s.col_count + c) * cell, part);
            hash.update(part);
            take(s.row_begin + r, s.col_begin + c, part);
        }
    if (hash.hex() != s.xxh3)
        throw CheckpointError({.what = "damaged data of tensor " + t.name,
                               .where = path,
                               .expected = "xxh3 " + s.xxh3,
                               .actual = hash.hex()});
}

std::string hash_logical_tensor(const std::string& dir, const StoredTensor& t) {
    if (t.shards.size() == 1) return t.shards[0].xxh3;  // one shard holds all cells, row-major
    const std::int64_t cell = size_of(t.dtype), row_bytes = t.cols() * cell;
    const std::int64_t rows = std::max<std::int64_t>(1, kBlockBytes / row_bytes);
    std::vector<std::byte> block;
    Xxh3 hash;
    for (std::int64_t r = 0; r < t.rows(); r += rows) {
        const std::int64_t end = std::min(r + rows, t.rows());
        block.resize(static_cast<std::size_t>((end - r) * row_bytes));
        for (const StoredShard& s : t.shards) {
            const std::int64_t first = std::max(r, s.row_begin),
                               last = std::min(end, s.row_begin + s.row_count);
            if (first >= last) continue;
            const File file = File::open_read(dir + "/" + s.file);
            for (std::int64_t i = first; i < last; ++i)
                file.read_at(s.offset + (i - s.row_begin) * s.col_count * cell,
                             std::span(block).subspan(
                                 static_cast<std::size_t>((i - r) * row_bytes + s.col_begin * cell),
                                 static_cast<std::size_t>(s.col_count * cell)));
        }
        hash.update(block);
    }
    return hash.hex();
}

}  // namespace stoa
