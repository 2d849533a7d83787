#pragma once
#include "kernels/core/numeric.h"

namespace stoa::cpu {

/// c = op(a) op(b), or c += with `accumulate`, on row-major matrices with row strides lda, ldb, ldc
/// (elements). op(a) is (m, k), op(b) is (k, n); a transposed operand is stored as (k, m) or (n,
/// k). Blocks of kGemmBlockK along k: an element of c is one fma chain over ascending k inside a
/// block, and the blocks are added to c in order. Nothing else enters the bits.
template <Element T>
struct Gemm {
    std::int64_t m = 0, n = 0, k = 0;
    const T* a = nullptr;
    std::int64_t lda = 0;
    bool transpose_a = false;
    const T* b = nullptr;
    std::int64_t ldb = 0;
    bool transpose_b = false;
    Wide<T>* c = nullptr;
    std::int64_t ldc = 0;
    bool accumulate = false;
};
constexpr std::int64_t kGemmBlockK = 256;

void gemm(const Gemm<float>& g);
void gemm(const Gemm<bf16>& g);
void gemm(const Gemm<fp16>& g);
/// The reference mode: plain loops, the same chains.
void gemm(const Gemm<double>& g);

}  // namespace stoa::cpu
