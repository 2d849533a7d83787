#include "kernels/cpu/gemm_micro.h"

#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace stoa::cpu {
namespace {

/// Asks for a tile of c while the sums run: for this one, which is needed at the end and lies far
/// from the last; or, where sums begin from c, for the next one, which lies below.
template <int Rows, int Lines>
inline void prefetch_tile(const float* c, std::int64_t ldc) {
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r)
        for (int line = 0; line < Lines; ++line)
            __builtin_prefetch(c + r * ldc + 16 * line, 1);
}

constexpr int kPortableMr = 4, kPortableNr = 16;

// a is packed, or its rows are read where they lie, `lda` apart.
template <int Rows, bool Packed>
void sums_portable(std::int64_t k, const float* a, std::int64_t lda, const float* b,
                   std::int64_t b_stride, float* c, std::int64_t ldc, Into into) {
    float acc[Rows][kPortableNr];
    for (int r = 0; r < Rows; ++r)
        for (int j = 0; j < kPortableNr; ++j)
            acc[r][j] = into == Into::chain ? c[r * ldc + j] : 0.0f;
    for (std::int64_t p = 0; p < k; ++p, a += Packed ? kPortableMr : 1, b += b_stride)
        for (int r = 0; r < Rows; ++r)
            for (int j = 0; j < kPortableNr; ++j)
                acc[r][j] = __builtin_fmaf(Packed ? a[r] : a[r * lda], b[j], acc[r][j]);
    for (int r = 0; r < Rows; ++r, c += ldc)
        for (int j = 0; j < kPortableNr; ++j)
            c[j] = into == Into::add ? c[j] + acc[r][j] : acc[r][j];
}

template <int Rows>
void micro_portable(std::int64_t k, const float* a, const float* b, std::int64_t b_stride, float* c,
                    std::int64_t ldc, Into into) {
    sums_portable<Rows, true>(k, a, 0, b, b_stride, c, ldc, into);
}
template <int Rows>
void micro_rows_portable(std::int64_t k, const float* a, std::int64_t lda, const float* b,
                         std::int64_t b_stride, float* c, std::int64_t ldc, Into into) {
    sums_portable<Rows, false>(k, a, lda, b, b_stride, c, ldc, into);
}

template <std::size_t... I>
MicroKernels portable_kernels(std::index_sequence<I...>) {
    return {kPortableMr,
            kPortableNr,
            {micro_portable<int{I} + 1>...},
            {micro_rows_portable<int{I} + 1>...}};
}

#if defined(__x86_64__)
// 12 x 32 in 24 accumulators; 2 registers hold b, a is broadcast from memory.
constexpr int kAvx512Mr = 12, kAvx512Nr = 32;

template <int Rows, bool Packed>
[[STOA_TARGET_AVX512]] inline void sums_avx512(std::int64_t k, const float* a, std::int64_t lda,
                                               const float* b, std::int64_t b_stride, float* c,
                                               std::int64_t ldc, Into into) {
    __m512 acc[Rows][2];
    prefetch_tile<Rows, 2>(into == Into::chain ? c + Rows * ldc : c, ldc);
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
        acc[r][0] = acc[r][1] = _mm512_setzero_ps();
        if (into != Into::chain) continue;
        acc[r][0] = _mm512_loadu_ps(c + r * ldc);
        acc[r][1] = _mm512_loadu_ps(c + r * ldc + 16);
    }
