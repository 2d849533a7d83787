// Decoding with a tree of keys. A cache holds keys, values and gates as they came and the nodes of
// the tokens so far, at the places that training's kernels give them in one document as long as the
// capacity; so these kernels answer its queries, with their bits. Where a node begins and which
// ones a token completes are functions of the length: the host launches without having to ask.
#include "kernels/core/buffer.h"
#include "kernels/cuda/key_tree.h"
#include "kernels/cuda/ops.h"

namespace stoa::cuda {
namespace {

/// Where the parts of a cache's memory begin.
struct CacheLayout {
    TreeShape n;
    std::int64_t v = 0, gate = 0, nodes = 0, bytes = 0;  // keys at 0
};
template <class W>
CacheLayout layout_of(const TreeRule& rule, std::int64_t n_kv_heads, std::int64_t dim,
                      std::int64_t capacity, std::int64_t value_bytes) {
    CacheLayout l{.n = tree_shape(rule, 1, capacity, n_kv_heads, n_kv_heads, dim)};
    const std::int64_t columns = capacity * n_kv_heads;
    const auto size = static_cast<std::int64_t>(sizeof(W));
    l.v = align_up(columns * dim * value_bytes);
    l.gate = 2 * l.v;
    l.nodes = l.gate + align_up(columns * size);
    const ConstTensorView k{nullptr, dtype_of<W>(), {1, capacity, n_kv_heads, dim}, {}};
    l.bytes = l.nodes + tree_node_bytes(k, rule);
    return l;
}
template <class T, class W = Wide<T>>
CacheLayout layout_of(const TreeCache& c) {
    return layout_of<W>(c.rule, c.n_kv_heads, c.head_dim, c.capacity,
                        static_cast<std::int64_t>(sizeof(T)));
}

template <class T, class W = Wide<T>>
TreeInputs<T> cache_inputs(const TreeCache& c, const CacheLayout& l) {
    std::byte* const memory = c.memory.data();
    return {.n = l.n,
            .q = nullptr,
            .k = reinterpret_cast<const T*>(memory),
            .v = reinterpret_cast<const T*>(memory + l.v),
            .key_begin = nullptr,
            .gate = reinterpret_cast<const W*>(memory + l.gate),
            .sink_logit = nullptr,
            .scale = 1,
            .nodes = TreeNodes<W>::in(reinterpret_cast<W*>(memory + l.nodes), l.n)};
}

}  // namespace

std::int64_t tree_cache_bytes(const TreeRule& rule, std::int64_t n_kv_heads, std::int64_t head_dim,
                              std::int64_t capacity, DType dtype) {
    const std::int64_t size = size_of(dtype);
    return wide_dtype(dtype) == DType::fp64
               ? layout_of<double>(rule, n_kv_heads, head_dim, capacity, size).bytes
               : layout_of<float>(rule, n_kv_heads, head_dim, capacity, size).bytes;
}

void tree_cache_append(TreeCache& cache, const ConstTensorView& k, const ConstTensorView& v,
                       const ConstTensorView& gate, Stream stream) {
    const std::int64_t tokens = k.shape[0];
    if (tokens == 0) return;
    dispatch_dtype(cache.dtype, [&]<Element T>(T) {
        using W = Wide<T>;
        const CacheLayout l = layout_of<T>(cache);
        std::byte* const memory = cache.memory.data();
        const std::int64_t before = cache.len * k.bytes() / tokens,
                           columns = cache.n_kv_heads * static_cast<std::int64_t>(sizeof(W));
        copy_on_device(memory + before, k.data, k.bytes(), stream);
        copy_on_device(memory + l.v + before, v.data, v.bytes(), stream);
        std::byte* const gates = memory + l.gate + cache.len * columns;
        if (gate.empty())
            fill_bytes(gates, 0, tokens * columns, stream);
        else
            copy_on_device(gates, gate.data, gate.bytes(), stream);
        complete_nodes(cache_inputs<T>(cache, l), cache.len, cache.len + tokens, stream);
    });
    cache.len += tokens;
}

void tree_cache_attend(const TreeCache& cache, const TreeCacheAttendArgs& a, Stream stream) {
    const std::int64_t tokens = a.q.shape[0];
    if (tokens == 0) return;
    dispatch_dtype(cache.dtype, [&]<Element T>(T) {
        using W = Wide<T>;
        TreeInputs<T> in = cache_inputs<T>(cache, layout_of<T>(cache));
        in.n.n_heads = a.q.shape[1];
        in.n.first_query = a.begin;
        in.n.q_len = tokens;
        in.q = a.q.as<T>().data();
        in.sink_logit = a.sink_logit.empty() ? nullptr : a.sink_logit.as<W>().data();
        in.scale = static_cast<W>(a.scale);
        const Scratch selection(stream, in.n.pairs() * tokens * in.n.levels * in.n.slots * 4);
        attend_tree<T, W>(a.out.as<T>().data(), nullptr, selection.as<std::int32_t>(), in, stream);
    });
}

}  // namespace stoa::cuda
