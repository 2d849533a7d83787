// A cache is memory only: its trees are laid out in it anew by every call.
#include "kernels/tree_cache.h"

#include "kernels/cpu/ops.h"
#include "kernels/cpu/tree_attend.h"
#include "kernels/cpu/tree_documents.h"

namespace stoa::cpu {
namespace {

/// A tree without memory. Coded, it has room for the local range of a query and for what is
/// appended with it.
template <class W>
KeyTree<W> plan_tree(const TreeRule& rule, std::int64_t head_dim, std::int64_t capacity,
                     std::int64_t together) {
    return make_tree<W>(rule, head_dim, capacity,
                        together == 0 ? 0 : rule.window + rule.leaf + kLanes + together);
}

/// The tree of one kv head, with the nodes that its tokens complete.
template <class W>
KeyTree<W> tree_of(const TreeCache& cache, std::int64_t kv_head) {
    KeyTree<W> tree = plan_tree<W>(cache.rule, cache.head_dim, cache.capacity, cache.together);
    const std::int64_t values = place_tree<W>(tree, nullptr);
    place_tree(tree, reinterpret_cast<W*>(cache.memory.data()) + kv_head * values);
    tree.first = cache.first;
    tree.len = cache.len;
    std::int64_t nodes = cache.len / cache.rule.leaf;
    for (std::int64_t l = 0; l < tree.n_levels; ++l, nodes /= cache.rule.fanout)
        tree.levels[static_cast<std::size_t>(l)].count = nodes;
    return tree;
}

/// Of the tokens before `first` the codes are left.
template <class W>
void forget_before(KeyTree<W>& t, std::int64_t first) {
    const std::int64_t gone = first - t.first, left = t.len - first;
    std::copy_n(t.k + gone * t.dim, round_up(left, kLanes) * t.dim, t.k);
    std::copy_n(t.v + gone * t.width, left * t.width, t.v);
    std::copy_n(t.sigma + gone, left, t.sigma);
    t.first = first;
}

/// Where the wide tokens begin once `tokens` more are there: where they do now, or, for want of
/// room, at the local range of the next query.
std::int64_t first_wide(const TreeCache& cache, std::int64_t tokens) {
    const KeyTree<float> plan =
        plan_tree<float>(cache.rule, cache.head_dim, cache.capacity, cache.together);
    if (!plan.coded || cache.len + tokens - cache.first <= plan.wide_tokens) return cache.first;
    return far_leaves(cache.rule, cache.len) * cache.rule.leaf / kLanes * kLanes;
}

template <class T, class W = Wide<T>>
void append_head(const TreeCache& cache, std::int64_t kv_head, std::int64_t first,
                 const ConstTensorView& k, const ConstTensorView& v, const ConstTensorView& gate) {
    KeyTree<W> tree = tree_of<W>(cache, kv_head);
    if (first > tree.first) forget_before(tree, first);
    const std::int64_t tokens = k.shape[0], heads = cache.n_kv_heads;
    vectorised([&] {
        for (std::int64_t s = 0; s < tokens; ++s) {
            const std::int64_t row = s * heads + kv_head;
            put_token(tree, cache.len + s, k.as<T>().data() + row * cache.head_dim,
                      v.as<T>().data() + row * cache.head_dim,
                      gate.empty() ? nullptr : gate.as<W>().data() + row);
        }
        complete_nodes(tree, cache.len + tokens);
    });
}

/// Queries [piece.begin, piece.end) of the cache's tokens, for kv head piece.doc.
template <class T, class W = Wide<T>>
void attend_piece(const TreeCache& cache, const TreeCacheAttendArgs& a, const Piece& piece) {
    struct QueryTag;
    struct OutTag;
    struct LseTag;
    struct SinkTag;
    struct SelectionTag;
    const auto kv_head = static_cast<std::int64_t>(piece.doc);
    const KeyTree<W> tree = tree_of<W>(cache, kv_head);
    const std::int64_t n_heads = a.q.shape[1], group = n_heads / cache.n_kv_heads,
                       count = piece.end - piece.begin, dim = cache.head_dim,
                       levels = tree_levels(cache.rule, cache.capacity);
    W* const q = scratch<QueryTag, W>(count * group * tree.width);
    W* const sink = scratch<SinkTag, W>(group);
    sinks_of(sink, a, kv_head * group, group);
    const auto row = [&](std::int64_t i) {  // of q and out
        return ((piece.begin - a.begin + i / group) * n_heads + kv_head * group + i % group) * dim;
    };
    const TreeQueries<W> queries{
        .begin = piece.begin,
        .count = count,
        .group = group,
        .q = q,
        .out = scratch<OutTag, W>(count * group * tree.width),
        .lse = scratch<LseTag, W>(count * group),
        .selection = scratch<SelectionTag, std::int32_t>(count * levels * tree_slots(cache.rule)),
        .levels = levels,
        .sink = sink,
        .scale = static_cast<W>(a.scale)};
    vectorised([&] {
        for (std::int64_t i = 0; i < count * group; ++i)
            widen_row(q + i * tree.width, a.q.as<T>().data() + row(i), dim);
    });
    tree_attend(tree, queries);
    vectorised([&] {
        for (std::int64_t i = 0; i < count * group; ++i)
            narrow_row(a.out.as<T>().data() + row(i), queries.out + i * tree.width, dim);
    });
}

}  // namespace

std::int64_t tree_cache_values(const TreeRule& rule, std::int64_t head_dim, std::int64_t capacity,
                               DType dtype, std::int64_t together) {
    if (wide_dtype(dtype) == DType::fp64) {
        KeyTree<double> tree = plan_tree<double>(rule, head_dim, capacity, together);
        return place_tree<double>(tree, nullptr);
    }
    KeyTree<float> tree = plan_tree<float>(rule, head_dim, capacity, together);
    return place_tree<float>(tree, nullptr);
}

void tree_cache_append(TreeCache& cache, const ConstTensorView& k, const ConstTensorView& v,
                       const ConstTensorView& gate) {
    const std::int64_t first = first_wide(cache, k.shape[0]);
    dispatch_dtype(cache.dtype, [&]<Element T>(T) {
        parallel_for(cache.n_kv_heads, grain_for(k.shape[0] * cache.head_dim),
                     [&](std::int64_t h, std::int64_t last) {
                         for (; h < last; ++h)
                             append_head<T>(cache, h, first, k, v, gate);
                     });
    });
    cache.first = first;
    cache.len += k.shape[0];
}

void tree_cache_attend(const TreeCache& cache, const TreeCacheAttendArgs& a) {
    dispatch_dtype(cache.dtype, [&]<Element T>(T) {
        const std::int64_t tokens = a.q.shape[0], group = a.q.shape[1] / cache.n_kv_heads,
                           chunk = tree_chunk(cache.rule, cache.len, group, cache.head_dim),
                           chunks = (tokens + chunk - 1) / chunk;
        parallel_for(cache.n_kv_heads * chunks, 1, [&](std::int64_t i, std::int64_t last) {
            for (; i < last; ++i) {
                const std::int64_t first = i % chunks * chunk;
                attend_piece<T>(cache, a,
                                {static_cast<std::size_t>(i / chunks), a.begin + first,
                                 a.begin + std::min(tokens, first + chunk)});
            }
        });
    });
}

}  // namespace stoa::cpu
