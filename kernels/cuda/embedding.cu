#include "kernels/cuda/lane_groups.h"
#include "kernels/cuda/ops.h"

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

constexpr int kEach = 4;  // columns of a thread

/// A block of threads per row r and strip of columns. Of the rows with the same token the first one
/// adds all of them, in ascending order; so an element of the table has one owner, and no atomics.
template <class G, class T>
STOA_KERNEL void backward_kernel(G* d_table, const T* d_y, const std::int32_t* tokens,
                                 std::int64_t rows, std::int64_t d, std::int64_t vocab_begin,
                                 std::int64_t vocab_local, StochasticRounding rounding) {
    const std::int64_t strip = static_cast<std::int64_t>(kEach) * block_threads();
    const std::int64_t strips = (d + strip - 1) / strip;
    const std::int64_t first = block_index() / strips, begin = block_index() % strips * strip;
    const std::int32_t token = tokens[first];
    const std::int64_t row = token - vocab_begin;
    if (row < 0 || row >= vocab_local) return;
    const int lane = thread_index() % kWarp;
    for (std::int64_t r = 0; r < first; r += kWarp)  // is there an earlier one? Warps look alike
        if (warp_ballot(r + lane < first && tokens[r + lane] == token) != 0) return;
    G sum[kEach];
    for (int i = 0; i < kEach; ++i) {
        const std::int64_t c = begin + thread_index() + i * block_threads();
        sum[i] = c < d ? d_table[row * d + c] : G{};
    }
    for (std::int64_t window = first; window < rows; window += kWarp) {
        std::uint32_t same = warp_ballot(window + lane < rows && tokens[window + lane] == token);
        for (std::int64_t r = window; same != 0; same >>= 1, ++r) {
            if ((same & 1u) == 0) continue;
            for (int i = 0; i < kEach; ++i) {
                const std::int64_t c = begin + thread_index() + i * block_threads();
                if (c < d)
                    sum[i] = sum_of(sum[i], d_y[r * d + c], rounding, r, rounding.element(row, c));
            }
        }
    }
    for (int i = 0; i < kEach; ++i) {
        const std::int64_t c = begin + thread_index() + i * block_threads();
        if (c < d) d_table[row * d + c] = sum[i];
    }
}

template <class G, class T>
void backward(const EmbeddingBackwardArgs& args, Stream stream) {
    const std::int64_t rows = args.d_y.rows(), d = args.d_y.cols();
    const int threads = d >= kEach * kThreads ? kThreads : kWarp;
    launch({.name = "embedding_backward",
            .blocks = rows * blocks_for(d, kEach * threads),
            .threads = threads,
            .stream = stream},
           backward_kernel<G, T>, args.d_table.as<G>().data(), args.d_y.as<T>().data(),
           args.tokens.as<std::int32_t>().data(), rows, d, args.vocab_begin, args.d_table.rows(),
           args.rounding);
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
