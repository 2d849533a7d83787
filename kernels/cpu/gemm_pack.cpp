// Packing for the GEMM. Narrow operands are widened into a small buffer in L1 first, so that one
// fp32 text rearranges all dtypes.
#include "kernels/cpu/gemm_pack.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/gemm_widen.h"
#include "kernels/cpu/isa.h"
#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // g++ 12's own header: GCC bug 105593
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace stoa::cpu {
namespace {

constexpr std::int64_t kMaxWidth = 32;  // of a panel
constexpr std::int64_t kMaxK = 256;     // steps of a panel
constexpr std::int64_t kSteps = 128;    // steps of k that are widened at a time, stored along k
constexpr std::int64_t kRows = 8;       // the same, stored across k: rows of up to kSpan values
constexpr std::int64_t kSpan = 384;     // whole panels of every instruction set

/// A piece of the stored matrix in fp32: in place, or widened into a buffer.
struct Piece {
    const float* data = nullptr;
    std::int64_t ld = 0;
};
Piece piece_of(float* buffer, const Operand& x, std::int64_t row, std::int64_t rows,
               std::int64_t column, std::int64_t columns) {
    if (x.dtype == DType::fp32)
        return {reinterpret_cast<const float*>(x.data) + row * x.ld + column, x.ld};
    for (std::int64_t r = 0; r < rows; ++r)
        widen_run(buffer + r * columns, x, row + r, column, columns);
    return {buffer, columns};
}

using Float4 = float __attribute__((vector_size(16)));
using Int4 = int __attribute__((vector_size(16)));
inline Float4 load4(const float* p) {
    Float4 v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store4(float* p, Float4 v) { std::memcpy(p, &v, sizeof v); }

/// panel[p][j] = x[j][p] for j < count, 0 up to width; by 4 x 4 transposes.
inline void transpose_into(float* panel, std::int64_t width, const Piece& x, std::int64_t count,
                           std::int64_t k) {
    std::int64_t j = 0;
    for (; j + 4 <= count; j += 4) {
        const float* row = x.data + j * x.ld;
        std::int64_t p = 0;
        for (; p + 4 <= k; p += 4) {
            const Float4 r0 = load4(row + p), r1 = load4(row + x.ld + p);
            const Float4 r2 = load4(row + 2 * x.ld + p), r3 = load4(row + 3 * x.ld + p);
            const Float4 lo01 = __builtin_shuffle(r0, r1, Int4{0, 4, 1, 5});
            const Float4 hi01 = __builtin_shuffle(r0, r1, Int4{2, 6, 3, 7});
            const Float4 lo23 = __builtin_shuffle(r2, r3, Int4{0, 4, 1, 5});
            const Float4 hi23 = __builtin_shuffle(r2, r3, Int4{2, 6, 3, 7});
            float* out = panel + p * width + j;
            store4(out, __builtin_shuffle(lo01, lo23, Int4{0, 1, 4, 5}));
            store4(out + width, __builtin_shuffle(lo01, lo23, Int4{2, 3, 6, 7}));
            store4(out + 2 * width, __builtin_shuffle(hi01, hi23, Int4{0, 1, 4, 5}));
            store4(out + 3 * width, __builtin_shuffle(hi01, hi23, Int4{2, 3, 6, 7}));
        }
        for (; p < k; ++p)
            for (std::int64_t i = 0; i < 4; ++i)
                panel[p * width + j + i] = row[i * x.ld + p];
    }
    for (; j < width; ++j)
        for (std::int64_t p = 0; p < k; ++p)
            panel[p * width + j] = j < count ? x.data[j * x.ld + p] : 0.0f;
}

/// panel[p][j] = x[p][j] for j < count, 0 up to width.
inline void copy_into(float* panel, std::int64_t width, const Piece& x, std::int64_t count,
                      std::int64_t k) {
    for (std::int64_t p = 0; p < k; ++p, panel += width) {
        const float* const row = x.data + p * x.ld;
        std::int64_t j = 0;
        for (; j + 4 <= count; j += 4)
            store4(panel + j, load4(row + j));
        for (; j < width; ++j)
            panel[j] = j < count ? row[j] : 0.0f;
    }
}

#if defined(__x86_64__)
/// Columns [p, p + 4) of 16 rows as 4 vectors of 16. Lane l of a load holds row r + 4 l, so that
/// two rounds of shuffles inside the lanes finish the transpose.
[[STOA_TARGET_AVX512]] inline void transpose_16x4(float* out, std::int64_t width, __mmask16 store,
                                                  const float* const* row, std::int64_t p) {
    __m512 t[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
        t[r] = _mm512_castps128_ps512(_mm_loadu_ps(row[r] + p));
        t[r] = _mm512_insertf32x4(t[r], _mm_loadu_ps(row[r + 4] + p), 1);
        t[r] = _mm512_insertf32x4(t[r], _mm_loadu_ps(row[r + 8] + p), 2);
        t[r] = _mm512_insertf32x4(t[r], _mm_loadu_ps(row[r + 12] + p), 3);
    }
    const __m512d lo01 = _mm512_castps_pd(_mm512_unpacklo_ps(t[0], t[1]));
    const __m512d lo23 = _mm512_castps_pd(_mm512_unpacklo_ps(t[2], t[3]));
    const __m512d hi01 = _mm512_castps_pd(_mm512_unpackhi_ps(t[0], t[1]));
    const __m512d hi23 = _mm512_castps_pd(_mm512_unpackhi_ps(t[2], t[3]));
    const __m512d column[4] = {_mm512_unpacklo_pd(lo01, lo23), _mm512_unpackhi_pd(lo01, lo23),
                               _mm512_unpacklo_pd(hi01, hi23), _mm512_unpackhi_pd(hi01, hi23)};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
        _mm512_mask_storeu_ps(out + i * width, store, _mm512_castpd_ps(column[i]));
}

[[STOA_TARGET_AVX512]] void transpose_avx512(float* panel, std::int64_t width, const Piece& x,
                                             std::int64_t count, std::int64_t k) {
    alignas(64) static constexpr float kZeros[kMaxK] = {};  // stands in for rows that are missing
    for (std::int64_t j = 0; j < width; j += 16) {
        const float* row[16];
        for (std::int64_t r = 0; r < 16; ++r)
            row[r] = j + r < count ? x.data + (j + r) * x.ld : kZeros;
        const auto lanes = static_cast<int>(std::min<std::int64_t>(16, width - j));
        const auto store = static_cast<__mmask16>((1u << lanes) - 1u);
        std::int64_t p = 0;
        for (; p + 4 <= k; p += 4)
            transpose_16x4(panel + p * width + j, width, store, row, p);
        for (; p < k; ++p)
            for (int r = 0; r < lanes; ++r)
                panel[p * width + j + r] = row[r][p];
    }
}

[[STOA_TARGET_AVX512]] void copy_avx512(float* panel, std::int64_t width, const Piece& x,
                                        std::int64_t count, std::int64_t k) {
    const auto lanes = [](std::int64_t n) {
        return static_cast<__mmask16>((1u << std::clamp<std::int64_t>(n, 0, 16)) - 1u);
    };
    const __mmask16 load0 = lanes(count), load1 = lanes(count - 16);
    const __mmask16 store0 = lanes(width), store1 = lanes(width - 16);
    const float* row = x.data;
    for (std::int64_t p = 0; p < k; ++p, panel += width, row += x.ld) {
        _mm512_mask_storeu_ps(panel, store0, _mm512_maskz_loadu_ps(load0, row));
        if (store1 != 0)
            _mm512_mask_storeu_ps(panel + 16, store1, _mm512_maskz_loadu_ps(load1, row + 16));
    }
}
#endif

void transpose_any(float* panel, std::int64_t width, const Piece& x, std::int64_t count,
                   std::int64_t k) {
#if defined(__x86_64__)
    if (current_isa() == Isa::avx512) return transpose_avx512(panel, width, x, count, k);
#endif
    transpose_into(panel, width, x, count, k);
}
void copy_any(float* panel, std::int64_t width, const Piece& x, std::int64_t count,
              std::int64_t k) {
#if defined(__x86_64__)
    if (current_isa() == Isa::avx512) return copy_avx512(panel, width, x, count, k);
#endif
    copy_into(panel, width, x, count, k);
}

}  // namespace

void pack_panels(float* packed, std::int64_t width, std::int64_t depth, const Operand& x,
                 bool along_k, std::int64_t first, std::int64_t count, std::int64_t p,
                 std::int64_t k) {
    alignas(64) float buffer[std::max(kMaxWidth * kSteps, kRows * kSpan)];
    if (along_k) {
        for (std::int64_t i = 0; i < count; i += width)
            for (std::int64_t step = 0; step < k; step += kSteps) {
                const std::int64_t rows = std::min(width, count - i);
                const std::int64_t steps = std::min(kSteps, k - step);
                const Piece piece = piece_of(buffer, x, first + i, rows, p + step, steps);
                float* const panel = packed + i * depth + step * width;
                transpose_any(panel, width, piece, rows, steps);
            }
        return;
    }
    for (std::int64_t span = 0; span < count; span += kSpan)
        for (std::int64_t step = 0; step < k; step += kRows) {
            const std::int64_t values = std::min(kSpan, count - span);
            const std::int64_t steps = std::min(kRows, k - step);
            const Piece piece = piece_of(buffer, x, p + step, steps, first + span, values);
            for (std::int64_t i = 0; i < values; i += width)
                copy_any(packed + (span + i) * depth + step * width, width,
                         {piece.data + i, piece.ld}, std::min(width, values - i), steps);
        }
}

}  // namespace stoa::cpu
