#include "kernels/core/normal.h"
#include "kernels/cuda/lane_groups.h"
#include "kernels/cuda/ops.h"

namespace stoa::cuda {
namespace {

template <class W>
STOA_KERNEL void normal_kernel(W* x, std::int64_t n, std::int64_t cols, std::uint64_t key,
                               double std_dev, std::int64_t row_begin, std::int64_t col_begin,
                               std::int64_t logical_rows, std::int64_t logical_cols) {
    const std::int64_t i = global_thread();
    if (i >= n) return;
    const std::int64_t row = row_begin + i / cols, col = col_begin + i % cols;
    if (row >= logical_rows || col >= logical_cols) {
        x[i] = W{0};
        return;
    }
    const auto index = static_cast<std::uint64_t>(row * logical_cols + col);
    x[i] = static_cast<W>(std_dev * standard_normal(philox(key, index, 0)));
}

}  // namespace

void random_normal(const RandomNormalArgs& args, Stream stream) {
    const std::int64_t n = args.x.numel();
    const auto run = [&]<class W>(W) {
        launch({.name = "random_normal",
                .blocks = blocks_for(n, kThreads),
                .threads = kThreads,
                .stream = stream},
               normal_kernel<W>, args.x.as<W>().data(), n, args.x.cols(), args.key, args.std,
               args.row_begin, args.col_begin, args.logical_rows, args.logical_cols);
    };
    args.x.dtype == DType::fp64 ? run(double{}) : run(float{});
}

}  // namespace stoa::cuda
