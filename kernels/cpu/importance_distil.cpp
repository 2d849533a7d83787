#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/ops.h"

namespace stoa::cpu {
namespace {

/// Tokens [begin, end) of one document, `stride` apart: those that can be kept are [from, to).
template <class W>
void distil_document(W* d, const W* importance, std::int64_t stride, std::int64_t begin,
                     std::int64_t end, const KeyRule& rule, double weight) {
    const std::int64_t from = std::min(end, begin + rule.sinks),
                       to = std::max(from, end - rule.window);
    double mass = 0.0, sum = 0.0, most = -std::numeric_limits<double>::infinity();
    for (std::int64_t s = from; s < to; ++s) {
        mass += double{d[s * stride]};
        most = std::max(most, double{importance[s * stride]});
    }
    for (std::int64_t s = from; s < to; ++s)
        sum += std::exp(double{importance[s * stride]} - most);
    const bool learns = mass != 0.0 && weight != 0.0;  // NaN is seen by the step
    for (std::int64_t s = begin; s < end; ++s) {
        W& x = d[s * stride];
        x = learns && s >= from && s < to
                ? static_cast<W>(weight * (std::exp(double{importance[s * stride]} - most) / sum -
                                           double{x} / mass))
                : W{0};
    }
}

template <class W>
void distil(const ImportanceDistilArgs& a) {
    const std::int64_t batch = a.importance.shape[0], len = a.importance.shape[1],
                       heads = a.importance.shape[2];
    parallel_for(batch * heads, grain_for(4 * len), [&](std::int64_t i, std::int64_t last) {
        for (; i < last; ++i) {
            const std::int64_t row = i / heads * len, at = row * heads + i % heads;
            const std::int32_t *const begins = a.key_begin.as<std::int32_t>().data() + row,
                                      *const targets = a.targets.as<std::int32_t>().data() + row;
            for (std::int64_t begin = 0, end = 0; begin < len; begin = end) {
                std::int64_t count = 0;
                for (; end < len && begins[end] == begins[begin]; ++end)
                    count += targets[end] >= 0 ? 1 : 0;
                distil_document(a.d_importance.as<W>().data() + at,
                                a.importance.as<W>().data() + at, heads, begin, end, a.rule,
                                a.d_loss * static_cast<double>(count));
            }
        }
    });
}

}  // namespace

void importance_distil(const ImportanceDistilArgs& args) {
    args.importance.dtype == DType::fp64 ? distil<double>(args) : distil<float>(args);
}

}  // namespace stoa::cpu
