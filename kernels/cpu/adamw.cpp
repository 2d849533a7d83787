#include <cmath>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/ops.h"

namespace stoa::cpu {
namespace {

template <class W>
void update(const AdamwArgs& args) {
    const std::int64_t n = args.param.numel();
    W* const param = args.param.as<W>().data();
    W* const m = args.m.as<W>().data();
    W* const v = args.v.as<W>().data();
    const W* const grad = args.grad.as<W>().data();
    const auto step = static_cast<double>(args.step);
    // Constants in float64, rounded once.
    const W lr = static_cast<W>(args.lr), eps = static_cast<W>(args.eps);
    const W b1 = static_cast<W>(args.beta1), one_minus_b1 = static_cast<W>(1.0 - args.beta1);
    const W b2 = static_cast<W>(args.beta2), one_minus_b2 = static_cast<W>(1.0 - args.beta2);
    const W m_scale = static_cast<W>(1.0 / (1.0 - std::pow(args.beta1, step)));
    const W v_scale = static_cast<W>(1.0 / (1.0 - std::pow(args.beta2, step)));
    const W decay = static_cast<W>(args.weight_decay);
    const W grad_scale = static_cast<W>(args.grad_scale);
    vectorised([&] {
#pragma GCC ivdep
        for (std::int64_t i = 0; i < n; ++i) {
            const W g = grad[i] * grad_scale;
            const W m_i = b1 * m[i] + one_minus_b1 * g;
            const W v_i = b2 * v[i] + one_minus_b2 * (g * g);
            const W direction = m_i * m_scale / (std::sqrt(v_i * v_scale) + eps);
            m[i] = m_i;
            v[i] = v_i;
            param[i] -= lr * (direction + decay * param[i]);
        }
    });
}

}  // namespace

void adamw(const AdamwArgs& args) {
    if (args.param.dtype == DType::fp64)
        update<double>(args);
    else
        update<float>(args);
}

}  // namespace stoa::cpu
