// 8- and 16-bit values to fp32. The vector paths go through fp16, whose conversion is one
// instruction and needs no help for subnormals: an e5m2 code is the upper byte of an fp16, and the
// bits of an e4m3 code one place lower are an fp16 that is 2^8 too small.
#include "kernels/cpu/gemm_widen.h"

#include <algorithm>

#include "kernels/cpu/isa.h"
#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // g++ 12's own header: GCC bug 105593
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace stoa::cpu {
namespace {

template <class T>
void widen_portable(float* out, const T* in, std::int64_t n, float scale) {
    for (std::int64_t i = 0; i < n; ++i)
        out[i] = size_of(dtype_of<T>()) == 1 ? to_float(in[i]) * scale : to_float(in[i]);
}

#if defined(__x86_64__)
#define STOA_TARGET_F16C gnu::target("avx2,fma,f16c")

[[STOA_TARGET_AVX512]] inline __m512 load16(const bf16* p) {
    const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
[[STOA_TARGET_AVX512]] inline __m512 load16(const fp16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
[[STOA_TARGET_AVX512]] inline __m512 load16(const e5m2* p) {
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(b), 8));
}
[[STOA_TARGET_AVX512]] inline __m512 load16(const e4m3* p) {
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    // As a signed 16-bit number the code's sign reaches bit 15; the shift leaves it there.
    const __m256i s = _mm256_slli_epi16(_mm256_cvtepi8_epi16(b), 7);
    const __m256i h = _mm256_and_si256(s, _mm256_set1_epi16(static_cast<short>(0xbf80)));
    const __m128i magnitude = _mm_and_si128(b, _mm_set1_epi8(0x7f));
    const __mmask16 nan = _mm_cmpeq_epi8_mask(magnitude, _mm_set1_epi8(0x7f));
    const __m512 x = _mm512_mul_ps(_mm512_cvtph_ps(h), _mm512_set1_ps(256.0f));
    return _mm512_mask_mov_ps(x, nan, _mm512_set1_ps(__builtin_nanf("")));
}

template <class T>
[[STOA_TARGET_AVX512]] void widen_avx512(float* out, const T* in, std::int64_t n, float scale) {
    const __m512 s = _mm512_set1_ps(scale);
    std::int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m512 x = load16(in + i);
        _mm512_storeu_ps(out + i, size_of(dtype_of<T>()) == 1 ? _mm512_mul_ps(x, s) : x);
    }
    widen_portable(out + i, in + i, n - i, scale);
}

[[STOA_TARGET_F16C]] inline __m256 load8(const bf16* p) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
[[STOA_TARGET_F16C]] inline __m256 load8(const fp16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
[[STOA_TARGET_F16C]] inline __m256 load8(const e5m2* p) {
    const __m128i b = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(b), 8));
}
[[STOA_TARGET_F16C]] inline __m256 load8(const e4m3* p) {
    const __m128i b = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m128i s = _mm_slli_epi16(_mm_cvtepi8_epi16(b), 7);
    const __m128i h = _mm_and_si128(s, _mm_set1_epi16(static_cast<short>(0xbf80)));
    const __m128i magnitude = _mm_and_si128(b, _mm_set1_epi8(0x7f));
    const __m128i nan = _mm_cmpeq_epi8(magnitude, _mm_set1_epi8(0x7f));
    const __m256 x = _mm256_mul_ps(_mm256_cvtph_ps(h), _mm256_set1_ps(256.0f));
    return _mm256_or_ps(x, _mm256_castsi256_ps(_mm256_cvtepi8_epi32(nan)));  // all ones: a NaN
}

template <class T>
[[STOA_TARGET_F16C]] void widen_avx2(float* out, const T* in, std::int64_t n, float scale) {
    const __m256 s = _mm256_set1_ps(scale);
    std::int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 x = load8(in + i);
        _mm256_storeu_ps(out + i, size_of(dtype_of<T>()) == 1 ? _mm256_mul_ps(x, s) : x);
    }
    widen_portable(out + i, in + i, n - i, scale);
}

bool has_f16c() {
    static const bool answer = __builtin_cpu_supports("f16c");
    return answer;
}
#endif

template <class T>
void widen(float* out, const T* in, std::int64_t n, float scale) {
#if defined(__x86_64__)
    const Isa isa = current_isa();
    if (isa == Isa::avx512) return widen_avx512(out, in, n, scale);
    if (isa == Isa::avx2 && has_f16c()) return widen_avx2(out, in, n, scale);
#endif
    widen_portable(out, in, n, scale);
}

template <class T>
const T* element(const Operand& x, std::int64_t row, std::int64_t column) {
    return reinterpret_cast<const T*>(x.data) + row * x.ld + column;
}

/// Codes times their scales: one scale per run of kQuantBlock columns, or one per column.
template <class T>
void widen_codes(float* out, const Operand& x, std::int64_t row, std::int64_t column,
                 std::int64_t n) {
    const T* const in = element<T>(x, row, column);
    const e8m0* const scale = x.scale + row / x.scale_rows * x.scale_ld;
    if (x.scale_cols == 1) {
        widen(out, in, n, 1.0f);
        vectorised([&] {
            for (std::int64_t i = 0; i < n; ++i)
                out[i] *= to_float(scale[column + i]);
        });
        return;
    }
    for (std::int64_t i = 0; i < n;) {
        const std::int64_t block = (column + i) / x.scale_cols;
        const std::int64_t end = std::min(n, (block + 1) * x.scale_cols - column);
        widen(out + i, in + i, end - i, to_float(scale[block]));
        i = end;
    }
}

}  // namespace

void widen_run(float* out, const Operand& x, std::int64_t row, std::int64_t column,
               std::int64_t n) {
    switch (x.dtype) {
        case DType::bf16:
            return widen(out, element<bf16>(x, row, column), n, 1.0f);
        case DType::fp16:
            return widen(out, element<fp16>(x, row, column), n, 1.0f);
        case DType::e4m3:
            return widen_codes<e4m3>(out, x, row, column, n);
        case DType::e5m2:
            return widen_codes<e5m2>(out, x, row, column, n);
        default:
            std::copy_n(element<float>(x, row, column), n, out);
    }
}

}  // namespace stoa::cpu
