#pragma once
// Attention over one head of long random sequences: dense, by importance and by a tree.
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "kernels/attention.h"
#include "kernels/core/buffer.h"
#include "kernels/core/philox.h"
#include "kernels/importance_attention.h"
#include "kernels/tree_attention.h"

namespace stoa::test {

constexpr std::int64_t kHeadDim = 64;
constexpr double kScale = 0.125;

/// Seconds of this process on all its threads, and on the clock.
struct Seconds {
    double cpu = 0.0, wall = 0.0;
    Seconds operator+(const Seconds& o) const { return {cpu + o.cpu, wall + o.wall}; }
};
template <class Fn>
Seconds seconds_of(const Fn& fn) {
    const auto cpu = [] {
        timespec t{};
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
        return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
    };
    const double begin = cpu();
    const auto clock = std::chrono::steady_clock::now();
    fn();
    return {cpu() - begin,
            std::chrono::duration<double>(std::chrono::steady_clock::now() - clock).count()};
}
/// The least of `repeats` runs, each time by itself.
template <class Fn>
Seconds best_of(int repeats, const Fn& fn) {
    Seconds best{1e30, 1e30};
    for (int i = 0; i < repeats; ++i) {
        const Seconds s = seconds_of(fn);
        best = {std::min(best.cpu, s.cpu), std::min(best.wall, s.wall)};
    }
    return best;
}

inline Tensor uniform(Shape shape, std::uint64_t seed, float scale = 1.0f) {
    Tensor t(shape, DType::fp32);
    Draws draws(mix_key(seed, 0xa77e), 0);
    for (float& x : t.as<float>())
        x = scale * (static_cast<float>(draws.next_u32()) * 0x1p-31f - 1.0f);
    return t;
}

/// Heads of their own keys, one document of `len` tokens, fp32.
struct AttentionRun {
    std::int64_t len, heads;
    KeyRule keys{.window = 512, .sinks = 4, .keep = 32};
    TreeRule tree{.window = 512, .leaf = 64, .fanout = 8, .beam = 4, .sinks = 4};
    Tensor q, k, v, d_out, out, lse, d_q, d_k, d_v, d_gate, d_sink, importance, gate, sink_logit,
        key_begin, key_end, expiry, selection;

    explicit AttentionRun(std::int64_t n, std::int64_t h = 1) : len(n), heads(h) {
        const Shape rows{1, n, h, kHeadDim}, column{1, n, h};
        q = uniform(rows, 1, 2.0f);
        k = uniform(rows, 2, 2.0f);
        v = uniform(rows, 3);
        d_out = uniform(rows, 4);
        importance = uniform(column, 5);
        gate = uniform(column, 6);
        for (float& x : gate.as<float>())
            x -= 1.0f;  // a logarithm of a sigmoid
        sink_logit = uniform({h}, 7);
        for (Tensor* t : {&out, &d_q, &d_k, &d_v})
            *t = Tensor(rows, DType::fp32);
        for (Tensor* t : {&lse, &d_gate, &d_sink})
            *t = Tensor(column, DType::fp32);
        lse.view = lse.view.reshaped({1, h, n});
        key_begin = Tensor({n}, DType::int32);
        key_end = Tensor({n}, DType::int32);
        for (std::int64_t t = 0; t < n; ++t)
            key_end.as<std::int32_t>()[static_cast<std::size_t>(t)] =
                static_cast<std::int32_t>(t + 1);
        expiry = Tensor({1, h, n}, DType::int32);
        selection = Tensor({h, n, tree_levels(tree, n), tree_slots(tree)}, DType::int32);
    }

    void dense_forward() const {
        attention_forward({.out = out,
                           .lse = lse,
                           .q = q,
                           .k = k,
                           .v = v,
                           .key_begin = key_begin,
                           .key_end = key_end,
                           .scale = kScale},
                          {});
    }
    void dense_backward() const {
        attention_backward({.d_q = d_q,
                            .d_k = d_k,
                            .d_v = d_v,
                            .d_out = d_out,
                            .out = out,
                            .lse = lse,
                            .q = q,
                            .k = k,
                            .v = v,
                            .key_begin = key_begin,
                            .key_end = key_end,
                            .scale = kScale},
                           {});
    }
    double pairs() const {
        const auto n = static_cast<double>(len);
        return static_cast<double>(heads) * 0.5 * n * (n + 1.0);
    }
    /// Floating-point operations over the pairs that a causal query sees: two products, and five.
    double forward_flop() const { return 4.0 * kHeadDim * pairs(); }
    double backward_flop() const { return 10.0 * kHeadDim * pairs(); }

    /// With the selection.
    void importance_forward() const {
        select_keys(
            {.expiry = expiry, .importance = importance, .key_begin = key_begin, .rule = keys}, {});
        importance_attention_forward({.out = out,
                                      .lse = lse,
                                      .q = q,
                                      .k = k,
                                      .v = v,
                                      .expiry = expiry,
                                      .key_begin = key_begin,
                                      .gate = gate,
                                      .sink_logit = sink_logit,
                                      .rule = keys,
                                      .scale = kScale},
                                     {});
    }
    void importance_backward() const {
        importance_attention_backward({.d_q = d_q,
                                       .d_k = d_k,
                                       .d_v = d_v,
                                       .d_gate = d_gate,
                                       .d_sink = d_sink,
                                       .d_out = d_out,
                                       .out = out,
                                       .lse = lse,
                                       .q = q,
                                       .k = k,
                                       .v = v,
                                       .expiry = expiry,
                                       .key_begin = key_begin,
                                       .gate = gate,
                                       .sink_logit = sink_logit,
                                       .rule = keys,
                                       .scale = kScale},
                                      {});
    }
    void tree_forward() const {
        tree_attention_forward({.out = out,
                                .lse = lse,
                                .selection = selection,
                                .q = q,
                                .k = k,
                                .v = v,
                                .key_begin = key_begin,
                                .gate = gate,
                                .sink_logit = sink_logit,
                                .rule = tree,
                                .scale = kScale},
                               {});
    }
    void tree_backward() const {
        tree_attention_backward({.d_q = d_q,
                                 .d_k = d_k,
                                 .d_v = d_v,
                                 .d_gate = d_gate,
                                 .d_sink = d_sink,
                                 .d_out = d_out,
                                 .out = out,
                                 .lse = lse,
                                 .selection = selection,
                                 .q = q,
                                 .k = k,
                                 .v = v,
                                 .key_begin = key_begin,
                                 .gate = gate,
                                 .sink_logit = sink_logit,
                                 .rule = tree,
                                 .scale = kScale},
                                {});
    }
};

}  // namespace stoa::test
