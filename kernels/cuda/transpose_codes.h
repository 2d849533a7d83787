#pragma once
#include "kernels/core/exec.h"

namespace stoa::cuda {

/// out (cols, rows) = the transpose of x (rows, cols), both of single bytes.
void transpose_codes(std::byte* out, const std::byte* x, std::int64_t rows, std::int64_t cols,
                     Stream stream);

}  // namespace stoa::cuda
