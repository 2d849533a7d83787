#include <cfloat>

#include "kernels/core/fast_exp.h"
#include "kernels/core/row_loss.h"
#include "kernels/core/tree.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/packs.h"

namespace stoa::cuda {
namespace {

/// 16 threads a row.
template <class T, class W = Wide<T>>
STOA_KERNEL void row_max_kernel(W* out, const T* logits, std::int64_t rows, std::int64_t cols,
                                std::int64_t vocab_valid) {
    const std::int64_t row = global_group();
    if (row >= rows) return;
    const T* const x = logits + row * cols;
    const W lowest = std::is_same_v<W, double> ? W(-DBL_MAX) : W(-FLT_MAX);
    const W largest =
        lane_max<W>(vocab_valid, lowest, [&](std::int64_t c) { return W{widen(x[c])}; });
    if (thread_index() % kLanes == 0) out[row] = largest;
}

/// A block of threads a row: each 16 of them take a chunk of columns after the other, and the first
/// thread adds the chunks' sums as their tree.
template <class T, class W = Wide<T>>
STOA_KERNEL void exp_sum_kernel(W* out, W* target_logit, const T* logits, const W* row_max,
                                const std::int32_t* targets, std::int64_t cols,
                                std::int64_t vocab_begin, std::int64_t vocab_valid,
                                std::int64_t chunk, int chunks) {
    SharedMemory memory;
    const Shared<W> sums = memory.array<W>(chunks);
    const std::int64_t row = block_index();
    const T* const x = logits + row * cols;
    const W max = row_max[row];
    for (int i = thread_index() / kLanes; i < chunks; i += block_threads() / kLanes) {
        const T* const part = x + i * chunk;
        const std::int64_t left = vocab_valid - i * chunk;
        const std::int64_t n = left < 0 ? 0 : left < chunk ? left : chunk;
        const W sum =
            lane_sum<W>(n, [&](std::int64_t c) { return fast_exp(W{widen(part[c])} - max); });
        if (thread_index() % kLanes == 0) sums.write(i, sum);
    }
    sync_block();
    if (thread_index() != 0) return;
    out[row] =
        tree_fold_flat<W>(chunks, [&](std::int64_t i) { return sums.read(static_cast<int>(i)); });
    const std::int64_t c = targets[row] - vocab_begin;
    const bool here = targets[row] >= 0 && c >= 0 && c < vocab_valid;
    target_logit[row] = here ? W{widen(x[c])} : W{0};
}

/// One block of threads. The rows' losses are multiples of 2^-22: their order does not show (but in
/// fp64).
template <class W>
STOA_KERNEL void loss_kernel(double* loss_sum, const W* row_max, const W* exp_sum,
                             const W* target_logit, const std::int32_t* targets,
                             std::int64_t rows) {
    SharedMemory memory;
    const Shared<double> sums = memory.array<double>(block_threads());
    double loss = 0.0;
    for (std::int64_t r = thread_index(); r < rows; r += block_threads())
        if (targets[r] >= 0) loss += row_loss(row_max[r], exp_sum[r], target_logit[r]);
    sums.write(thread_index(), loss);
    for (int half = block_threads() / 2; half > 0; half /= 2) {
        sync_block();
        if (thread_index() < half)
            sums.write(thread_index(),
                       sums.read(thread_index()) + sums.read(thread_index() + half));
    }
    if (thread_index() == 0) *loss_sum += sums.read(0);
}

/// A block of threads a row. d_logits may be logits: a thread reads only what it writes.
template <class T, class W = Wide<T>>
STOA_KERNEL void gradient_kernel(T* d_logits, const T* logits, const W* row_max, const W* exp_sum,
                                 const std::int32_t* targets, std::int64_t cols,
                                 std::int64_t vocab_begin, std::int64_t vocab_valid, W d_loss) {
    const std::int64_t row = block_index();
    const T* const x = logits + row * cols;
    T* const out = d_logits + row * cols;
    const W max = row_max[row], sum = exp_sum[row], scale = d_loss / sum;
    const std::int64_t target = targets[row] - vocab_begin;
    const bool counts = targets[row] >= 0;
    for (std::int64_t at = thread_index() * kPack; at < cols; at += block_threads() * kPack) {
        const auto in = load_pack<kPack>(x, at, cols);
        Pack<T, kPack> gradient{};
        for (int i = 0; i < kPack; ++i) {
            if (!counts || at + i >= vocab_valid) continue;
            const W e = fast_exp(W{widen(in.v[i])} - max);
            gradient.v[i] = narrow_to<T>(at + i == target ? d_loss * (e / sum - 1) : e * scale);
        }
        store_pack(out, at, cols, gradient);
    }
}

}  // namespace

void cross_entropy_row_max(const RowMaxArgs& args, Stream stream) {
    dispatch_dtype(args.logits.dtype, [&]<Element T>(T) {
        launch({.name = "cross_entropy_row_max",
                .blocks = blocks_for(args.logits.rows() * kLanes, kThreads),
                .threads = kThreads,
                .stream = stream},
               row_max_kernel<T>, args.row_max.as<Wide<T>>().data(), args.logits.as<T>().data(),
               args.logits.rows(), args.logits.cols(), args.vocab_valid);
    });
}

void cross_entropy_exp_sum(const ExpSumArgs& args, Stream stream) {
    constexpr std::int64_t kMostBytes = 48 << 10;
    const std::int64_t cols = args.logits.cols();
    const std::int64_t chunk = args.chunk > 0 ? args.chunk : std::max<std::int64_t>(1, cols);
    const std::int64_t chunks = std::max<std::int64_t>(1, cols / chunk);
    dispatch_dtype(args.logits.dtype, [&]<Element T>(T) {
        using W = Wide<T>;
        const std::int64_t bytes = chunks * static_cast<std::int64_t>(sizeof(W));
        require(bytes <= kMostBytes, "cross_entropy: chunks", "at most 48 KiB of sums",
                std::to_string(chunks));
        const std::int64_t threads = std::clamp<std::int64_t>(chunks * kLanes, kWarp, kThreads);
        launch({.name = "cross_entropy_exp_sum",
                .blocks = args.logits.rows(),
                .threads = static_cast<int>((threads + kWarp - 1) / kWarp) * kWarp,
                .stream = stream,
                .shared_bytes = static_cast<int>(bytes)},
               exp_sum_kernel<T>, args.exp_sum.as<W>().data(), args.target_logit.as<W>().data(),
               args.logits.as<T>().data(), args.row_max.as<W>().data(),
               args.targets.as<std::int32_t>().data(), cols, args.vocab_begin, args.vocab_valid,
               chunk, chunks);
    });
}

void cross_entropy_finish(const CrossEntropyArgs& args, Stream stream) {
    const std::int64_t rows = args.logits.rows();
    const std::int32_t* const targets = args.targets.as<std::int32_t>().data();
    dispatch_dtype(args.logits.dtype, [&]<Element T>(T) {
        using W = Wide<T>;
        launch({.name = "cross_entropy_finish: loss",
                .blocks = 1,
                .threads = kThreads,
                .stream = stream,
                .shared_bytes = kThreads * 8},
               loss_kernel<W>, args.loss_sum.as<double>().data(), args.row_max.as<W>().data(),
               args.exp_sum.as<W>().data(), args.target_logit.as<W>().data(), targets, rows);
        if (args.d_logits.empty()) return;
        launch({.name = "cross_entropy_finish: gradient",
                .blocks = rows,
                .threads = kThreads,
                .stream = stream},
               gradient_kernel<T>, args.d_logits.as<T>().data(), args.logits.as<T>().data(),
               args.row_max.as<W>().data(), args.exp_sum.as<W>().data(), targets,
               args.logits.cols(), args.vocab_begin, args.vocab_valid, args.d_loss);
    });
}

}  // namespace stoa::cuda
