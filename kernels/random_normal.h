#pragma once
#include "kernels/core/exec.h"

namespace stoa {

/// x[e] = std * normal(philox(key, logical element index)): a shard gets the values that the whole
/// tensor would hold, so every mesh starts from the same weights.
/// The shard is rows [row_begin, ...) and columns [col_begin, ...) of a logical (logical_rows,
/// logical_cols) matrix; shard cells outside it (padding) become 0.
/// shapes: x (rows, cols)     dtype: Wide (fp32 | fp64); the normal (Box-Muller) in float64
struct RandomNormalArgs {
    TensorView x;
    std::uint64_t key = 0;
    double std = 1.0;
    std::int64_t row_begin = 0, col_begin = 0, logical_rows = 0, logical_cols = 0;
};
void random_normal(const RandomNormalArgs& args, const Exec& exec);

}  // namespace stoa
