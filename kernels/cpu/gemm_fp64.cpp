#include <algorithm>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/scratch.h"

namespace stoa::cpu {
namespace {

/// One block of k of a times b (k, n): chains over ascending p, all columns of a row at a time.
void multiply_block(const Gemm& g, double* chain, const double* b, std::int64_t ldb,
                    std::int64_t p0, std::int64_t k) {
    const bool write = !g.accumulate && p0 == g.k_begin;
    const auto* const a = reinterpret_cast<const double*>(g.a.data);
    vectorised([&] {
        for (std::int64_t i = 0; i < g.m; ++i) {
            double* const c = reinterpret_cast<double*>(g.c.data) + i * g.c.ld;
            if (g.chain && !write)
                std::copy_n(c, g.n, chain);
            else
                std::fill_n(chain, g.n, 0.0);
            for (std::int64_t p = 0; p < k; ++p) {
                const double x = g.a.transpose ? a[(p0 + p) * g.a.ld + i] : a[i * g.a.ld + p0 + p];
                const double* const b_row = b + p * ldb;
                for (std::int64_t j = 0; j < g.n; ++j)
                    chain[j] = __builtin_fma(x, b_row[j], chain[j]);
            }
            for (std::int64_t j = 0; j < g.n; ++j)
                c[j] = write || g.chain ? chain[j] : c[j] + chain[j];
        }
    });
}

}  // namespace

void gemm_fp64(const Gemm& g) {
    if (g.k == 0 && !g.accumulate)
        for (std::int64_t i = 0; i < g.m; ++i)
            std::fill_n(reinterpret_cast<double*>(g.c.data) + i * g.c.ld, g.n, 0.0);
    struct Rows;
    double* const chain = scratch<Rows, double>(g.n * (g.b.transpose ? kGemmBlockK + 1 : 1));
    double* const b_block = chain + g.n;  // (k, n) of a transposed b
    const auto* const b = reinterpret_cast<const double*>(g.b.data);
    const std::int64_t end = g.k_begin + g.k;
    for (std::int64_t p0 = g.k_begin; p0 < end; p0 += kGemmBlockK) {
        const std::int64_t k = std::min(kGemmBlockK, end - p0);
        if (!g.b.transpose) {
            multiply_block(g, chain, b + p0 * g.b.ld, g.b.ld, p0, k);
            continue;
        }
        for (std::int64_t j = 0; j < g.n; ++j)
            for (std::int64_t p = 0; p < k; ++p)
                b_block[p * g.n + j] = b[j * g.b.ld + p0 + p];
        multiply_block(g, chain, b_block, g.n, p0, k);
    }
}

}  // namespace stoa::cpu
