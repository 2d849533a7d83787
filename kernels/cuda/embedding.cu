#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/packs.h"
#include "kernels/device_scratch.h"

namespace stoa::cuda {
namespace {

template <class T>
STOA_KERNEL void forward_kernel(T* y, const T* table, const std::int32_t* tokens, std::int64_t d,
                                std::int64_t vocab_begin, std::int64_t vocab_local) {
    const std::int64_t r = block_index(), row = tokens[r] - vocab_begin;
    const bool here = row >= 0 && row < vocab_local;
    for (std::int64_t c = thread_index(); c < d; c += block_threads())
        y[r * d + c] = here ? table[row * d + c] : T{};
}

template <class G, class T>
STOA_DEVICE G sum_of(G sum, T d_y, StochasticRounding rounding, std::int64_t r, std::int64_t e) {
    const auto value = widen(sum) + widen(d_y);
    if constexpr (std::is_same_v<G, bf16>) {
        rounding.call += static_cast<std::uint64_t>(r);
        if (rounding.enabled()) return to_bf16_stochastic(value, random_half(rounding, e));
    }
    return narrow_to<G>(value);
}

/// A warp a row: the next row with the same token (-1: none), and that this one has an earlier.
STOA_KERNEL void link_kernel(std::int32_t* next, std::int32_t* has_earlier,
                             const std::int32_t* tokens, std::int64_t rows,
                             std::int64_t vocab_begin, std::int64_t vocab_local) {
    const std::int64_t row = global_thread() / kWarp;
    if (row >= rows) return;
    const int lane = thread_index() % kWarp;
    const std::int32_t token = tokens[row];
    const bool here = token >= vocab_begin && token < vocab_begin + vocab_local;
    std::int64_t found = -1;
    for (std::int64_t r = row + 1; r < rows && found < 0 && here; r += kWarp) {
        const std::uint32_t same = warp_ballot(r + lane < rows && tokens[r + lane] == token);
        if (same != 0) found = r + lowest_bit(same);
    }
    if (lane != 0) return;
    next[row] = static_cast<std::int32_t>(found);
    if (found >= 0) has_earlier[found] = 1;
}

constexpr int kEach = 4;  // columns of a thread

/// A block of threads per row and strip of columns. Of the rows with the same token the first adds
/// all of them, in ascending order; so an element of the table has one owner, and no atomics.
template <class G, class T>
STOA_KERNEL void backward_kernel(G* d_table, const T* d_y, const std::int32_t* tokens,
                                 const std::int32_t* next, const std::int32_t* has_earlier,
                                 std::int64_t d, std::int64_t vocab_begin, std::int64_t vocab_local,
                                 StochasticRounding rounding) {
    const std::int64_t strip = static_cast<std::int64_t>(kEach) * block_threads();
    const std::int64_t strips = (d + strip - 1) / strip;
    const std::int64_t first = block_index() / strips;
    const std::int64_t at = block_index() % strips * strip + thread_index() * kEach;
    const std::int64_t row = tokens[first] - vocab_begin;
    if (row < 0 || row >= vocab_local || has_earlier[first] != 0 || at >= d) return;
    auto sum = load_pack<kEach>(d_table + row * d, at, d);
    for (std::int64_t r = first, after = 0; r >= 0; r = after) {
        after = next[r];
        const auto in = load_pack<kEach>(d_y + r * d, at, d);
        for (int i = 0; i < kEach; ++i)
            sum.v[i] = sum_of(sum.v[i], in.v[i], rounding, r, rounding.element(row, at + i));
    }
    store_pack(d_table + row * d, at, d, sum);
}

template <class G, class T>
void backward(const EmbeddingBackwardArgs& args, Stream stream) {
    const std::int64_t rows = args.d_y.rows(), d = args.d_y.cols();
    require(rows < std::int64_t{1} << 31, "embedding: rows", "below 2^31", std::to_string(rows));
    const std::int32_t* const tokens = args.tokens.as<std::int32_t>().data();
    const Scratch scratch(stream, embedding_backward_scratch(rows));
    std::int32_t* const next = scratch.as<std::int32_t>();
    std::int32_t* const has_earlier = next + rows;
    fill_bytes(reinterpret_cast<std::byte*>(has_earlier), 0, 4 * rows, stream);
    launch({.name = "embedding_backward: links",
            .blocks = blocks_for(rows, kThreads / kWarp),
            .threads = kThreads,
            .stream = stream},
           link_kernel, next, has_earlier, tokens, rows, args.vocab_begin, args.d_table.rows());
    const int threads = d >= kEach * kThreads ? kThreads : kWarp;
    launch({.name = "embedding_backward",
            .blocks = rows * blocks_for(d, kEach * threads),
            .threads = threads,
            .stream = stream},
           backward_kernel<G, T>, args.d_table.as<G>().data(), args.d_y.as<T>().data(), tokens,
           next, has_earlier, d, args.vocab_begin, args.d_table.rows(), args.rounding);
}

}  // namespace

void embedding_forward(const EmbeddingArgs& args, Stream stream) {
    dispatch_dtype(args.y.dtype, [&]<Element T>(T) {
        launch({.name = "embedding_forward",
                .blocks = args.y.rows(),
                .threads = kThreads,
                .stream = stream},
               forward_kernel<T>, args.y.as<T>().data(), args.table.as<T>().data(),
               args.tokens.as<std::int32_t>().data(), args.y.cols(), args.vocab_begin,
               args.table.rows());
    });
}

void embedding_backward(const EmbeddingBackwardArgs& args, Stream stream) {
    dispatch_dtype(args.d_y.dtype, [&]<Element T>(T) {
        if (args.d_table.dtype == DType::bf16) {
            if constexpr (!std::is_same_v<T, double>) backward<bf16, T>(args, stream);
        } else {
            backward<Wide<T>, T>(args, stream);
        }
    });
}

}  // namespace stoa::cuda
