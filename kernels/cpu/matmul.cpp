#include <algorithm>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/scratch.h"

namespace stoa::cpu {
namespace {

constexpr std::int64_t kStripe = 480;  // rows of a 16-bit result that are held in fp32 at a time

/// c in 16 bits: sums stay in fp32 over all of k and are rounded once.
template <class T>
void matmul_to_narrow(Gemm<T> g, T* c, bool accumulate) {
    struct Stripe;
    float* const wide = scratch<Stripe, float>(std::min(g.m, kStripe) * g.n);
    const std::int64_t m = g.m;
    const T* const a = g.a;
    for (std::int64_t i = 0; i < m; i += kStripe) {
        g.m = std::min(kStripe, m - i);
        g.a = a + (g.transpose_a ? i : i * g.lda);
        g.c = wide;
        g.accumulate = accumulate;
        T* const rows = c + i * g.n;
        const std::int64_t count = g.m * g.n;
        if (accumulate)
            for (std::int64_t e = 0; e < count; ++e)
                wide[e] = widen(rows[e]);
        gemm(g);
        vectorised([&] {
            for (std::int64_t e = 0; e < count; ++e)
                rows[e] = narrow_to<T>(wide[e]);
        });
    }
}

}  // namespace

void matmul(const MatmulArgs& args) {
    const ConstTensorView &a = args.a, &b = args.b;
    const std::int64_t m = args.c.rows(), n = args.c.cols();
    if (m == 0 || n == 0) return;
    dispatch_dtype(a.dtype, [&]<Element T>(T) {
        Gemm<T> g{.m = m,
                  .n = n,
                  .k = args.transpose_a ? a.rows() : a.cols(),
                  .a = a.as<T>().data(),
                  .lda = a.cols(),
                  .transpose_a = args.transpose_a,
                  .b = b.as<T>().data(),
                  .ldb = b.cols(),
                  .transpose_b = args.transpose_b,
                  .ldc = n,
                  .accumulate = args.accumulate};
        if constexpr (!std::is_same_v<T, Wide<T>>)
            if (args.c.dtype == a.dtype)
                return matmul_to_narrow(g, args.c.as<T>().data(), args.accumulate);
        g.c = args.c.as<Wide<T>>().data();
        gemm(g);
    });
}

}  // namespace stoa::cpu
