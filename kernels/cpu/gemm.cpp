// Packed GEMM after Goto & van de Geijn 2008: a block of b (256 x 1024) and a block of a (480 x
// 256) are packed so that the micro-kernel reads both with unit stride; c is updated once per k
// block.
#include "kernels/cpu/gemm.h"

#include <algorithm>

#include "kernels/cpu/gemm_micro.h"
#include "kernels/cpu/gemm_pack.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/scratch.h"

namespace stoa::cpu {
namespace {

constexpr std::int64_t kBlockM = 480;   // a multiple of every mr; 480 KiB of a in L2
constexpr std::int64_t kBlockN = 1024;  // a multiple of every nr; 1 MiB of b in L2
constexpr std::int64_t kFewRows = 24;   // fewer rows than this do not pay for packing b
constexpr std::int64_t kStripe = 2048;  // rows of a narrow c that are held in fp32 at a time

struct Panel {
    const float* data = nullptr;
    std::int64_t stride = 0;  // between steps of k
};

/// All row panels of packed a against one panel of b: c columns [0, width).
void multiply_panel(const MicroKernels& micro, std::int64_t m, std::int64_t k, const float* a,
                    const Panel& b, std::int64_t width, float* c, std::int64_t ldc, bool add) {
    for (std::int64_t r = 0; r < m; r += micro.mr, a += micro.mr * k, c += micro.mr * ldc) {
        const std::int64_t rows = std::min<std::int64_t>(micro.mr, m - r);
        const MicroKernel kernel = micro.for_rows[rows - 1];
        if (width == micro.nr) {
            kernel(k, a, b.data, b.stride, c, ldc, add);
            continue;
        }
        float tile[kMaxMr * kMaxNr];
        kernel(k, a, b.data, b.stride, tile, micro.nr, false);
        for (std::int64_t i = 0; i < rows; ++i)
            for (std::int64_t j = 0; j < width; ++j) {
                const float x = tile[i * micro.nr + j];
                c[i * ldc + j] = add ? c[i * ldc + j] + x : x;
            }
    }
}

/// Columns [j0, j0 + n) of the product into c (m, n), which has fp32 elements.
void multiply_columns(const Gemm& g, std::int64_t j0, std::int64_t n, float* c, std::int64_t ldc) {
    const MicroKernels& micro = micro_kernels(current_isa());
    struct PackedA;
    struct PackedB;
    const std::int64_t panels_a = (std::min(g.m, kBlockM) + micro.mr - 1) / micro.mr;
    const std::int64_t panels_b = (n + micro.nr - 1) / micro.nr;
    const std::int64_t depth = std::min(g.k, kGemmBlockK);
    float* const a = scratch<PackedA, float>(panels_a * micro.mr * depth);
    float* const b = scratch<PackedB, float>(panels_b * micro.nr * depth);
    const bool b_in_place = g.b.dtype == DType::fp32 && !g.b.transpose && g.m <= kFewRows;
    for (std::int64_t p = 0; p < g.k; p += kGemmBlockK) {
        const std::int64_t k = std::min(kGemmBlockK, g.k - p);
        const bool add = g.accumulate || p > 0;
        for (std::int64_t i = 0; i < g.m; i += kBlockM) {
            const std::int64_t m = std::min(kBlockM, g.m - i);
            pack_panels(a, micro.mr, g.a, !g.a.transpose, i, m, p, k);
            for (std::int64_t j = 0; j < n; j += micro.nr) {
                const std::int64_t width = std::min<std::int64_t>(micro.nr, n - j);
                Panel panel{b + j * k, micro.nr};
                if (b_in_place && width == micro.nr)
                    panel = {reinterpret_cast<const float*>(g.b.data) + p * g.b.ld + j0 + j,
                             g.b.ld};
                else if (i == 0)
                    pack_panels(b + j * k, micro.nr, g.b, g.b.transpose, j0 + j, width, p, k);
                multiply_panel(micro, m, k, a, panel, width, c + i * ldc + j, ldc, add);
            }
        }
    }
}

/// c in 16 bits: the sums stay in fp32 over all of k and are rounded once.
template <class T>
void multiply_to_narrow(Gemm g) {
    struct Wide;
    const std::int64_t m = g.m, columns = std::min(g.n, kBlockN);
    float* const wide = scratch<Wide, float>(std::min(m, kStripe) * columns);
    for (std::int64_t i = 0; i < m; i += kStripe) {
        g.m = std::min(kStripe, m - i);
        for (std::int64_t j = 0; j < g.n; j += kBlockN) {
            const std::int64_t n = std::min(kBlockN, g.n - j);
            T* const c = reinterpret_cast<T*>(g.c.data) + i * g.c.ld + j;
            vectorised([&] {
                for (std::int64_t r = 0; r < g.m; ++r)
                    for (std::int64_t e = 0; e < n; ++e)
                        wide[r * n + e] = g.accumulate ? widen(c[r * g.c.ld + e]) : 0.0f;
            });
            multiply_columns(g, j, n, wide, n);
            vectorised([&] {
                for (std::int64_t r = 0; r < g.m; ++r)
                    for (std::int64_t e = 0; e < n; ++e)
                        c[r * g.c.ld + e] = narrow_to<T>(wide[r * n + e]);
            });
        }
        g.a.data += kStripe * (g.a.transpose ? 1 : g.a.ld) * size_of(g.a.dtype);
        if (g.a.scale != nullptr)
            g.a.scale +=
                g.a.transpose ? kStripe / g.a.scale_cols : kStripe / g.a.scale_rows * g.a.scale_ld;
    }
}

}  // namespace

void gemm(const Gemm& g) {
    switch (g.c.dtype) {
        case DType::fp64:
            return gemm_fp64(g);
        case DType::bf16:
            return multiply_to_narrow<bf16>(g);
        case DType::fp16:
            return multiply_to_narrow<fp16>(g);
        default:
            break;
    }
    auto* const c = reinterpret_cast<float*>(g.c.data);
    if (g.k == 0 && !g.accumulate)
        for (std::int64_t i = 0; i < g.m; ++i)
            std::fill_n(c + i * g.c.ld, g.n, 0.0f);
    for (std::int64_t j = 0; j < g.n; j += kBlockN)
        multiply_columns(g, j, std::min(kBlockN, g.n - j), c + j, g.c.ld);
}

}  // namespace stoa::cpu
