#pragma once
// The tree attention's definition in float64, and what its tests share.
#include <algorithm>
#include <limits>
#include <map>

#include "kernels/tree_attention.h"
#include "tests/conformance/conformance.h"
#include "tests/support/attention_cases.h"
#include "tests/support/execs.h"

namespace stoa::test::tree {

struct Case {
    std::int64_t batch, len, n_heads, n_kv_heads, dim, document;  // tokens per document
    TreeRule rule;
};

struct Inputs {
    Tensor q, k, v, gate, sink_logit, key_begin;
    TreeRule rule;
    double scale;
    Exec exec{};
};
inline Inputs make_inputs(const Case& s, DType dtype, const Exec& exec = {}) {
    const DType wide = wide_dtype(dtype);
    Inputs in{random_tensor({s.batch, s.len, s.n_heads, s.dim}, dtype, 1, 2.0),
              random_tensor({s.batch, s.len, s.n_kv_heads, s.dim}, dtype, 2, 2.0),
              random_tensor({s.batch, s.len, s.n_kv_heads, s.dim}, dtype, 3),
              random_gates({s.batch, s.len, s.n_kv_heads}, wide, 5),
              random_tensor({s.n_heads}, wide, 6),
              packed_documents(s.batch, s.len, s.document),
              s.rule,
              1.0 / std::sqrt(static_cast<double>(s.dim)),
              exec};
    return in;
}

inline Shape lse_shape(const Case& s) { return {s.batch, s.n_heads, s.len}; }
inline Shape selection_shape(const Case& s) {
    return {s.batch * s.n_kv_heads, s.len, tree_levels(s.rule, s.len), tree_slots(s.rule)};
}

inline void forward(TensorView out, TensorView lse, TensorView selection, const Inputs& in) {
    run(tree_attention_forward,
        {.out = out,
         .lse = lse,
         .selection = selection,
         .q = in.q,
         .k = in.k,
         .v = in.v,
         .key_begin = in.key_begin,
         .gate = in.gate,
         .sink_logit = in.sink_logit,
         .rule = in.rule,
         .scale = in.scale},
        in.exec);
}

/// The rule once more, over sets of tokens: a node is [begin, end) in tokens of the document.
struct Node {
    std::int64_t begin, end, level, index;
};
struct Reading {
    std::vector<std::int64_t> tokens;
    std::vector<Node> nodes;
    std::map<std::int64_t, std::vector<std::int64_t>> expanded;  // by level
};
struct Doc {  // one document, batch entry and kv head, in double
    std::vector<std::vector<double>> k, v;
    std::vector<double> gate;
};

inline double bound(const std::vector<double>& q, const Doc& doc, const Node& node, double scale) {
    double sum = 0.0;
    for (std::size_t c = 0; c < q.size(); ++c) {
        double low = std::numeric_limits<double>::infinity(), high = -low;
        for (std::int64_t s = node.begin; s < node.end; ++s) {
            low = std::min(low, doc.k[static_cast<std::size_t>(s)][c]);
            high = std::max(high, doc.k[static_cast<std::size_t>(s)][c]);
        }
        sum += std::max(q[c] * low, q[c] * high);
    }
    return scale * sum;
}

inline Reading read_of(std::int64_t t, const std::vector<std::vector<double>>& q, const Doc& doc,
                       const TreeRule& rule, double scale) {
    Reading reading;
    const std::int64_t far = std::max<std::int64_t>(0, t / rule.leaf - rule.window / rule.leaf);
    for (std::int64_t s = far * rule.leaf; s <= t; ++s)
        reading.tokens.push_back(s);
    std::int64_t width = 1, level = 0;
    for (; width * rule.fanout <= far; ++level)
        width *= rule.fanout;
    std::vector<Node> expanded;
    for (; far > 0 && level >= 0; --level, width /= rule.fanout) {
        std::vector<Node> candidates;
        const auto add = [&](std::int64_t j) {
            candidates.push_back({j * width * rule.leaf, (j + 1) * width * rule.leaf, level, j});
        };
        std::int64_t covered = 0;  // far leaves under complete nodes of the level above
        if (width * rule.fanout <= far) covered = far / (width * rule.fanout) * rule.fanout;
        for (const Node& n : expanded)
            for (std::int64_t c = 0; c < rule.fanout; ++c)
                add(n.index * rule.fanout + c);
        for (std::int64_t j = covered; (j + 1) * width <= far; ++j)
            add(j);
        std::vector<double> score(candidates.size());
        for (const auto& head : q) {
            std::vector<double> b;
            for (const Node& n : candidates)
                b.push_back(bound(head, doc, n, scale));
            double sum = 0.0, max = b.empty() ? 0.0 : *std::ranges::max_element(b);
            for (const double x : b)
                sum += std::exp(x - max);
            for (std::size_t i = 0; i < b.size(); ++i)
                score[i] += q.size() == 1 ? b[i] : std::exp(b[i] - max) / sum;
        }
        std::vector<std::size_t> order(candidates.size());
        for (std::size_t i = 0; i < order.size(); ++i)
            order[i] = i;
        std::ranges::sort(order, [&](std::size_t a, std::size_t b) {
            const bool fa = rule.sinks > 0 && candidates[a].index == 0,
                       fb = rule.sinks > 0 && candidates[b].index == 0;
            if (fa != fb) return fa;
            return score[a] > score[b] ||
                   (score[a] == score[b] && candidates[a].index > candidates[b].index);
        });
        const bool forced = rule.sinks > 0 && !candidates.empty() && candidates[0].index == 0;
        expanded.clear();
        for (std::size_t i = 0; i < order.size(); ++i) {
            const Node& n = candidates[order[i]];
            if (static_cast<std::int64_t>(i) < rule.beam + (forced ? 1 : 0))
                expanded.push_back(n);
            else
                reading.nodes.push_back(n);
        }
        std::ranges::sort(expanded, {}, &Node::index);
        for (const Node& n : expanded)
            reading.expanded[level].push_back(n.index);
    }
    for (const Node& n : expanded)
        for (std::int64_t s = n.begin; s < n.end; ++s)
            reading.tokens.push_back(s);
    return reading;
}

struct Reference {
    std::vector<double> out, lse;
    std::int64_t uncovered = 0;    // tokens that are not represented exactly once
    std::int64_t other_nodes = 0;  // levels at which `selection` expands others
};
inline Reference tree_attention_float64(const Case& s, const Inputs& in,
                                        ConstTensorView selection) {
    const auto q = to_double(in.q), k = to_double(in.k), v = to_double(in.v),
               gate = to_double(in.gate), sink = to_double(in.sink_logit);
    const auto begins = in.key_begin.as<std::int32_t>();
    const auto chosen = selection.as<std::int32_t>();
    const auto at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
    const auto row = [&](const std::vector<double>& x, std::int64_t i) {
        return std::vector<double>(x.begin() + i * s.dim, x.begin() + (i + 1) * s.dim);
    };
    const std::int64_t group = s.n_heads / s.n_kv_heads, levels = selection.shape[2],
                       slots = selection.shape[3];
    Reference r{std::vector<double>(q.size()), std::vector<double>(at(s.batch * s.n_heads * s.len)),
                0, 0};
    for (std::int64_t b = 0; b < s.batch; ++b)
        for (std::int64_t g = 0; g < s.n_kv_heads; ++g)
            for (std::int64_t token = 0; token < s.len; ++token) {
                const std::int64_t begin = begins[at(b * s.len + token)], t = token - begin;
                Doc doc;
                for (std::int64_t x = begin; x <= token; ++x) {
                    const std::int64_t i = (b * s.len + x) * s.n_kv_heads + g;
                    doc.k.push_back(row(k, i));
                    doc.v.push_back(row(v, i));
                    doc.gate.push_back(gate[at(i)]);
                }
                std::vector<std::vector<double>> heads;
                for (std::int64_t h = g * group; h < (g + 1) * group; ++h)
                    heads.push_back(row(q, (b * s.len + token) * s.n_heads + h));
                const Reading reading = read_of(t, heads, doc, s.rule, in.scale);
                std::vector<int> times(at(t + 1));
                for (const std::int64_t x : reading.tokens)
                    ++times[at(x)];
                for (const Node& n : reading.nodes)
                    for (std::int64_t x = n.begin; x < n.end; ++x)
                        ++times[at(x)];
                r.uncovered += std::ranges::count_if(times, [](int n) { return n != 1; });
                for (std::int64_t l = 0; l < levels; ++l) {
                    std::vector<std::int64_t> own;
                    const std::int64_t first =
                        (((b * s.n_kv_heads + g) * s.len + token) * levels + l) * slots;
                    for (std::int64_t i = 0; i < slots && chosen[at(first + i)] >= 0; ++i)
                        own.push_back(chosen[at(first + i)]);
                    const auto wanted = reading.expanded.find(l);
                    r.other_nodes +=
                        own != (wanted == reading.expanded.end() ? std::vector<std::int64_t>{}
                                                                 : wanted->second);
                }
                for (std::int64_t i = 0; i < group; ++i) {
                    const std::int64_t h = g * group + i;
                    const auto& qh = heads[at(i)];
                    const auto dot = [&](const std::vector<double>& x) {
                        double sum = 0.0;
                        for (std::size_t c = 0; c < qh.size(); ++c)
                            sum += qh[c] * x[c];
                        return sum * in.scale;
                    };
                    double sum = std::exp(sink[at(h)]);
                    std::vector<double> out(at(s.dim));
                    const auto take = [&](double z, const std::vector<double>& value) {
                        sum += std::exp(z);
                        for (std::size_t c = 0; c < out.size(); ++c)
                            out[c] += std::exp(z) * value[c];
                    };
                    for (const std::int64_t x : reading.tokens) {
                        const double ramp = std::min(
                            1.0, static_cast<double>(t - x) / static_cast<double>(s.rule.window));
                        take(dot(doc.k[at(x)]) + (x < s.rule.sinks ? 0.0 : ramp * doc.gate[at(x)]),
                             doc.v[at(x)]);
                    }
                    for (const Node& n : reading.nodes) {
                        double mass = 0.0;
                        std::vector<double> mean_k(at(s.dim)), mean_v(at(s.dim));
                        for (std::int64_t x = n.begin; x < n.end; ++x)
                            mass += std::exp(doc.gate[at(x)]);
                        for (std::int64_t x = n.begin; x < n.end; ++x)
                            for (std::size_t c = 0; c < out.size(); ++c) {
                                const double share = std::exp(doc.gate[at(x)]) / mass;
                                mean_k[c] += share * doc.k[at(x)][c];
                                mean_v[c] += share * doc.v[at(x)][c];
                            }
                        take(dot(mean_k) + std::log(mass), mean_v);
                    }
                    for (std::size_t c = 0; c < out.size(); ++c)
                        r.out[at(((b * s.len + token) * s.n_heads + h) * s.dim) + c] = out[c] / sum;
                    r.lse[at((b * s.n_heads + h) * s.len + token)] = std::log(sum);
                }
            }
    return r;
}

struct Outputs {
    PoisonedTensor out, lse, selection;
    std::vector<std::byte> bytes() const {
        std::vector<std::byte> all;
        for (const PoisonedTensor* t : {&out, &lse, &selection}) {
            const auto more = bytes_of(*t);
            all.insert(all.end(), more.begin(), more.end());
        }
        return all;
    }
};
inline Outputs run_forward(const Case& s, const Inputs& in) {
    const DType dtype = in.q.view.dtype;
    Outputs o{poisoned_tensor(in.q.view.shape, dtype),
              poisoned_tensor(lse_shape(s), wide_dtype(dtype)),
              poisoned_tensor(selection_shape(s), DType::int32)};
    forward(o.out, o.lse, o.selection, in);
    for (const PoisonedTensor* t : {&o.out, &o.lse, &o.selection})
        CHECK(t->guards_intact());
    return o;
}

}  // namespace stoa::test::tree
