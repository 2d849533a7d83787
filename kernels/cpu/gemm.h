#pragma once
#include "kernels/core/numeric.h"
#include "kernels/core/rounding.h"

namespace stoa::cpu {

/// One matrix of a product as it is stored: row-major, rows ld elements apart. An 8-bit matrix has
/// e8m0 scales, scale_ld to a row of them: element (r, c) has the one at
/// (r / scale_rows, c / scale_cols), where an edge is 1 or kQuantBlock.
struct Operand {
    const std::byte* data = nullptr;
    DType dtype = DType::fp32;
    std::int64_t ld = 0;
    bool transpose = false;
    const e8m0* scale = nullptr;
    std::int64_t scale_ld = 0, scale_rows = 1, scale_cols = 1;
};
template <class T>
Operand operand(const T* data, std::int64_t ld, bool transpose = false) {
    return {reinterpret_cast<const std::byte*>(data), dtype_of<T>(), ld, transpose};
}

/// Where a product goes: row-major, rows ld elements apart.
struct Result {
    std::byte* data = nullptr;
    DType dtype = DType::fp32;
    std::int64_t ld = 0;
};
template <class T>
Result result(T* data, std::int64_t ld) {
    return {reinterpret_cast<std::byte*>(data), dtype_of<T>(), ld};
}

/// c = op(a) op(b), or c += with `accumulate`. op(a) is (m, k), op(b) is (k, n); a transposed
/// operand is stored as (k, m) or (n, k). Only steps [k_begin, k_begin + k) of op(a) and op(b) enter.
/// Blocks of kGemmBlockK along k: an element of c is one fma chain over ascending k inside a block,
/// and the blocks are added in order; with `chain` it is one fma chain over all of k, which begins
/// from c where `accumulate` says so. In fp32 also where c is narrower: that is rounded once. Nothing else enters the bits. dtype: a, b: fp32 | bf16 | fp16
/// | e4m3 | e5m2 and c fp32 | bf16 | fp16; or all fp64
struct Gemm {
    std::int64_t m = 0, n = 0, k = 0, k_begin = 0;
    Operand a, b;
    Result c;
    bool accumulate = false, chain = false;
    StochasticRounding rounding;  // of a bf16 c with accumulate; else to nearest
};
constexpr std::int64_t kGemmBlockK = 256;

void gemm(const Gemm& g);
/// The reference mode: plain loops, the same chains in fp64.
void gemm_fp64(const Gemm& g);

}  // namespace stoa::cpu
