#include "kernels/cuda/key_tree.h"

namespace stoa::cuda {
namespace {

/// The mean of weighted rows as the CPU sums them: weight(i), value(i) and the sum of weights.
template <class W, class Weight, class Value>
STOA_DEVICE W mean_of(std::int64_t count, W mass, const Weight& weight, const Value& value) {
    W sum = 0;
    for (std::int64_t i = 0; i < count; ++i)
        sum = fused(weight(i), value(i), sum);
    return sum / mass;
}

/// `count` places of a level from `first` on, of each pair.
struct PlaceRange {
    std::int64_t first, count;
};

/// A warp a leaf, a channel a lane.
template <class T, class W = Wide<T>>
STOA_KERNEL void leaf_kernel(TreeInputs<T> in, PlaceRange range) {
    const TreeShape& n = in.n;
    const std::int64_t at = global_thread() / kWarp;
    if (at >= n.pairs() * range.count) return;
    const std::int64_t pair = at / range.count, place = range.first + at % range.count,
                       batch = pair / n.n_kv_heads, head = pair % n.n_kv_heads;
    const std::int64_t first = node_begin(in, batch, 0, place);
    if (first < 0) return;
    const std::int64_t token = first - in.begin_of(batch, first);
    const std::int64_t node = pair * n.per_pair + place;
    const auto sigma = [&](std::int64_t i) {
        return in.sigma_of(batch, first + i, token + i, head);
    };
    W mass = 0;
    for (std::int64_t i = 0; i < n.rule.leaf; ++i)
        mass += sigma(i);
    const int lane = thread_index() % kWarp;
    for (std::int64_t c = lane; c < n.dim; c += kWarp) {
        const auto key = [&](std::int64_t i) {
            return W{widen(in.k[in.key_at(batch, first + i, head) * n.dim + c])};
        };
        W low = key(0), high = key(0);
        for (std::int64_t i = 1; i < n.rule.leaf; ++i) {
            low = key(i) < low ? key(i) : low;
            high = key(i) > high ? key(i) : high;
        }
        in.nodes.low[node * n.dim + c] = low;
        in.nodes.high[node * n.dim + c] = high;
        in.nodes.mean_k[node * n.dim + c] = mean_of(n.rule.leaf, mass, sigma, key);
        in.nodes.mean_v[node * n.dim + c] = mean_of(n.rule.leaf, mass, sigma, [&](std::int64_t i) {
            return W{widen(in.v[in.key_at(batch, first + i, head) * n.dim + c])};
        });
    }
    if (lane != 0) return;
    in.nodes.mass[node] = mass;
    in.nodes.log_mass[node] = std::log(mass);
}

/// A warp a node of a level whose children are there.
template <class T, class W = Wide<T>>
STOA_KERNEL void parent_kernel(TreeInputs<T> in, std::int64_t level, PlaceRange range) {
    const TreeShape& n = in.n;
    const std::int64_t at = global_thread() / kWarp;
    if (at >= n.pairs() * range.count) return;
    const std::int64_t pair = at / range.count, batch = pair / n.n_kv_heads;
    const std::int64_t first = node_begin(in, batch, level, range.first + at % range.count);
    if (first < 0) return;
    const std::int64_t begin = in.begin_of(batch, first), f = n.rule.fanout;
    const std::int64_t own = (first - begin) / n.span[level];  // of its document
    const std::int64_t node = n.place(pair, level, begin, own),
                       child = n.place(pair, level - 1, begin, own * f);
    const auto weight = [&](std::int64_t i) { return in.nodes.mass[child + i]; };
    W mass = 0;
    for (std::int64_t i = 0; i < f; ++i)
        mass += weight(i);
    const int lane = thread_index() % kWarp;
    for (std::int64_t c = lane; c < n.dim; c += kWarp) {
        const auto of = [&](const W* rows) {
            return [=](std::int64_t i) { return rows[(child + i) * n.dim + c]; };
        };
        const auto lows = of(in.nodes.low), highs = of(in.nodes.high);
        W low = lows(0), high = highs(0);
        for (std::int64_t i = 0; i < f; ++i) {
            low = lows(i) < low ? lows(i) : low;
            high = highs(i) > high ? highs(i) : high;
        }
        in.nodes.low[node * n.dim + c] = low;
        in.nodes.high[node * n.dim + c] = high;
        in.nodes.mean_k[node * n.dim + c] = mean_of(f, mass, weight, of(in.nodes.mean_k));
        in.nodes.mean_v[node * n.dim + c] = mean_of(f, mass, weight, of(in.nodes.mean_v));
    }
    if (lane != 0) return;
    in.nodes.mass[node] = mass;
    in.nodes.log_mass[node] = std::log(mass);
}

template <class T>
void build_level(const TreeInputs<T>& in, std::int64_t level, const PlaceRange& range,
                 Stream stream) {
    const Launch over{.name = "tree_attention: nodes",
                      .blocks = blocks_for(in.n.pairs() * range.count, kThreads / kWarp),
                      .threads = kThreads,
                      .stream = stream};
    if (level == 0)
        launch(over, leaf_kernel<T>, in, range);
    else
        launch(over, parent_kernel<T>, in, level, range);
}

}  // namespace

template <class T>
void build_tree(const TreeInputs<T>& in, Stream stream) {
    for (std::int64_t l = 0; l < in.n.levels; ++l)
        build_level(in, l, {0, in.n.places(l)}, stream);
}
template void build_tree(const TreeInputs<float>&, Stream);
template void build_tree(const TreeInputs<double>&, Stream);
template void build_tree(const TreeInputs<bf16>&, Stream);
template void build_tree(const TreeInputs<fp16>&, Stream);

template <class T>
void complete_nodes(const TreeInputs<T>& in, std::int64_t from, std::int64_t to, Stream stream) {
    for (std::int64_t l = 0; l < in.n.levels; ++l) {
        const std::int64_t first = from / in.n.span[l];
        build_level(in, l, {first, to / in.n.span[l] - first}, stream);
    }
}
template void complete_nodes(const TreeInputs<float>&, std::int64_t, std::int64_t, Stream);
template void complete_nodes(const TreeInputs<double>&, std::int64_t, std::int64_t, Stream);
template void complete_nodes(const TreeInputs<bf16>&, std::int64_t, std::int64_t, Stream);
template void complete_nodes(const TreeInputs<fp16>&, std::int64_t, std::int64_t, Stream);

}  // namespace stoa::cuda
