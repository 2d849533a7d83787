// A warp a segment of tokens of a kv head: it does the documents that begin there, 32 tokens at a
// time. Sums go over ascending tokens, as on the CPU: each lane adds all 32 of them.
#include <limits>

#include "kernels/cuda/lane_groups.h"
#include "kernels/cuda/ops.h"

namespace stoa::cuda {
namespace {

constexpr std::int64_t kSegment = 1024;

/// Rows of one kv head, `stride` apart, and the double buffer in which its lanes tell each other.
template <class W>
struct Head {
    W* d;
    const W* importance;
    const std::int32_t* targets;
    std::int64_t stride;
    Shared<double> room;  // (2, 32)
    int set;

    /// The sum of fn(s) over [from, to), in order.
    template <class Fn>
    STOA_DEVICE double sum(std::int64_t from, std::int64_t to, const Fn& fn) {
        double total = 0.0;
        for (std::int64_t s = from; s < to; s += kWarp) {
            const std::int64_t own = s + thread_index(), n = to - s < kWarp ? to - s : kWarp;
            set = kWarp - set;
            if (own < to) room.write(set + thread_index(), fn(own));
            sync_block();
            for (int i = 0; i < n; ++i)
                total += room.read(set + i);
        }
        return total;
    }
    /// Tokens [begin, end) of one document: those that can be kept are [from, to).
    STOA_DEVICE void distil(std::int64_t begin, std::int64_t end, std::int64_t window,
                            std::int64_t sinks, double d_loss) {
        const std::int64_t from = begin + sinks < end ? begin + sinks : end,
                           to = end - window > from ? end - window : from;
        const double targeted =
            sum(begin, end, [&](std::int64_t s) { return targets[s] >= 0 ? 1.0 : 0.0; });
        const double mass =
            sum(from, to, [&](std::int64_t s) { return static_cast<double>(d[s * stride]); });
        double most = -std::numeric_limits<double>::infinity();
        for (std::int64_t s = from + thread_index(); s < to; s += kWarp) {
            const auto u = static_cast<double>(importance[s * stride]);
            most = most < u ? u : most;
        }
        for (int half = kWarp / 2; half > 0; half /= 2) {
            const double other = shuffle_down(most, half);
            most = most < other ? other : most;
        }
        most = shuffle(most, 0);
        const auto weight_of = [&](std::int64_t s) {
            return std::exp(static_cast<double>(importance[s * stride]) - most);
        };
        const double all = sum(from, to, weight_of), weight = d_loss * targeted;
        const bool learns = mass != 0.0 && weight != 0.0;  // NaN is seen by the step
        for (std::int64_t s = begin + thread_index(); s < end; s += kWarp) {
            W& x = d[s * stride];
            x = learns && s >= from && s < to
                    ? static_cast<W>(weight * (weight_of(s) / all - static_cast<double>(x) / mass))
                    : W{0};
        }
    }
};

template <class W>
STOA_KERNEL void distil_kernel(W* d, const W* importance, const std::int32_t* key_begin,
                               const std::int32_t* targets, std::int64_t len, std::int64_t heads,
                               std::int64_t segments, std::int64_t window, std::int64_t sinks,
                               double d_loss) {
    SharedMemory memory;
    const std::int64_t row = block_index() / segments, batch = row / heads;
    const std::int64_t from = block_index() % segments * kSegment,
                       to = from + kSegment < len ? from + kSegment : len;
    const std::int64_t at = batch * len * heads + row % heads;
    const std::int32_t* const begins = key_begin + batch * len;
    Head<W> head{
        d + at, importance + at, targets + batch * len, heads, memory.array<double>(2 * kWarp), 0};
    for (std::int64_t chunk = from; chunk < to; chunk += kWarp) {
        const std::int64_t t = chunk + thread_index();
        for (std::uint32_t left = warp_ballot(t < to && begins[t] == t); left != 0;
             left &= left - 1) {
            const std::int64_t begin = chunk + lowest_bit(left);
            head.distil(begin, document_end(begins, begin, len), window, sinks, d_loss);
        }
    }
}

template <class W>
void distil(const ImportanceDistilArgs& a, Stream stream) {
    const std::int64_t batch = a.importance.shape[0], len = a.importance.shape[1],
                       heads = a.importance.shape[2], segments = (len + kSegment - 1) / kSegment;
    launch({.name = "importance_distil",
            .blocks = batch * heads * segments,
            .threads = kWarp,
            .stream = stream,
            .shared_bytes = 2 * kWarp * 8},
           distil_kernel<W>, a.d_importance.as<W>().data(), a.importance.as<W>().data(),
           a.key_begin.as<std::int32_t>().data(), a.targets.as<std::int32_t>().data(), len, heads,
           segments, a.rule.window, a.rule.sinks, a.d_loss);
}

}  // namespace

void importance_distil(const ImportanceDistilArgs& args, Stream stream) {
    args.importance.dtype == DType::fp64 ? distil<double>(args, stream)
                                         : distil<float>(args, stream);
}

}  // namespace stoa::cuda