#pragma GCC unroll 2
    for (std::int64_t p = 0; p < k; ++p, a += Packed ? kAvx512Mr : 1, b += b_stride) {
        const __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
#pragma GCC unroll 12
        for (int r = 0; r < Rows; ++r) {
            const __m512 x = _mm512_set1_ps(Packed ? a[r] : a[r * lda]);
            acc[r][0] = _mm512_fmadd_ps(x, b0, acc[r][0]);
            acc[r][1] = _mm512_fmadd_ps(x, b1, acc[r][1]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r, c += ldc) {
        if (into == Into::add) {
            acc[r][0] = _mm512_add_ps(_mm512_loadu_ps(c), acc[r][0]);
            acc[r][1] = _mm512_add_ps(_mm512_loadu_ps(c + 16), acc[r][1]);
        }
        _mm512_storeu_ps(c, acc[r][0]);
        _mm512_storeu_ps(c + 16, acc[r][1]);
    }
}

template <int Rows>
[[STOA_TARGET_AVX512]] void micro_avx512(std::int64_t k, const float* a, const float* b,
                                         std::int64_t b_stride, float* c, std::int64_t ldc,
                                         Into into) {
    sums_avx512<Rows, true>(k, a, 0, b, b_stride, c, ldc, into);
}
template <int Rows>
[[STOA_TARGET_AVX512]] void micro_rows_avx512(std::int64_t k, const float* a, std::int64_t lda,
                                              const float* b, std::int64_t b_stride, float* c,
                                              std::int64_t ldc, Into into) {
    sums_avx512<Rows, false>(k, a, lda, b, b_stride, c, ldc, into);
}

// 6 x 16 in 12 of the 16 registers.
constexpr int kAvx2Mr = 6, kAvx2Nr = 16;

template <int Rows, bool Packed>
[[STOA_TARGET_AVX2]] inline void sums_avx2(std::int64_t k, const float* a, std::int64_t lda,
                                           const float* b, std::int64_t b_stride, float* c,
                                           std::int64_t ldc, Into into) {
    __m256 acc[Rows][2];
    prefetch_tile<Rows, 1>(into == Into::chain ? c + Rows * ldc : c, ldc);
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
        acc[r][0] = acc[r][1] = _mm256_setzero_ps();
        if (into != Into::chain) continue;
        acc[r][0] = _mm256_loadu_ps(c + r * ldc);
        acc[r][1] = _mm256_loadu_ps(c + r * ldc + 8);
    }
    for (std::int64_t p = 0; p < k; ++p, a += Packed ? kAvx2Mr : 1, b += b_stride) {
        const __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
#pragma GCC unroll 6
        for (int r = 0; r < Rows; ++r) {
            const __m256 x = _mm256_broadcast_ss(Packed ? a + r : a + r * lda);
            acc[r][0] = _mm256_fmadd_ps(x, b0, acc[r][0]);
            acc[r][1] = _mm256_fmadd_ps(x, b1, acc[r][1]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r, c += ldc) {
        if (into == Into::add) {
            acc[r][0] = _mm256_add_ps(_mm256_loadu_ps(c), acc[r][0]);
            acc[r][1] = _mm256_add_ps(_mm256_loadu_ps(c + 8), acc[r][1]);
        }
        _mm256_storeu_ps(c, acc[r][0]);
        _mm256_storeu_ps(c + 8, acc[r][1]);
    }
}

template <int Rows>
[[STOA_TARGET_AVX2]] void micro_avx2(std::int64_t k, const float* a, const float* b,
                                     std::int64_t b_stride, float* c, std::int64_t ldc, Into into) {
    sums_avx2<Rows, true>(k, a, 0, b, b_stride, c, ldc, into);
}
template <int Rows>
[[STOA_TARGET_AVX2]] void micro_rows_avx2(std::int64_t k, const float* a, std::int64_t lda,
                                          const float* b, std::int64_t b_stride, float* c,
                                          std::int64_t ldc, Into into) {
    sums_avx2<Rows, false>(k, a, lda, b, b_stride, c, ldc, into);
}

template <std::size_t... I>
MicroKernels avx512_kernels(std::index_sequence<I...>) {
    return {kAvx512Mr,
            kAvx512Nr,
            {micro_avx512<int{I} + 1>...},
            {micro_rows_avx512<int{I} + 1>...},
            false};
}
template <std::size_t... I>
MicroKernels avx2_kernels(std::index_sequence<I...>) {
    return {
        kAvx2Mr, kAvx2Nr, {micro_avx2<int{I} + 1>...}, {micro_rows_avx2<int{I} + 1>...}};
}
#endif

}  // namespace

const MicroKernels& micro_kernels(Isa isa) {
    static const MicroKernels portable = portable_kernels(std::make_index_sequence<kPortableMr>());
#if defined(__x86_64__)
    static const MicroKernels avx512 = avx512_kernels(std::make_index_sequence<kAvx512Mr>());
    static const MicroKernels avx2 = avx2_kernels(std::make_index_sequence<kAvx2Mr>());
    if (isa == Isa::avx512) return avx512;
    if (isa == Isa::avx2) return avx2;
#endif
    (void)isa;
    return portable;
}

}  // namespace stoa::cpu
