#pragma once
// Packing for the GEMM: a panel holds `width` <= `stride` values per step of k, consecutive, zero
// padded to the stride, fp32 whatever the source.
#include <cstring>

#include "kernels/core/numeric.h"

namespace stoa::cpu {

using Float4 = float __attribute__((vector_size(16)));

inline Float4 load4(const float* p) {
    Float4 v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class T>
Float4 load4(const T* p) {
    return Float4{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
}
inline void store4(float* p, Float4 v) { std::memcpy(p, &v, sizeof v); }

/// The panel's values lie side by side in the source: (k, width) with row stride ld.
template <class T>
void pack_rows(float* panel, std::int64_t stride, const T* source, std::int64_t ld, std::int64_t k,
               std::int64_t width) {
    for (std::int64_t p = 0; p < k; ++p, panel += stride, source += ld) {
        std::int64_t j = 0;
        for (; j + 4 <= width; j += 4)
            store4(panel + j, load4(source + j));
        for (; j < width; ++j)
            panel[j] = widen(source[j]);
        for (; j < stride; ++j)
            panel[j] = 0.0f;
    }
}

/// The panel's values lie ld apart in the source: (width, k) with row stride ld. 4 x 4 transposes.
template <class T>
void pack_columns(float* panel, std::int64_t stride, const T* source, std::int64_t ld,
                  std::int64_t k, std::int64_t width) {
    using Int4 = int __attribute__((vector_size(16)));
    std::int64_t j = 0;
    for (; j + 4 <= width; j += 4) {
        const T* row = source + j * ld;
        std::int64_t p = 0;
        for (; p + 4 <= k; p += 4) {
            const Float4 r0 = load4(row + p), r1 = load4(row + ld + p);
            const Float4 r2 = load4(row + 2 * ld + p), r3 = load4(row + 3 * ld + p);
            const Float4 lo01 = __builtin_shuffle(r0, r1, Int4{0, 4, 1, 5});
            const Float4 hi01 = __builtin_shuffle(r0, r1, Int4{2, 6, 3, 7});
            const Float4 lo23 = __builtin_shuffle(r2, r3, Int4{0, 4, 1, 5});
            const Float4 hi23 = __builtin_shuffle(r2, r3, Int4{2, 6, 3, 7});
            float* out = panel + p * stride + j;
            store4(out, __builtin_shuffle(lo01, lo23, Int4{0, 1, 4, 5}));
            store4(out + stride, __builtin_shuffle(lo01, lo23, Int4{2, 3, 6, 7}));
            store4(out + 2 * stride, __builtin_shuffle(hi01, hi23, Int4{0, 1, 4, 5}));
            store4(out + 3 * stride, __builtin_shuffle(hi01, hi23, Int4{2, 3, 6, 7}));
        }
        for (; p < k; ++p)
            for (std::int64_t i = 0; i < 4; ++i)
                panel[p * stride + j + i] = widen(row[i * ld + p]);
    }
    for (; j < width; ++j)
        for (std::int64_t p = 0; p < k; ++p)
            panel[p * stride + j] = widen(source[j * ld + p]);
    for (; j < stride; ++j)
        for (std::int64_t p = 0; p < k; ++p)
            panel[p * stride + j] = 0.0f;
}

}  // namespace stoa::cpu
