// Packing for the GEMM. Narrow operands are widened into a small buffer in L1 first, so that one
// fp32 text rearranges all dtypes.
#include "kernels/cpu/gemm_pack.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/gemm_widen.h"
#include "kernels/cpu/isa.h"

namespace stoa::cpu {
namespace {

constexpr std::int64_t kMaxWidth = 32;  // of a panel
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
                vectorised([&] { transpose_into(panel, width, piece, rows, steps); });
            }
        return;
    }
    for (std::int64_t span = 0; span < count; span += kSpan)
        for (std::int64_t step = 0; step < k; step += kRows) {
            const std::int64_t values = std::min(kSpan, count - span);
            const std::int64_t steps = std::min(kRows, k - step);
            const Piece piece = piece_of(buffer, x, p + step, steps, first + span, values);
            vectorised([&] {
                for (std::int64_t i = 0; i < values; i += width) {
                    float* const panel = packed + (span + i) * depth + step * width;
                    copy_into(panel, width, {piece.data + i, piece.ld}, std::min(width, values - i),
                              steps);
                }
            });
        }
}

}  // namespace stoa::cpu
