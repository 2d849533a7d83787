#pragma once
// The definitions of selection by expiry times and of attention over what it selects, in float64,
// and what their tests share.
#include <algorithm>
#include <functional>
#include <limits>
#include <set>

#include "kernels/importance_attention.h"
#include "tests/conformance/conformance.h"
#include "tests/support/attention_cases.h"
#include "tests/support/execs.h"

namespace stoa::test::importance {

struct Case {
    std::int64_t batch, len, n_heads, n_kv_heads, dim, document;  // tokens per document
    KeyRule rule;
};

struct Inputs {
    Tensor q, k, v, importance, gate, sink_logit, key_begin, expiry;
    KeyRule rule;
    double scale;
    Exec exec{};
};

inline void select(Inputs& in) {
    run(select_keys,
        {.expiry = in.expiry,
         .importance = in.importance,
         .key_begin = in.key_begin,
         .rule = in.rule},
        in.exec);
}

inline Inputs make_inputs(const Case& s, DType dtype, const Exec& exec = {}) {
    const DType wide = wide_dtype(dtype);
    Inputs in{random_tensor({s.batch, s.len, s.n_heads, s.dim}, dtype, 1, 2.0),
              random_tensor({s.batch, s.len, s.n_kv_heads, s.dim}, dtype, 2, 2.0),
              random_tensor({s.batch, s.len, s.n_kv_heads, s.dim}, dtype, 3),
              random_tensor({s.batch, s.len, s.n_kv_heads}, wide, 4),
              random_tensor({s.batch, s.len, s.n_kv_heads}, wide, 5, 3.0),
              random_tensor({s.n_heads}, wide, 6),
              packed_documents(s.batch, s.len, s.document),
              Tensor({s.batch, s.n_kv_heads, s.len}, DType::int32),
              s.rule,
              1.0 / std::sqrt(static_cast<double>(s.dim)),
              exec};
    select(in);
    return in;
}

/// What query t of a document that begins at `begin` sees, straight from the rule.
inline std::set<std::int64_t> seen_by(std::int64_t t, std::int64_t begin, const KeyRule& rule,
                                      const std::function<double(std::int64_t)>& importance) {
    std::set<std::int64_t> seen;
    std::vector<std::int64_t> candidates;
    for (std::int64_t s = begin; s <= t; ++s) {
        if (s - begin < rule.sinks || t - s < rule.window)
            seen.insert(s);
        else
            candidates.push_back(s);
    }
    const auto value = [&](std::int64_t s) {
        const double u = importance(s);
        return std::isnan(u) ? -std::numeric_limits<double>::infinity() : u;
    };
    std::ranges::stable_sort(candidates,
                             [&](std::int64_t a, std::int64_t b) { return value(a) > value(b); });
    for (std::int64_t i = 0; i < std::min<std::int64_t>(rule.keep, std::ssize(candidates)); ++i)
        seen.insert(candidates[static_cast<std::size_t>(i)]);
    return seen;
}

struct Reference {
    std::vector<double> out, lse;
};
inline Reference importance_attention_float64(const Case& s, const Inputs& in) {
    const auto q = to_double(in.q), k = to_double(in.k), v = to_double(in.v),
               u = to_double(in.importance), gate = to_double(in.gate),
               sink = to_double(in.sink_logit);
    const auto begins = in.key_begin.as<std::int32_t>();
    Reference r{std::vector<double>(q.size()),
                std::vector<double>(static_cast<std::size_t>(s.batch * s.n_heads * s.len))};
    for (std::int64_t b = 0; b < s.batch; ++b)
        for (std::int64_t h = 0; h < s.n_heads; ++h)
            for (std::int64_t t = 0; t < s.len; ++t) {
                const std::int64_t g = h / (s.n_heads / s.n_kv_heads);
                const std::int64_t begin = begins[static_cast<std::size_t>(b * s.len + t)];
                const auto of_key = [&](std::int64_t key) {
                    return static_cast<std::size_t>((b * s.len + key) * s.n_kv_heads + g);
                };
                const auto row =
                    static_cast<std::size_t>(((b * s.len + t) * s.n_heads + h) * s.dim);
                double sum = std::exp(sink[static_cast<std::size_t>(h)]);
                for (const std::int64_t key :
                     seen_by(t, begin, s.rule, [&](std::int64_t x) { return u[of_key(x)]; })) {
                    const auto at = of_key(key) * static_cast<std::size_t>(s.dim);
                    double z = 0.0;
                    for (std::size_t c = 0; c < static_cast<std::size_t>(s.dim); ++c)
                        z += q[row + c] * k[at + c];
                    z *= in.scale;
                    if (key - begin >= s.rule.sinks)
                        z += std::min(1.0, static_cast<double>(t - key) /
                                               static_cast<double>(s.rule.window)) *
                             gate[of_key(key)];
                    sum += std::exp(z);
                    for (std::size_t c = 0; c < static_cast<std::size_t>(s.dim); ++c)
                        r.out[row + c] += std::exp(z) * v[at + c];
                }
                for (std::size_t c = 0; c < static_cast<std::size_t>(s.dim); ++c)
                    r.out[row + c] /= sum;
                r.lse[static_cast<std::size_t>((b * s.n_heads + h) * s.len + t)] = std::log(sum);
            }
    return r;
}

inline void forward(TensorView out, TensorView lse, const Inputs& in) {
    run(importance_attention_forward,
        {.out = out,
         .lse = lse,
         .q = in.q,
         .k = in.k,
         .v = in.v,
         .expiry = in.expiry,
         .key_begin = in.key_begin,
         .gate = in.gate,
         .sink_logit = in.sink_logit,
         .rule = in.rule,
         .scale = in.scale},
        in.exec);
}

inline Shape lse_shape(const Case& s) { return {s.batch, s.n_heads, s.len}; }

struct Gradients {
    PoisonedTensor d_q, d_k, d_v, d_gate, d_sink;
    std::vector<std::byte> bytes() const {
        std::vector<std::byte> all;
        for (const PoisonedTensor* t : {&d_q, &d_k, &d_v, &d_gate, &d_sink}) {
            const auto more = bytes_of(*t);
            all.insert(all.end(), more.begin(), more.end());
        }
        return all;
    }
    /// What the queries give to each head's sink_logit.
    std::vector<double> d_sink_logit() const {
        std::vector<double> sums(static_cast<std::size_t>(d_sink.view.shape[2]));
        const auto values = to_double(d_sink);
        for (std::size_t i = 0; i < values.size(); ++i)
            sums[i % sums.size()] += values[i];
        return sums;
    }
};
inline Gradients backward(const Case& s, const Inputs& in, const Tensor& d_out) {
    const DType dtype = in.q.view.dtype, wide = wide_dtype(dtype);
    const Tensor out(in.q.view.shape, dtype), lse(lse_shape(s), wide);
    forward(out, lse, in);
    Gradients g{poisoned_tensor(in.q.view.shape, dtype), poisoned_tensor(in.k.view.shape, dtype),
                poisoned_tensor(in.v.view.shape, dtype), poisoned_tensor(in.gate.view.shape, wide),
                poisoned_tensor({s.batch, s.len, s.n_heads}, wide)};
    run(importance_attention_backward,
        {.d_q = g.d_q,
         .d_k = g.d_k,
         .d_v = g.d_v,
         .d_gate = g.d_gate,
         .d_sink = g.d_sink,
         .d_out = d_out,
         .out = out,
         .lse = lse,
         .q = in.q,
         .k = in.k,
         .v = in.v,
         .expiry = in.expiry,
         .key_begin = in.key_begin,
         .gate = in.gate,
         .sink_logit = in.sink_logit,
         .rule = in.rule,
         .scale = in.scale},
        in.exec);
    for (const PoisonedTensor* t : {&g.d_q, &g.d_k, &g.d_v, &g.d_gate, &g.d_sink})
        CHECK(t->guards_intact());
    return g;
}

inline const std::vector<Case> kCases = {
    {1, 1, 1, 1, 2, 100, {4, 0, 2}},      {2, 7, 4, 2, 8, 3, {2, 1, 1}},
    {2, 150, 2, 1, 32, 1000, {20, 4, 5}}, {1, 200, 3, 3, 18, 90, {16, 0, 0}},
    {1, 130, 2, 2, 16, 1000, {8, 0, 7}},  {1, 100, 2, 1, 4, 1000, {300, 4, 8}},
    {1, 90, 1, 1, 4, 1000, {5, 3, 500}},  {1, 2300, 2, 1, 4, 1500, {70, 4, 9}},
    {1, 140, 2, 1, 8, 1000, {1, 0, 3}}};

}  // namespace stoa::test::importance
