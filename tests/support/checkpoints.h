#pragma once
// A small training state whose every cell is known from (seed, tensor, row, col), cut for any tp
// mesh.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "kernels/core/buffer.h"
#include "kernels/core/philox.h"
#include "parallel/shard.h"
#include "tests/support/programs.h"

namespace stoa::test {

enum class Cut { rows, cols, none };
struct TensorKind {
    const char* name;
    Shape shape;
    DType dtype;
    Cut cut;
};
/// Odd sizes: every split over 2 and 4 ranks has padding, and the bias over 4 leaves one rank
/// empty.
inline const std::vector<TensorKind>& tensor_kinds() {
    static const std::vector<TensorKind> kinds = {
        {"model.embedding.weight", {13, 8}, DType::fp32, Cut::rows},
        {"model.layers.0.mlp.down_proj.weight", {6, 11}, DType::fp32, Cut::cols},
        {"model.layers.0.norm.weight", {8}, DType::fp32, Cut::none},
        {"model.layers.0.mlp.bias", {5}, DType::bf16, Cut::cols},
        {"optimizer.m/model.embedding.weight", {13, 8}, DType::fp64, Cut::rows},
        {"optimizer.v/model.layers.0.norm.weight", {8}, DType::fp64, Cut::none},
        {"half.weight", {7, 9}, DType::bf16, Cut::rows},
        {"loss_scale.counts", {3}, DType::int32, Cut::none},
    };
    return kinds;
}

constexpr unsigned char kPadding = 0xA5;

/// The bits of one cell. Random bits hold every kind of NaN, denormal and infinity; the first cells
/// of each tensor make sure of them.
inline std::uint64_t cell_bits(std::uint64_t seed, std::size_t tensor, std::int64_t row,
                               std::int64_t col, DType dtype) {
    if (row == 0 && col < 3) {
        const std::uint64_t wide[3] = {0x7ff00000deadbeefull, 0x8000000000000000ull,
                                       0x0000000000000001ull};
        const std::uint64_t narrow[3] = {0x7f80beefull, 0x80000000ull, 0x00000001ull};
        const std::uint64_t half[3] = {0x7fbfull, 0x8000ull, 0x0001ull};
        return (dtype == DType::fp64 ? wide : dtype == DType::bf16 ? half : narrow)[col];
    }
    return mix_key(mix_key(seed, tensor), static_cast<std::uint64_t>(row * 1000 + col));
}

struct State {
    std::vector<Buffer> memory;
    std::vector<TensorShard> shards;
};

/// This rank's part of the state, of which every byte is padding until fill() or a load.
inline State make_state(int tp_rank, int tp_size) {
    State state;
    for (const TensorKind& k : tensor_kinds()) {
        const std::int64_t rows = k.shape.rank == 2 ? k.shape[0] : 1,
                           cols = k.shape[k.shape.rank - 1];
        const ShardRange r =
            k.cut == Cut::rows ? shard_range(rows, tp_rank, tp_size) : ShardRange{0, rows, rows};
        const ShardRange c =
            k.cut == Cut::cols ? shard_range(cols, tp_rank, tp_size) : ShardRange{0, cols, cols};
        Buffer buffer(r.local * c.local * size_of(k.dtype));
        std::memset(buffer.data(), kPadding, static_cast<std::size_t>(buffer.bytes()));
        const Shape local = k.shape.rank == 2 ? Shape{r.local, c.local} : Shape{c.local};
        state.shards.push_back({.name = k.name,
                                .global_shape = k.shape,
                                .view = {buffer.data(), k.dtype, local, {}},
                                .row_begin = r.begin,
                                .row_count = r.count,
                                .col_begin = c.begin,
                                .col_count = c.count,
                                .replicated = k.cut == Cut::none});
        state.memory.push_back(std::move(buffer));
    }
    return state;
}

/// Calls fn(cell, tensor, row, col, is_logical) for every local cell.
template <class Fn>
void for_each_cell(const State& state, Fn&& fn) {
    for (std::size_t i = 0; i < state.shards.size(); ++i) {
        const TensorShard& s = state.shards[i];
        for (std::int64_t r = 0; r < s.view.rows(); ++r)
            for (std::int64_t c = 0; c < s.view.cols(); ++c)
                fn(s.view.data + (r * s.view.cols() + c) * size_of(s.view.dtype), i,
                   s.row_begin + r, s.col_begin + c, r < s.row_count && c < s.col_count);
    }
}

inline void fill(State& state, std::uint64_t seed) {
    for_each_cell(
        state, [&](std::byte* cell, std::size_t i, std::int64_t r, std::int64_t c, bool logical) {
            const DType d = state.shards[i].view.dtype;
            const std::uint64_t bits = cell_bits(seed, i, r, c, d);
            if (logical) std::memcpy(cell, &bits, static_cast<std::size_t>(size_of(d)));
        });
}

/// Cells whose bits are not those of `seed`, and padding bytes that were written.
inline int count_wrong(const State& state, std::uint64_t seed) {
    int wrong = 0;
    for_each_cell(
        state, [&](std::byte* cell, std::size_t i, std::int64_t r, std::int64_t c, bool logical) {
            const DType d = state.shards[i].view.dtype;
            const std::uint64_t bits = cell_bits(seed, i, r, c, d);
            unsigned char padding[8];
            std::memset(padding, kPadding, sizeof padding);
            const void* expected = logical ? static_cast<const void*>(&bits) : padding;
            wrong += std::memcmp(cell, expected, static_cast<std::size_t>(size_of(d))) != 0;
        });
    return wrong;
}

inline CheckpointMeta make_meta(std::int64_t step) {
    return {.step = step,
            .counters = {{"tokens", std::to_string(step * 1000)}, {"stage", "2"}},
            .resolved_config = "model:\n  name: \"tiny\"\n",
            .config_hash = "c0ffee",
            .tokenizer_hash = "beef"};
}

inline std::string slurp(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}
inline void spill(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

}  // namespace stoa::test
