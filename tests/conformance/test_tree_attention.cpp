// The key tree: what a query reads covers its past once, the selection is the one that the rule
// says, and attention over it meets float64.
#include <algorithm>
#include <limits>
#include <map>

#include "kernels/core/thread_pool.h"
#include "kernels/importance_attention.h"
#include "kernels/tree_attention.h"
#include "tests/conformance/conformance.h"

using namespace stoa;
using namespace stoa::test;

namespace {

struct Case {
    std::int64_t batch, len, n_heads, n_kv_heads, dim, document;  // tokens per document
    TreeRule rule;
};

Tensor make_key_begin(const Case& s) {
    std::vector<std::int32_t> begin;
    for (std::int64_t b = 0; b < s.batch; ++b)
        for (std::int64_t t = 0; t < s.len; ++t)
            begin.push_back(static_cast<std::int32_t>(
                std::max<std::int64_t>(0, (t + b) / s.document * s.document - b)));
    return int_tensor(begin);
}

struct Inputs {
    Tensor q, k, v, gate, sink_logit, key_begin;
    TreeRule rule;
    double scale;
};
Inputs make_inputs(const Case& s, DType dtype) {
    const DType wide = wide_dtype(dtype);
    Inputs in{random_tensor({s.batch, s.len, s.n_heads, s.dim}, dtype, 1, 2.0),
              random_tensor({s.batch, s.len, s.n_kv_heads, s.dim}, dtype, 2, 2.0),
              random_tensor({s.batch, s.len, s.n_kv_heads, s.dim}, dtype, 3),
              random_tensor({s.batch, s.len, s.n_kv_heads}, wide, 5),
              random_tensor({s.n_heads}, wide, 6),
              make_key_begin(s),
              s.rule,
              1.0 / std::sqrt(static_cast<double>(s.dim))};
    const auto close = [&](auto gates) {  // log sigmoid is never positive
        for (auto& g : gates)
            g -= 1;
    };
    if (wide == DType::fp64)
        close(in.gate.as<double>());
    else
        close(in.gate.as<float>());
    return in;
}

Shape lse_shape(const Case& s) { return {s.batch, s.n_heads, s.len}; }
Shape selection_shape(const Case& s) {
    return {s.batch * s.n_kv_heads, s.len, tree_levels(s.rule, s.len), tree_slots(s.rule)};
}

void forward(TensorView out, TensorView lse, TensorView selection, const Inputs& in) {
    tree_attention_forward({.out = out,
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
                           {});
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

double bound(const std::vector<double>& q, const Doc& doc, const Node& node, double scale) {
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

Reading read_of(std::int64_t t, const std::vector<std::vector<double>>& q, const Doc& doc,
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
Reference tree_attention_float64(const Case& s, const Inputs& in, ConstTensorView selection) {
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
};
Gradients backward(const Case& s, const Inputs& in, const Tensor& d_out) {
    const DType dtype = in.q.view.dtype, wide = wide_dtype(dtype);
    const Tensor out(in.q.view.shape, dtype), lse(lse_shape(s), wide),
        selection(selection_shape(s), DType::int32);
    forward(out, lse, selection, in);
    Gradients g{poisoned_tensor(in.q.view.shape, dtype), poisoned_tensor(in.k.view.shape, dtype),
                poisoned_tensor(in.v.view.shape, dtype), poisoned_tensor(in.gate.view.shape, wide),
                poisoned_tensor({s.batch, s.len, s.n_heads}, wide)};
    tree_attention_backward({.d_q = g.d_q,
                             .d_k = g.d_k,
                             .d_v = g.d_v,
                             .d_gate = g.d_gate,
                             .d_sink = g.d_sink,
                             .d_out = d_out,
                             .out = out,
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
                            {});
    for (const PoisonedTensor* t : {&g.d_q, &g.d_k, &g.d_v, &g.d_gate, &g.d_sink})
        CHECK(t->guards_intact());
    return g;
}

const std::vector<Case> kCases = {
    {1, 1, 1, 1, 2, 100, {4, 2, 2, 1, 0}},      {2, 30, 4, 2, 8, 17, {4, 2, 2, 1, 1}},
    {1, 200, 2, 1, 16, 1000, {16, 4, 3, 2, 4}}, {1, 230, 1, 1, 18, 1000, {8, 8, 2, 3, 0}},
    {2, 130, 4, 2, 8, 90, {8, 1, 4, 2, 1}},     {1, 100, 2, 2, 4, 1000, {200, 4, 2, 2, 0}}};

}  // namespace

TEST_CASE("a query's reading covers its past once, and is what the rule selects") {
    const bool alike = GENERATE(false, true);  // keys: only the rule for equals decides
    for (const Case& s : kCases) {
        const Inputs in = make_inputs(s, DType::fp64);
        if (alike) std::ranges::fill(in.k.as<double>(), 0.5);
        const Tensor out(in.q.view.shape, DType::fp64), lse(lse_shape(s), DType::fp64),
            selection(selection_shape(s), DType::int32);
        forward(out, lse, selection, in);
        const Reference r = tree_attention_float64(s, in, selection);
        CAPTURE(alike, s.len, s.rule.window, s.rule.leaf, s.rule.fanout, s.rule.beam);
        CHECK(r.uncovered == 0);
        CHECK(r.other_nodes == 0);
        CHECK(relative_error(to_double(out), r.out) < 1e-12);
        CHECK(relative_error(to_double(lse), r.lse) < 1e-12);
    }
}

TEST_CASE("tree_attention_forward meets float64") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16);
    std::size_t compared = 0;
    for (const Case& s : kCases) {
        const Inputs in = make_inputs(s, dtype);
        const PoisonedTensor out = poisoned_tensor(in.q.view.shape, dtype),
                             lse = poisoned_tensor(lse_shape(s), wide_dtype(dtype)),
                             selection = poisoned_tensor(selection_shape(s), DType::int32);
        forward(out, lse, selection, in);
        const Reference r = tree_attention_float64(s, in, selection);
        CAPTURE(dtype_name(dtype), s.len, s.dim, s.rule.window);
        if (r.other_nodes > 0) continue;  // two bounds closer than fp32 tells
        ++compared;
        CHECK(relative_error(to_double(out), r.out) < tolerance(dtype));
        CHECK(relative_error(to_double(lse), r.lse) < tolerance(wide_dtype(dtype)));
        for (const PoisonedTensor* t : {&out, &lse, &selection})
            CHECK(t->guards_intact());
    }
    CHECK(compared + 1 >= kCases.size());
}

TEST_CASE("tree_attention_backward meets central differences of the forward in fp64") {
    const Case s = GENERATE(Case{2, 26, 4, 2, 4, 17, {4, 2, 2, 1, 1}},
                            Case{1, 75, 2, 1, 2, 1000, {8, 2, 3, 1, 2}},
                            Case{1, 66, 2, 2, 2, 1000, {4, 4, 2, 2, 0}});
    const Inputs in = make_inputs(s, DType::fp64);
    const Tensor d_out = random_tensor(in.q.view.shape, DType::fp64, 9);
    const Gradients g = backward(s, in, d_out);
    const Tensor out(in.q.view.shape, DType::fp64), lse(lse_shape(s), DType::fp64),
        selection(selection_shape(s), DType::int32);
    const auto loss = [&] {
        forward(out, lse, selection, in);
        return weighted_sum(out, d_out);
    };
    const auto error = [&](const PoisonedTensor& gradient, const Tensor& of) {
        return relative_error(to_double(gradient), central_differences(of, loss));
    };
    CAPTURE(s.batch, s.len);
    CHECK(error(g.d_q, in.q) < kDifferenceTolerance);
    CHECK(error(g.d_k, in.k) < kDifferenceTolerance);
    CHECK(error(g.d_v, in.v) < kDifferenceTolerance);
    CHECK(error(g.d_gate, in.gate) < kDifferenceTolerance);
    std::vector<double> d_sink_logit(static_cast<std::size_t>(s.n_heads));
    const auto d_sink = to_double(g.d_sink);
    for (std::size_t i = 0; i < d_sink.size(); ++i)
        d_sink_logit[i % d_sink_logit.size()] += d_sink[i];
    CHECK(relative_error(d_sink_logit, central_differences(in.sink_logit, loss)) <
          kDifferenceTolerance);
    // What no selection has read moves all the same: through the summaries.
    const auto d_gate = to_double(g.d_gate);
    CHECK(std::ranges::count(d_gate, 0.0) <= std::ssize(d_gate) / 4);
}

TEST_CASE("a beam that holds everything is dense attention with the same gates") {
    const Case s{2, 140, 4, 2, 16, 90, {12, 4, 3, 1000, 2}};
    const Inputs in = make_inputs(s, DType::fp64);
    const Tensor out(in.q.view.shape, DType::fp64), lse(lse_shape(s), DType::fp64),
        dense(in.q.view.shape, DType::fp64), dense_lse(lse_shape(s), DType::fp64),
        selection(selection_shape(s), DType::int32),
        expiry({s.batch, s.n_kv_heads, s.len}, DType::int32),
        importance({s.batch, s.len, s.n_kv_heads}, DType::fp64);
    forward(out, lse, selection, in);
    const KeyRule all{12, 2, 1000};
    select_keys(
        {.expiry = expiry, .importance = importance, .key_begin = in.key_begin, .rule = all}, {});
    importance_attention_forward({.out = dense,
                                  .lse = dense_lse,
                                  .q = in.q,
                                  .k = in.k,
                                  .v = in.v,
                                  .expiry = expiry,
                                  .key_begin = in.key_begin,
                                  .gate = in.gate,
                                  .sink_logit = in.sink_logit,
                                  .rule = all,
                                  .scale = in.scale},
                                 {});
    CHECK(relative_error(to_double(out), to_double(dense)) < 1e-12);
    CHECK(relative_error(to_double(lse), to_double(dense_lse)) < 1e-12);
}

TEST_CASE("tree_attention has the same bits on any instruction set, thread count and length") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16);
    const Case s{2, 300, 4, 2, 24, 270, {32, 8, 3, 2, 4}};
    const Inputs in = make_inputs(s, dtype);
    const Tensor d_out = random_tensor(in.q.view.shape, dtype, 9);
    check_same_bits([&] { return backward(s, in, d_out).bytes(); });
    const auto one = backward(s, in, d_out).bytes();
    for (const int threads : {2, 3}) {
        set_cpu_threads(threads);
        const auto many = backward(s, in, d_out).bytes();
        set_cpu_threads(1);
        CHECK(many == one);
    }
    // A prefix gives what the whole gives: no query depends on what comes later.
    const std::int64_t prefix = 197;
    Case part = s;
    part.batch = 1;
    part.len = prefix;
    const auto head = [&](const Tensor& t) {
        const Shape& full = t.view.shape;
        Shape cut = full;
        cut.dims[0] = 1;
        cut.dims[1] = prefix;
        Tensor out(cut, t.view.dtype);
        std::copy_n(t.view.data, out.view.bytes(), out.view.data);
        return out;
    };
    const Inputs first{
        head(in.q),           head(in.k), head(in.v), head(in.gate), copy_of(in.sink_logit),
        make_key_begin(part), in.rule,    in.scale};
    const Tensor out(in.q.view.shape, dtype), lse(lse_shape(s), wide_dtype(dtype)),
        selection(selection_shape(s), DType::int32), cut_out(first.q.view.shape, dtype),
        cut_lse(lse_shape(part), wide_dtype(dtype)),
        cut_selection(selection_shape(part), DType::int32);
    forward(out, lse, selection, in);
    forward(cut_out, cut_lse, cut_selection, first);
    CHECK(bytes_of(cut_out) == bytes_of(head(out)));
}

TEST_CASE("tree_attention refuses what does not fit") {
    const Case s{1, 40, 2, 1, 4, 100, {8, 4, 2, 2, 1}};
    Inputs in = make_inputs(s, DType::fp32);
    const Tensor out(in.q.view.shape, DType::fp32), lse(lse_shape(s), DType::fp32),
        selection(selection_shape(s), DType::int32);
    forward(out, lse, selection, in);
    for (const TreeRule& wrong :
         {TreeRule{10, 4, 2, 2, 1}, TreeRule{8, 0, 2, 2, 0}, TreeRule{8, 4, 1, 2, 1},
          TreeRule{8, 4, 2, 0, 1}, TreeRule{8, 4, 2, 2, 5}, TreeRule{8, 4, 2, 3, 1}}) {
        in.rule = wrong;
        CHECK_THROWS_AS(forward(out, lse, selection, in), ShapeError);
    }
}
