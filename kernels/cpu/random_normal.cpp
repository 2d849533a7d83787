#include <cmath>
#include <numbers>

#include "kernels/core/philox.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/ops.h"

namespace stoa::cpu {
namespace {

/// One standard normal from one Philox block. [Box & Muller 1958]: u1 in (0, 1], u2 in [0, 1)
double normal(const PhiloxBlock& r) {
    const std::uint64_t first = std::uint64_t{r[0]} | (std::uint64_t{r[1]} << 32);
    const std::uint64_t second = std::uint64_t{r[2]} | (std::uint64_t{r[3]} << 32);
    const double u1 = static_cast<double>((first >> 11) + 1) * 0x1p-53;
    const double u2 = static_cast<double>(second >> 11) * 0x1p-53;
    return std::sqrt(-2.0 * std::log(u1)) * std::cos(2.0 * std::numbers::pi * u2);
}

template <class W>
void fill(const RandomNormalArgs& args) {
    const std::int64_t rows = args.x.rows(), cols = args.x.cols();
    W* const x = args.x.as<W>().data();
    const auto value = [&](std::int64_t row, std::int64_t col) {
        if (row >= args.logical_rows || col >= args.logical_cols) return W{0};
        const auto index = static_cast<std::uint64_t>(row * args.logical_cols + col);
        return static_cast<W>(args.std * normal(philox(args.key, index, 0)));
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
