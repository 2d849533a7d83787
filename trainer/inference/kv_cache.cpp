#include "trainer/inference/kv_cache.h"

#include <algorithm>
#include <numeric>

#include "kernels/elementwise.h"

namespace stoa {
namespace {

// Row (b, t) of `rows` goes to position positions[b, t] of batch entry b, unless it is padding.
void store(const Tensor& cache, ConstTensorView rows, const Activations& a,
           const std::vector<std::int64_t>& valid) {
    const std::int64_t capacity = cache.view.shape[1];
    const std::int64_t row_bytes = rows.cols() * size_of(rows.dtype);
    const auto positions = a.positions.as<std::int32_t>();
    for (std::int64_t r = 0; r < rows.rows(); ++r) {
        const std::int64_t b = r / a.seq_len, at = positions[static_cast<std::size_t>(r)];
        if (r % a.seq_len >= valid[static_cast<std::size_t>(b)]) continue;
        require(at < capacity, "kv_cache: position", "below the capacity", std::to_string(at));
        std::copy_n(rows.data + r * row_bytes, row_bytes,
                    cache.view.data + (b * capacity + at) * row_bytes);
    }
}

// `count` rows of one batch entry, (count, heads * width) as (count, heads, width).
template <class View>
View entry_rows(const View& x, std::int64_t begin, std::int64_t count, std::int64_t width) {
    if (x.empty()) return {};
    return x.slice_rows(begin, count).reshaped({count, x.cols() / width, width});
}

void attend_tree(TreeCache& cache, const BlockContext& c, const BlockWeights& w,
                 const BlockSaved& s, std::int64_t begin, std::int64_t count) {
    const std::int64_t hd = c.dims.head_dim, from = cache.len;
    tree_cache_append(cache, entry_rows(ConstTensorView(s.k), begin, count, hd),
                      entry_rows(ConstTensorView(s.v), begin, count, hd),
                      ConstTensorView(s.key_gate).slice_rows(begin, count), c.exec);
    tree_cache_attend(cache,
                      {.out = entry_rows(s.attn, begin, count, hd),
                       .q = entry_rows(ConstTensorView(s.q), begin, count, hd),
                       .sink_logit = w.sinks,
                       .begin = from,
                       .scale = attention_scale(c.dims)},
                      c.exec);
}

void attend_window(ImportanceCache& cache, const BlockContext& c, const BlockWeights& w,
                   const BlockSaved& s, std::int64_t begin, std::int64_t count) {
    const std::int64_t hd = c.dims.head_dim;
    ImportanceCacheArgs args{.out = entry_rows(s.attn, begin, count, hd),
                             .q = entry_rows(ConstTensorView(s.q), begin, count, hd),
                             .k = entry_rows(ConstTensorView(s.k), begin, count, hd),
                             .v = entry_rows(ConstTensorView(s.v), begin, count, hd),
                             .scale = attention_scale(c.dims)};
    if (selects_keys(c.dims.attention[static_cast<std::size_t>(c.layer)])) {
        args.gate = ConstTensorView(s.key_gate).slice_rows(begin, count);
        args.importance = ConstTensorView(s.importance).slice_rows(begin, count);
        args.sink_logit = w.sinks;
    }
    importance_cache_attend(cache, args, c.exec);
}

}  // namespace

KvCache make_kv_cache(const TrainState& s, std::int64_t batch, std::int64_t capacity) {
    const LocalDims& d = s.dims;
    KvCache cache{.batch = batch, .capacity = capacity};
    for (const LayerAttention kind : d.attention) {
        LayerCache layer;
        if (kind == LayerAttention::dense) {
            const Shape shape{batch, capacity, d.n_kv_heads, d.head_dim};
            layer.k = Tensor(shape, d.formats.attention);
            layer.v = Tensor(shape, d.formats.attention);
        }
        for (std::int64_t b = 0; b < batch && kind == LayerAttention::tree; ++b)
            layer.trees.push_back(make_tree_cache(tree_rule(d.attention_rule), d.n_kv_heads,
                                                  d.head_dim, capacity, d.formats.attention));
        const bool window = kind == LayerAttention::window || kind == LayerAttention::importance;
        for (std::int64_t b = 0; b < batch && window; ++b)
            layer.windows.push_back(make_importance_cache(
                key_rule(d.attention_rule, kind), d.n_kv_heads, d.head_dim, d.formats.attention));
        cache.layers.push_back(std::move(layer));
    }
    return cache;
}

std::int64_t kv_cache_bytes(const KvCache& cache) {
    std::int64_t bytes = 0;
    for (const LayerCache& l : cache.layers) {
        for (const Tensor* t : {&l.k, &l.v})
            if (!t->view.empty()) bytes += t->view.bytes();
        for (const TreeCache& t : l.trees)
            bytes += t.memory.bytes();
        for (const ImportanceCache& w : l.windows)
            bytes += importance_cache_bytes(w);
    }
    return bytes;
}

void cache_attend(LayerCache& cache, const BlockContext& c, const BlockWeights& w,
                  const BlockSaved& s, const std::vector<std::int64_t>& rows) {
    const Activations& a = c.acts;
    if (!cache.k.view.empty()) {
        store(cache.k, s.k, a, rows);
        store(cache.v, s.v, a, rows);
        return attend_forward(c, w, s, cache.k, cache.v);
    }
    for (std::size_t b = 0; b < rows.size(); ++b) {
        const std::int64_t begin = static_cast<std::int64_t>(b) * a.seq_len;
        if (rows[b] < a.seq_len)  // padding is not attended from
            zero(s.attn.slice_rows(begin + rows[b], a.seq_len - rows[b]), c.exec);
        if (rows[b] == 0) continue;
        if (!cache.trees.empty())
            attend_tree(cache.trees[b], c, w, s, begin, rows[b]);
        else
            attend_window(cache.windows[b], c, w, s, begin, rows[b]);
    }
}

}  // namespace stoa
