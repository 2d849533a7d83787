// Attention over a local range, selected leaves and summaries of the rest. The local range of a
// tile of queries is two products, as in importance_attention.cpp; what a query has selected is its
// own, and is read key by key.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/far_keys.h"
#include "kernels/cpu/fast_exp.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/head_matrix.h"
#include "kernels/cpu/key_tree.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/scratch.h"

namespace stoa::cpu {
namespace {

struct Sizes {
    std::int64_t batch, len, n_heads, n_kv_heads, dim, levels, slots;
    std::int64_t group() const { return n_heads / n_kv_heads; }
};
template <class Args>
Sizes sizes_of(const Args& a) {
    return {a.q.shape[0],      a.q.shape[1], a.q.shape[2],
            a.k.shape[2],      a.q.shape[3], tree_levels(a.rule, a.q.shape[1]),
            tree_slots(a.rule)};
}

/// One document of one batch entry, for one kv head. Tokens count from its beginning.
struct Document {
    std::int64_t batch, kv_head, begin, len;
};
template <class Args>
std::vector<Document> documents(const Args& a, const Sizes& n) {
    std::vector<Document> all;
    for (std::int64_t b = 0; b < n.batch; ++b)
        for (std::int64_t kv_head = 0; kv_head < n.n_kv_heads; ++kv_head) {
            const auto* const begins = a.key_begin.template as<std::int32_t>().data() + b * n.len;
            for (std::int64_t begin = 0, end = 0; begin < n.len; begin = end) {
                for (end = begin + 1; end < n.len && begins[end] == begins[begin];)
                    ++end;
                all.push_back({b, kv_head, begin, end - begin});
            }
        }
    return all;
}

/// The keys, values and gates of a document.
template <class T, class W = Wide<T>>
struct Keys {
    HeadMatrix<T> k, v;
    const W* gate;  // of token 0, `gate_stride` apart; null: none
    std::int64_t gate_stride, sinks;
    W gate_of(std::int64_t s) const {
        return gate == nullptr || s < sinks ? W{0} : gate[s * gate_stride];
    }
    W sigma(std::int64_t s) const {
        return gate == nullptr ? W{1} : std::exp(gate[s * gate_stride]);
    }
};
template <class T, class Args, class W = Wide<T>>
Keys<T> keys_of(const Args& a, const Sizes& n, const Document& doc) {
    auto k = head_matrix<T>(a.k, doc.batch, doc.kv_head),
         v = head_matrix<T>(a.v, doc.batch, doc.kv_head);
    k.data += doc.begin * k.ld;
    v.data += doc.begin * v.ld;
    const W* const gate = a.gate.empty()
                              ? nullptr
                              : a.gate.template as<W>().data() +
                                    (doc.batch * n.len + doc.begin) * n.n_kv_heads + doc.kv_head;
    return {k, v, gate, n.n_kv_heads, a.rule.sinks};
}

template <class T, class W = Wide<T>>
KeyTree<W> build_tree(const Keys<T>& keys, const Document& doc, std::int64_t dim,
                      const TreeRule& rule) {
    KeyTree<W> tree{dim, {}};
    if (doc.len <= rule.window) return tree;  // nothing is far
    tree.levels.emplace_back();
    struct Token {
        const T *k, *v;
        W sigma;
    };
    vectorised([&] {
        build_leaves(tree.levels[0], doc.len, dim, rule, [&](std::int64_t s) {
            const T *const k = keys.k.row(s), *const v = keys.v.row(s);
            const auto widened = [](const T* x) {
                return [x](std::int64_t c) { return W{widen(x[c])}; };
            };
            return std::tuple{widened(k), widened(v), keys.sigma(s)};
        });
    });
    while (tree.levels.back().count >= rule.fanout) {
        TreeLevel<W> parents;
        build_parents(parents, tree.levels.back(), dim, rule.fanout);
        tree.levels.push_back(std::move(parents));
    }
    return tree;
}

/// What a query reads one by one: tokens of its leaves, then summaries.
struct Items {
    std::vector<std::int32_t> tokens;
    std::vector<std::pair<std::int32_t, std::int32_t>> summaries;  // level, node
    std::vector<std::int32_t> nodes;                               // working memory
    std::int64_t count() const { return std::ssize(tokens) + std::ssize(summaries); }
};
void list_items(Items& items, const std::int32_t* selection, std::int64_t t, const TreeRule& rule) {
    items.tokens.clear();
    items.summaries.clear();
    for (std::int64_t i = 0; i < tree_slots(rule) && selection[i] >= 0; ++i)
        for (std::int64_t s = 0; s < rule.leaf; ++s)
            items.tokens.push_back(static_cast<std::int32_t>(selection[i] * rule.leaf + s));
    for_each_summary(selection, t, rule, items.nodes, [&](std::int64_t level, std::int32_t node) {
        items.summaries.emplace_back(static_cast<std::int32_t>(level), node);
    });
}

template <class W>
struct NodeView {
    const W *mean_k, *mean_v;
    W mass;
};
template <class W>
NodeView<W> node_of(const KeyTree<W>& tree, const std::pair<std::int32_t, std::int32_t>& id) {
    const auto& level = tree.levels[static_cast<std::size_t>(id.first)];
    const std::int64_t at = id.second * tree.dim;
    return {level.mean_k.data() + at, level.mean_v.data() + at,
            level.mass[static_cast<std::size_t>(id.second)]};
}

template <class W, class T>
W dot(const W* a, const T* b, std::int64_t n) {
    return lane_sum<W>(n, [&](std::int64_t c) { return a[c] * W{widen(b[c])}; });
}

/// Queries [begin, begin + rows) of a document, and the local range that they share.
struct LocalTile {
    std::int64_t begin, rows, local_begin, keys;
};
LocalTile local_tile(const Document& doc, std::int64_t begin, const TreeRule& rule) {
    const std::int64_t rows = std::min(kTileRows, doc.len - begin);
    const std::int64_t local = far_leaves(rule, begin) * rule.leaf;
    return {begin, rows, local, begin + rows - local};
}

/// Local scores of query t to logits; -infinity for far and for later tokens.
template <class T, class W>
void local_logits(W* s, const LocalTile& tile, const W* gate, std::int64_t t, const TreeRule& rule,
                  W scale) {
    const std::int64_t first = far_leaves(rule, t) * rule.leaf;
    const W inverse = W{1} / static_cast<W>(rule.window);
    for (std::int64_t j = 0; j < tile.keys; ++j) {
        const std::int64_t key = tile.local_begin + j;
        const W x = static_cast<W>(t - key) * inverse, ramp = x < W{1} ? x : W{1};
        const W z = s[j] * scale + ramp * gate[j];
        s[j] = key >= first && key <= t ? z : -std::numeric_limits<W>::infinity();
    }
}

/// Logits of a query's items.
template <class T, class W>
void item_logits(W* z, const Items& items, const W* q, const Keys<T>& keys, const KeyTree<W>& tree,
                 W scale) {
    const std::int64_t tokens = std::ssize(items.tokens);
    for (std::int64_t i = 0; i < tokens; ++i) {
        const std::int64_t s = items.tokens[static_cast<std::size_t>(i)];
        z[i] = scale * dot(q, keys.k.row(s), tree.dim) + keys.gate_of(s);
    }
    for (std::int64_t i = 0; i < std::ssize(items.summaries); ++i) {
        const NodeView<W> node = node_of(tree, items.summaries[static_cast<std::size_t>(i)]);
        z[tokens + i] = scale * dot(q, node.mean_k, tree.dim) + std::log(node.mass);
    }
}

template <class W, class T>
void add_scaled(W* y, W a, const T* x, std::int64_t n) {
    for (std::int64_t c = 0; c < n; ++c)
        y[c] += a * W{widen(x[c])};
}

template <class T, class W>
void widen_row(W* out, const T* row, std::int64_t dim) {
    for (std::int64_t c = 0; c < dim; ++c)
        out[c] = widen(row[c]);
}

template <class Args, class W>
W sink_of(const Args& a, std::int64_t h, W) {
    return a.sink_logit.empty() ? -std::numeric_limits<W>::infinity()
                                : a.sink_logit.template as<W>()[static_cast<std::size_t>(h)];
}

/// Gates of a tile's local keys, 0 where there is none.
template <class T, class W = Wide<T>>
void local_gates(W* gate, const LocalTile& tile, const Keys<T>& keys) {
    for (std::int64_t j = 0; j < tile.keys; ++j)
        gate[j] = keys.gate_of(tile.local_begin + j);
}

struct ScoresTag;
struct OutTag;
struct GateTag;
struct QueryTag;
struct ItemTag;

/// One tile of one document: the selection of its queries, and every head of the group.
template <class T, class W = Wide<T>>
void forward_tile(const TreeAttentionArgs& a, const Sizes& n, const Document& doc,
                  const Keys<T>& keys, const KeyTree<W>& tree, std::int64_t begin) {
    const LocalTile tile = local_tile(doc, begin, a.rule);
    const W scale = static_cast<W>(a.scale);
    const std::int64_t first_head = doc.kv_head * n.group(), per_query = n.levels * n.slots;
    std::int32_t* const selection =
        a.selection.as<std::int32_t>().data() +
        ((doc.batch * n.n_kv_heads + doc.kv_head) * n.len + doc.begin) * per_query;
    W* const scores = scratch<ScoresTag, W>(tile.rows * tile.keys);
    W* const out = scratch<OutTag, W>(tile.rows * n.dim);
    W* const gate = scratch<GateTag, W>(tile.keys);
    W* const q_rows = scratch<QueryTag, W>(n.group() * n.dim);
    local_gates(gate, tile, keys);
    Descent<W> descent;
    Items items;
    for (std::int64_t r = 0; r < tile.rows; ++r) {
        for (std::int64_t i = 0; i < n.group(); ++i)
            widen_row(q_rows + i * n.dim,
                      head_matrix<T>(a.q, doc.batch, first_head + i).row(doc.begin + begin + r),
                      n.dim);
        vectorised([&] {
            descend(selection + (begin + r) * per_query, n.levels, tree, q_rows, n.group(),
                    begin + r, a.rule, scale, descent);
        });
    }
    for (std::int64_t h = first_head; h < first_head + n.group(); ++h) {
        const auto q = head_matrix<T>(a.q, doc.batch, h);
        const W sink = sink_of(a, h, W{});
        W* const lse =
            a.lse.as<W>().data() + (doc.batch * n.n_heads + h) * n.len + doc.begin + begin;
        W inverse_sum[kTileRows];
        gemm({.m = tile.rows,
              .n = tile.keys,
              .k = n.dim,
              .a = q.from_row(doc.begin + begin),
              .b = keys.k.from_row(tile.local_begin, true),
              .c = result(scores, tile.keys)});
        std::vector<std::vector<W>> far_p(static_cast<std::size_t>(tile.rows));
        for (std::int64_t r = 0; r < tile.rows; ++r) {
            const std::int64_t t = begin + r;
            list_items(items, selection + t * per_query, t, a.rule);
            auto& z = far_p[static_cast<std::size_t>(r)];
            z.resize(static_cast<std::size_t>(items.count()));
            widen_row(q_rows, q.row(doc.begin + t), n.dim);
            W* const s = scores + r * tile.keys;
            vectorised([&] {
                local_logits<T>(s, tile, gate, t, a.rule, scale);
                item_logits(z.data(), items, q_rows, keys, tree, scale);
                const std::int64_t far = items.count();
                W max = lane_max<W>(tile.keys, sink, [&](std::int64_t j) { return s[j]; });
                max = lane_max<W>(far, max,
                                  [&](std::int64_t j) { return z[static_cast<std::size_t>(j)]; });
                for (std::int64_t j = 0; j < tile.keys; ++j)
                    s[j] = fast_exp(s[j] - max);
                for (W& x : z)
                    x = fast_exp(x - max);
                const W sum =
                    lane_sum<W>(tile.keys, [&](std::int64_t j) { return s[j]; }) +
                    lane_sum<W>(far,
                                [&](std::int64_t j) { return z[static_cast<std::size_t>(j)]; }) +
                    std::exp(sink - max);
                lse[r] = max + std::log(sum);
                inverse_sum[r] = W{1} / sum;
            });
        }
        gemm({.m = tile.rows,
              .n = n.dim,
              .k = tile.keys,
              .a = operand(scores, tile.keys),
              .b = keys.v.from_row(tile.local_begin),
              .c = result(out, n.dim)});
        for (std::int64_t r = 0; r < tile.rows; ++r) {
            list_items(items, selection + (begin + r) * per_query, begin + r, a.rule);
            const auto& p = far_p[static_cast<std::size_t>(r)];
            W* const y = out + r * n.dim;
            vectorised([&] {
                std::size_t i = 0;
                for (const std::int32_t s : items.tokens)
                    add_scaled(y, p[i++], keys.v.row(s), n.dim);
                for (const auto& id : items.summaries)
                    add_scaled(y, p[i++], node_of(tree, id).mean_v, n.dim);
                for (std::int64_t c = 0; c < n.dim; ++c)
                    y[c] *= inverse_sum[r];
            });
        }
        store_head<T>(a.out, doc.batch, h, doc.begin + begin, tile.rows, out);
    }
}

/// Gradients towards the tokens and nodes of one document.
template <class W>
struct TreeSums {
    std::vector<W> d_k, d_v, d_gate;  // (tokens, dim), (tokens, dim), (tokens)
    struct Level {
        std::vector<W> d_mean_k, d_mean_v, d_log_mass;
    };
    std::vector<Level> levels;
    TreeSums(const Document& doc, const KeyTree<W>& tree)
        : d_k(static_cast<std::size_t>(doc.len * tree.dim)),
          d_v(d_k.size()),
          d_gate(static_cast<std::size_t>(doc.len)) {
        for (const TreeLevel<W>& l : tree.levels)
            levels.push_back({std::vector<W>(l.mean_k.size()), std::vector<W>(l.mean_v.size()),
                              std::vector<W>(l.mass.size())});
    }
};

template <class T, class W = Wide<T>>
void backward_tile(const TreeAttentionBackwardArgs& a, const Sizes& n, const Document& doc,
                   const Keys<T>& keys, const KeyTree<W>& tree, TreeSums<W>& sums,
                   std::int64_t begin, std::int64_t h) {
    struct DZTag;
    struct DGateTag;
    struct DOutTag;
    const LocalTile tile = local_tile(doc, begin, a.rule);
    const W scale = static_cast<W>(a.scale), inverse = W{1} / static_cast<W>(a.rule.window);
    const std::int64_t per_query = n.levels * n.slots;
    const std::int32_t* const selection =
        a.selection.as<std::int32_t>().data() +
        ((doc.batch * n.n_kv_heads + doc.kv_head) * n.len + doc.begin) * per_query;
    const auto q = head_matrix<T>(a.q, doc.batch, h), out = head_matrix<T>(a.out, doc.batch, h),
               d_out = head_matrix<T>(a.d_out, doc.batch, h);
    const W* const lse =
        a.lse.as<W>().data() + (doc.batch * n.n_heads + h) * n.len + doc.begin + begin;
    W* const p = scratch<ScoresTag, W>(tile.rows * tile.keys);
    W* const d_z = scratch<DZTag, W>(tile.rows * tile.keys);
    W* const d_q = scratch<OutTag, W>(tile.rows * n.dim);
    W* const gate = scratch<GateTag, W>(tile.keys);
    W* const d_gate = scratch<DGateTag, W>(tile.keys);
    W* const q_row = scratch<QueryTag, W>(n.dim);
    W* const d_out_row = scratch<DOutTag, W>(n.dim);
    const W sink = sink_of(a, h, W{});
    W* const d_sink =
        a.d_sink.empty()
            ? nullptr
            : a.d_sink.as<W>().data() + (doc.batch * n.len + doc.begin + begin) * n.n_heads + h;
    local_gates(gate, tile, keys);
    std::fill_n(d_gate, tile.keys, W{0});
    const auto products = [&](W* c, const HeadMatrix<T>& rows, const HeadMatrix<T>& of) {
        gemm({.m = tile.rows,
              .n = tile.keys,
              .k = n.dim,
              .a = rows.from_row(doc.begin + begin),
              .b = of.from_row(tile.local_begin, true),
              .c = result(c, tile.keys)});
    };
    products(p, q, keys.k);
    products(d_z, d_out, keys.v);
    W deltas[kTileRows];
    for (std::int64_t r = 0; r < tile.rows; ++r) {
        const std::int64_t t = begin + r;
        W *const p_row = p + r * tile.keys, *const z_row = d_z + r * tile.keys;
        widen_row(d_out_row, d_out.row(doc.begin + t), n.dim);
        vectorised([&] {
            const W delta = dot(d_out_row, out.row(doc.begin + t), n.dim);
            deltas[r] = delta;
            local_logits<T>(p_row, tile, gate, t, a.rule, scale);
            for (std::int64_t j = 0; j < tile.keys; ++j) {
                p_row[j] = fast_exp(p_row[j] - lse[r]);
                const W z = p_row[j] * (z_row[j] - delta);
                const W x = static_cast<W>(t - tile.local_begin - j) * inverse;
                d_gate[j] += (x < W{1} ? x : W{1}) * z;
                z_row[j] = scale * z;
            }
            if (d_sink != nullptr) d_sink[r * n.n_heads] = -std::exp(sink - lse[r]) * delta;
        });
    }
    gemm({.m = tile.rows,
          .n = n.dim,
          .k = tile.keys,
          .a = operand(d_z, tile.keys),
          .b = keys.k.from_row(tile.local_begin),
          .c = result(d_q, n.dim)});
    Gemm to_keys{.m = tile.keys,
                 .n = n.dim,
                 .k = tile.rows,
                 .a = operand(p, tile.keys, true),
                 .b = d_out.from_row(doc.begin + begin),
                 .c = result(sums.d_v.data() + tile.local_begin * n.dim, n.dim),
                 .accumulate = true};
    gemm(to_keys);
    to_keys.a = operand(d_z, tile.keys, true);
    to_keys.b = q.from_row(doc.begin + begin);
    to_keys.c = result(sums.d_k.data() + tile.local_begin * n.dim, n.dim);
    gemm(to_keys);
    for (std::int64_t j = 0; j < tile.keys; ++j)
        sums.d_gate[static_cast<std::size_t>(tile.local_begin + j)] += d_gate[j];
    Items items;
    std::vector<W> z;
    for (std::int64_t r = 0; r < tile.rows; ++r) {
        const std::int64_t t = begin + r;
        list_items(items, selection + t * per_query, t, a.rule);
        z.resize(static_cast<std::size_t>(items.count()));
        widen_row(q_row, q.row(doc.begin + t), n.dim);
        widen_row(d_out_row, d_out.row(doc.begin + t), n.dim);
        W* const d_q_row = d_q + r * n.dim;
        vectorised([&] {
            item_logits(z.data(), items, q_row, keys, tree, scale);
            std::size_t i = 0;
            for (const std::int32_t s : items.tokens) {
                const W weight = fast_exp(z[i++] - lse[r]);
                const W dz = weight * (dot(d_out_row, keys.v.row(s), n.dim) - deltas[r]);
                add_scaled(d_q_row, scale * dz, keys.k.row(s), n.dim);
                add_scaled(sums.d_k.data() + s * n.dim, scale * dz, q_row, n.dim);
                add_scaled(sums.d_v.data() + s * n.dim, weight, d_out_row, n.dim);
                sums.d_gate[static_cast<std::size_t>(s)] += dz;
            }
            for (const auto& id : items.summaries) {
                const NodeView<W> node = node_of(tree, id);
                auto& level = sums.levels[static_cast<std::size_t>(id.first)];
                const std::int64_t at = id.second * n.dim;
                const W weight = fast_exp(z[i++] - lse[r]);
                const W dz = weight * (dot(d_out_row, node.mean_v, n.dim) - deltas[r]);
                add_scaled(d_q_row, scale * dz, node.mean_k, n.dim);
                add_scaled(level.d_mean_k.data() + at, scale * dz, q_row, n.dim);
                add_scaled(level.d_mean_v.data() + at, weight, d_out_row, n.dim);
                level.d_log_mass[static_cast<std::size_t>(id.second)] += dz;
            }
        });
    }
    store_head<T>(a.d_q, doc.batch, h, doc.begin + begin, tile.rows, d_q);
}

/// Node gradients to A = d_kappa / M, E = d_nu / M and C of the header, then down to the leaves.
template <class W>
void push_down(TreeSums<W>& sums, const KeyTree<W>& tree, std::int64_t fanout) {
    for (std::int64_t l = std::ssize(tree.levels) - 1; l >= 0; --l) {
        auto& own = sums.levels[static_cast<std::size_t>(l)];
        const TreeLevel<W>& nodes = tree.levels[static_cast<std::size_t>(l)];
        const bool has_parents = l + 1 < std::ssize(tree.levels);
        for (std::int64_t j = 0; j < nodes.count; ++j) {
            W *const a = own.d_mean_k.data() + j * tree.dim, *const e =
                                                                 own.d_mean_v.data() + j * tree.dim;
            const W *const k = nodes.mean_k.data() + j * tree.dim, *const v = nodes.mean_v.data() +
                                                                              j * tree.dim;
            const W inverse = W{1} / nodes.mass[static_cast<std::size_t>(j)];
            W& c = own.d_log_mass[static_cast<std::size_t>(j)];
            c = (c - dot(a, k, tree.dim) - dot(e, v, tree.dim)) * inverse;
            for (std::int64_t i = 0; i < tree.dim; ++i)
                a[i] *= inverse, e[i] *= inverse;
            if (!has_parents || j / fanout >= tree.levels[static_cast<std::size_t>(l + 1)].count)
                continue;
            const auto& above = sums.levels[static_cast<std::size_t>(l + 1)];
            const std::int64_t parent = j / fanout * tree.dim;
            add_scaled(a, W{1}, above.d_mean_k.data() + parent, tree.dim);
            add_scaled(e, W{1}, above.d_mean_v.data() + parent, tree.dim);
            c += above.d_log_mass[static_cast<std::size_t>(j / fanout)];
        }
    }
}

template <class T, class W>
void leaves_to_tokens(TreeSums<W>& sums, const KeyTree<W>& tree, const Keys<T>& keys,
                      std::int64_t leaf) {
    if (tree.levels.empty()) return;
    const auto& of_leaf = sums.levels[0];
    for (std::int64_t s = 0; s < tree.levels[0].count * leaf; ++s) {
        const std::int64_t j = s / leaf;
        const W *const a = of_leaf.d_mean_k.data() + j * tree.dim, *const e =
                                                                       of_leaf.d_mean_v.data() +
                                                                       j * tree.dim;
        const W sigma = keys.sigma(s);
        add_scaled(sums.d_k.data() + s * tree.dim, sigma, a, tree.dim);
        add_scaled(sums.d_v.data() + s * tree.dim, sigma, e, tree.dim);
        const W d_sigma = dot(a, keys.k.row(s), tree.dim) + dot(e, keys.v.row(s), tree.dim) +
                          of_leaf.d_log_mass[static_cast<std::size_t>(j)];
        if (s >= keys.sinks) sums.d_gate[static_cast<std::size_t>(s)] += sigma * d_sigma;
    }
}

template <class T, class W = Wide<T>>
void backward_document(const TreeAttentionBackwardArgs& a, const Sizes& n, const Document& doc) {
    const Keys<T> keys = keys_of<T>(a, n, doc);
    const KeyTree<W> tree = build_tree(keys, doc, n.dim, a.rule);
    TreeSums<W> sums(doc, tree);
    for (std::int64_t begin = 0; begin < doc.len; begin += kTileRows)
        for (std::int64_t i = 0; i < n.group(); ++i)
            backward_tile<T>(a, n, doc, keys, tree, sums, begin, doc.kv_head * n.group() + i);
    vectorised([&] {
        push_down(sums, tree, a.rule.fanout);
        leaves_to_tokens(sums, tree, keys, a.rule.leaf);
    });
    store_head<T>(a.d_k, doc.batch, doc.kv_head, doc.begin, doc.len, sums.d_k.data());
    store_head<T>(a.d_v, doc.batch, doc.kv_head, doc.begin, doc.len, sums.d_v.data());
    if (a.d_gate.empty()) return;
    W* const d_gate =
        a.d_gate.as<W>().data() + (doc.batch * n.len + doc.begin) * n.n_kv_heads + doc.kv_head;
    for (std::int64_t s = 0; s < doc.len; ++s)
        d_gate[s * n.n_kv_heads] =
            s < a.rule.sinks ? W{0} : sums.d_gate[static_cast<std::size_t>(s)];
}

}  // namespace

void tree_attention_forward(const TreeAttentionArgs& a) {
    dispatch_dtype(a.q.dtype, [&]<Element T>(T) {
        const Sizes n = sizes_of(a);
        for (const Document& doc : documents(a, n)) {
            const Keys<T> keys = keys_of<T>(a, n, doc);
            const auto tree = build_tree(keys, doc, n.dim, a.rule);
            parallel_for((doc.len + kTileRows - 1) / kTileRows, 1,
                         [&](std::int64_t i, std::int64_t last) {
                             for (; i < last; ++i)
                                 forward_tile<T>(a, n, doc, keys, tree, i * kTileRows);
                         });
        }
    });
}

void tree_attention_backward(const TreeAttentionBackwardArgs& a) {
    dispatch_dtype(a.q.dtype, [&]<Element T>(T) {
        const Sizes n = sizes_of(a);
        const std::vector<Document> all = documents(a, n);
        parallel_for(std::ssize(all), 1, [&](std::int64_t i, std::int64_t last) {
            for (; i < last; ++i)
                backward_document<T>(a, n, all[static_cast<std::size_t>(i)]);
        });
    });
}

}  // namespace stoa::cpu
