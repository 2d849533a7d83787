#pragma once
// The matrix products of the vendor's library, as matmul.cu asks for them.
#include "kernels/core/exec.h"
#include "kernels/quantize.h"

namespace stoa::cuda {

/// c = op(a) op(b), or c += with `accumulate`; row-major, rows ld elements apart.
/// dtype: a and b alike fp32 | bf16 | fp16 | fp64, c the same or (with 16-bit operands) fp32; or a
/// and
///        b 8-bit with fp32 scales, contracted along their rows (transpose_b alone), c bf16 | fp16
///        | fp32. An operand with blocks `row` has scale (row r, block of k) at k_block *
///        round4(rows) + r; with blocks `square` at r / 128 * round4(k blocks) + k_block.
struct LibraryGemm {
    std::int64_t m = 0, n = 0, k = 0;
    struct Operand {
        const std::byte* data = nullptr;
        DType dtype = DType::fp32;
        std::int64_t ld = 0;
        bool transpose = false;
        const float* scale = nullptr;
        QuantBlocks blocks = QuantBlocks::row;
    } a, b;
    std::byte* c = nullptr;
    DType c_dtype = DType::fp32;
    bool accumulate = false;
};
/// false: the library has nothing for this product; c is untouched.     errors: DeviceError
bool library_gemm(const LibraryGemm& g, Stream stream);

constexpr std::int64_t round4(std::int64_t n) { return (n + 3) / 4 * 4; }

}  // namespace stoa::cuda
