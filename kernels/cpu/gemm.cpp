// Packed GEMM after Goto & van de Geijn 2008: a block of b (256 x 1024) and a block of a (480 x
// 256) are packed so that the micro-kernel reads both with unit stride; c is updated once per k
// block.
#include "kernels/cpu/gemm.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/gemm_micro.h"
#include "kernels/cpu/gemm_pack.h"
#include "kernels/cpu/scratch.h"

namespace stoa::cpu {
namespace {

constexpr std::int64_t kBlockM = 480;   // a multiple of every mr; 480 KiB of a in L2
constexpr std::int64_t kBlockN = 1024;  // a multiple of every nr; 1 MiB of b in L2
constexpr std::int64_t kFewRows = 24;   // fewer rows than this do not pay for packing b

/// op(a) rows [i, i + m), k steps [p, p + k), in panels of mr rows.
template <class T>
void pack_a(float* packed, const Gemm<T>& g, std::int64_t i, std::int64_t m, std::int64_t p,
            std::int64_t k, std::int64_t mr) {
    for (std::int64_t r = 0; r < m; r += mr, packed += mr * k) {
        const std::int64_t rows = std::min(mr, m - r);
        if (g.transpose_a)
            pack_rows(packed, mr, g.a + p * g.lda + i + r, g.lda, k, rows);
        else
            pack_columns(packed, mr, g.a + (i + r) * g.lda + p, g.lda, k, rows);
    }
}

template <class T>
void pack_b_panel(float* panel, const Gemm<T>& g, std::int64_t j, std::int64_t p, std::int64_t k,
                  std::int64_t width, std::int64_t nr) {
    if (g.transpose_b)
        pack_columns(panel, nr, g.b + j * g.ldb + p, g.ldb, k, width);
    else
        pack_rows(panel, nr, g.b + p * g.ldb + j, g.ldb, k, width);
}

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

template <class T>
void set_to_zero(const Gemm<T>& g) {
    for (std::int64_t i = 0; i < g.m; ++i)
        std::fill_n(g.c + i * g.ldc, g.n, Wide<T>{0});
}

template <class T>
void packed_gemm(const Gemm<T>& g) {
    if (g.k == 0 && !g.accumulate) set_to_zero(g);
    const MicroKernels& micro = micro_kernels(current_isa());
    struct PackedA;
    struct PackedB;
    const std::int64_t panels_a = (std::min(g.m, kBlockM) + micro.mr - 1) / micro.mr;
    const std::int64_t panels_b = (std::min(g.n, kBlockN) + micro.nr - 1) / micro.nr;
    const std::int64_t depth = std::min(g.k, kGemmBlockK);
    float* const a = scratch<PackedA, float>(panels_a * micro.mr * depth);
    float* const b = scratch<PackedB, float>(panels_b * micro.nr * depth);
    const bool b_in_place = std::is_same_v<T, float> && !g.transpose_b && g.m <= kFewRows;

    for (std::int64_t j0 = 0; j0 < g.n; j0 += kBlockN)
        for (std::int64_t p = 0; p < g.k; p += kGemmBlockK) {
            const std::int64_t n = std::min(kBlockN, g.n - j0), k = std::min(kGemmBlockK, g.k - p);
            const bool add = g.accumulate || p > 0;
            for (std::int64_t i = 0; i < g.m; i += kBlockM) {
                const std::int64_t m = std::min(kBlockM, g.m - i);
                pack_a(a, g, i, m, p, k, micro.mr);
                for (std::int64_t j = 0; j < n; j += micro.nr) {
                    const std::int64_t width = std::min<std::int64_t>(micro.nr, n - j);
                    Panel panel{b + j * k, micro.nr};
                    if constexpr (std::is_same_v<T, float>)
                        if (b_in_place && width == micro.nr)
                            panel = {g.b + p * g.ldb + j0 + j, g.ldb};
                    if (i == 0 && panel.data == b + j * k)
                        pack_b_panel(b + j * k, g, j0 + j, p, k, width, micro.nr);
                    multiply_panel(micro, m, k, a, panel, width, g.c + i * g.ldc + j0 + j, g.ldc,
                                   add);
                }
            }
        }
}

}  // namespace

void gemm(const Gemm<float>& g) { packed_gemm(g); }
void gemm(const Gemm<bf16>& g) { packed_gemm(g); }
void gemm(const Gemm<fp16>& g) { packed_gemm(g); }

void gemm(const Gemm<double>& g) {
    if (g.k == 0 && !g.accumulate) set_to_zero(g);
    struct Rows;
    double* const chain = scratch<Rows, double>(g.n * (g.transpose_b ? kGemmBlockK + 1 : 1));
    double* const b_block = chain + g.n;  // (k, n) of a transposed b
    for (std::int64_t p0 = 0; p0 < g.k; p0 += kGemmBlockK) {
        const std::int64_t k = std::min(kGemmBlockK, g.k - p0);
        if (g.transpose_b)
            for (std::int64_t j = 0; j < g.n; ++j)
                for (std::int64_t p = 0; p < k; ++p)
                    b_block[p * g.n + j] = g.b[j * g.ldb + p0 + p];
        const double* const b = g.transpose_b ? b_block : g.b + p0 * g.ldb;
        const std::int64_t ldb = g.transpose_b ? g.n : g.ldb;
        const bool add = g.accumulate || p0 > 0;
        vectorised([&] {
            for (std::int64_t i = 0; i < g.m; ++i) {
                std::fill_n(chain, g.n, 0.0);
                for (std::int64_t p = 0; p < k; ++p) {
                    const double x =
                        g.transpose_a ? g.a[(p0 + p) * g.lda + i] : g.a[i * g.lda + p0 + p];
                    const double* const b_row = b + p * ldb;
                    for (std::int64_t j = 0; j < g.n; ++j)
                        chain[j] = __builtin_fma(x, b_row[j], chain[j]);
                }
                double* const c = g.c + i * g.ldc;
                for (std::int64_t j = 0; j < g.n; ++j)
                    c[j] = add ? c[j] + chain[j] : chain[j];
            }
        });
    }
}

}  // namespace stoa::cpu
