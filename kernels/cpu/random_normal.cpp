#include "kernels/core/normal.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/ops.h"

namespace stoa::cpu {
namespace {

template <class W>
void fill(const RandomNormalArgs& args) {
    const std::int64_t rows = args.x.rows(), cols = args.x.cols();
    W* const x = args.x.as<W>().data();
    const auto value = [&](std::int64_t row, std::int64_t col) {
        if (row >= args.logical_rows || col >= args.logical_cols) return W{0};
        const auto index = static_cast<std::uint64_t>(row * args.logical_cols + col);
        return static_cast<W>(args.std * standard_normal(philox(args.key, index, 0)));
    };
    parallel_for(rows, grain_for(16 * cols), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i)
            for (std::int64_t j = 0; j < cols; ++j)
                x[i * cols + j] = value(args.row_begin + i, args.col_begin + j);
    });
}

}  // namespace

void random_normal(const RandomNormalArgs& args) {
    if (args.x.dtype == DType::fp64)
        fill<double>(args);
    else
        fill<float>(args);
}

}  // namespace stoa::cpu
