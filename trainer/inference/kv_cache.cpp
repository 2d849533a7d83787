#include "trainer/inference/kv_cache.h"

#include <algorithm>
#include <numeric>

#include "kernels/device_memory.h"
#include "kernels/elementwise.h"
#include "trainer/inference/pass.h"

namespace stoa {
namespace {

// Rows [begin, begin + count) become the next tokens of batch entry b.
void store(const Tensor& cache, ConstTensorView rows, std::int64_t b, std::int64_t length,
           std::int64_t begin, std::int64_t count, const Exec& exec) {
    const std::int64_t capacity = cache.view.shape[1];
    const TensorView all = cache.view.reshaped({cache.view.shape[0] * capacity, rows.cols()});
    require(length + count <= capacity, "kv_cache: position", "below the capacity",
            std::to_string(length + count - 1));
    copy(all.slice_rows(b * capacity + length, count), rows.slice_rows(begin, count), exec);
}

// `count` rows of one batch entry, (count, heads * width) as (count, heads, width).
template <class View>
View entry_rows(const View& x, std::int64_t begin, std::int64_t count, std::int64_t width) {
    if (x.empty()) return {};
    return x.slice_rows(begin, count).reshaped({count, x.cols() / width, width});
}
ConstTensorView slice(const ConstTensorView& x, std::int64_t begin, std::int64_t count) {
    return x.empty() ? ConstTensorView{} : x.slice_rows(begin, count);
}

// A layer that does not select keys has none of these, whatever its BlockSaved is shared with.
bool selects(const BlockContext& c) {
    return selects_keys(c.dims.attention[static_cast<std::size_t>(c.layer)]);
}

void attend_window(ImportanceCache& cache, const BlockContext& c, const BlockWeights& w,
                   const BlockSaved& s, std::int64_t begin, std::int64_t count) {
    const std::int64_t hd = c.dims.head_dim;
    ImportanceCacheArgs args{.out = entry_rows(s.attn, begin, count, hd),
                             .q = entry_rows(ConstTensorView(s.q), begin, count, hd),
                             .k = entry_rows(ConstTensorView(s.k), begin, count, hd),
                             .v = entry_rows(ConstTensorView(s.v), begin, count, hd),
                             .scale = attention_scale(c.dims)};
    if (selects(c)) {
        args.gate = ConstTensorView(s.key_gate).slice_rows(begin, count);
        args.importance = ConstTensorView(s.importance).slice_rows(begin, count);
        args.sink_logit = w.sinks;
    }
    importance_cache_attend(cache, args, c.exec);
}

// Calls fn(b, first row, rows) for the batch entries that have rows; zeroes the padding of s.attn,
// from which nobody attends.
template <class Fn>
void for_entries(const BlockContext& c, const BlockSaved& s, const std::vector<std::int64_t>& rows,
                 const Fn& fn) {
    const std::int64_t seq_len = c.acts.seq_len;
    for (std::size_t b = 0; b < rows.size(); ++b) {
        const std::int64_t begin = static_cast<std::int64_t>(b) * seq_len;
        if (rows[b] < seq_len) zero(s.attn.slice_rows(begin + rows[b], seq_len - rows[b]), c.exec);
        if (rows[b] > 0) fn(b, begin, rows[b]);
    }
}

}  // namespace

LayerCache make_layer_cache(const TrainState& s, std::size_t layer, std::int64_t batch,
                            std::int64_t capacity, CacheForm form) {
    const LocalDims& d = s.dims;
    const LayerAttention kind = d.attention[layer];
    LayerCache cache;
    if (kind == LayerAttention::dense) {
        const Shape shape{batch, capacity, d.n_kv_heads, d.head_dim};
        cache.k = make_tensor(shape, d.formats.attention, s.device);
        cache.v = make_tensor(shape, d.formats.attention, s.device);
        cache.length.resize(static_cast<std::size_t>(batch));
    }
    for (std::int64_t b = 0; b < batch && kind == LayerAttention::tree; ++b)
        cache.trees.push_back(make_tree_cache(tree_rule(d.attention_rule), d.n_kv_heads, d.head_dim,
                                              capacity, d.formats.attention, s.device,
                                              form == CacheForm::fp8 ? kPassTokens : 0));
    const bool window = kind == LayerAttention::window || kind == LayerAttention::importance;
    for (std::int64_t b = 0; b < batch && window; ++b)
        cache.windows.push_back(make_importance_cache(key_rule(d.attention_rule, kind),
                                                      d.n_kv_heads, d.head_dim, d.formats.attention,
                                                      s.device));
    return cache;
}

std::int64_t layer_cache_bytes(const LayerCache& cache) {
    std::int64_t bytes = 0;
    for (const Tensor* t : {&cache.k, &cache.v})
        if (!t->view.empty()) bytes += t->view.bytes();
    for (const TreeCache& t : cache.trees)
        bytes += t.memory.bytes();
    for (const ImportanceCache& w : cache.windows)
        bytes += importance_cache_bytes(w);
    return bytes;
}

std::int64_t layer_cache_bytes(const TrainState& s, std::size_t layer, std::int64_t batch,
                               std::int64_t capacity) {
    const LocalDims& d = s.dims;
    const DType dtype = d.formats.attention;
    if (d.attention[layer] == LayerAttention::dense)
        return 2 * batch * capacity * d.kv_cols() * size_of(dtype);
    if (d.attention[layer] == LayerAttention::tree)
        return batch * tree_cache_bytes(tree_rule(d.attention_rule), d.n_kv_heads, d.head_dim,
                                        capacity, dtype, s.device);
    return batch *
           importance_cache_bytes(make_importance_cache(
               key_rule(d.attention_rule, d.attention[layer]), d.n_kv_heads, d.head_dim, dtype));
}

KvCache make_kv_cache(const TrainState& s, std::int64_t batch, std::int64_t capacity, int ranks,
                      int rank, CacheForm form) {
    KvCache cache{.batch = batch, .capacity = capacity, .ranks = ranks, .rank = rank};
    for (std::size_t l = 0; l < s.dims.attention.size(); ++l)
        cache.layers.push_back(cache.holds(static_cast<std::int64_t>(l))
                                   ? make_layer_cache(s, l, batch, capacity, form)
                                   : LayerCache{});
    return cache;
}

std::int64_t kv_cache_bytes(const KvCache& cache) {
    return std::transform_reduce(cache.layers.begin(), cache.layers.end(), std::int64_t{0},
                                 std::plus<>{},
                                 [](const LayerCache& l) { return layer_cache_bytes(l); });
}

void cache_append(LayerCache& cache, const KeyRows& keys, const std::vector<std::int64_t>& rows,
                  const Exec& exec) {
    const std::int64_t seq_len = keys.k.rows() / std::ssize(rows);
    for (std::size_t b = 0; b < rows.size(); ++b) {
        const std::int64_t begin = static_cast<std::int64_t>(b) * seq_len, count = rows[b];
        if (count == 0) continue;
        if (!cache.k.view.empty()) {
            const auto entry = static_cast<std::int64_t>(b);
            store(cache.k, keys.k, entry, cache.length[b], begin, count, exec);
            store(cache.v, keys.v, entry, cache.length[b], begin, count, exec);
            cache.length[b] += count;
            continue;
        }
        const std::int64_t hd =
            cache.trees.empty() ? cache.windows[b].k.view.shape[2] : cache.trees[b].head_dim;
        const ConstTensorView k = entry_rows(ConstTensorView(keys.k), begin, count, hd),
                              v = entry_rows(ConstTensorView(keys.v), begin, count, hd),
                              gate = slice(keys.key_gate, begin, count),
                              importance = slice(keys.importance, begin, count);
        if (!cache.trees.empty())
            tree_cache_append(cache.trees[b], k, v, gate, exec);
        else
            importance_cache_append(cache.windows[b], {k, v, gate, importance}, exec);
    }
}

void cache_query(const LayerCache& cache, const BlockContext& c, const BlockWeights& w,
                 const BlockSaved& s, const std::vector<std::int64_t>& rows,
                 const std::vector<std::int64_t>& first) {
    if (!cache.k.view.empty()) return attend_forward(c, w, s, cache.k, cache.v, false);
    require(!cache.trees.empty(), "cache_query: layer", "dense or tree", "a window");
    const std::int64_t hd = c.dims.head_dim;
    for_entries(c, s, rows, [&](std::size_t b, std::int64_t begin, std::int64_t count) {
        tree_cache_attend(cache.trees[b],
                          {.out = entry_rows(s.attn, begin, count, hd),
                           .q = entry_rows(ConstTensorView(s.q), begin, count, hd),
                           .sink_logit = w.sinks,
                           .begin = first[b],
                           .scale = attention_scale(c.dims)},
                          c.exec);
    });
}

void cache_attend(LayerCache& cache, const BlockContext& c, const BlockWeights& w,
                  const BlockSaved& s, const std::vector<std::int64_t>& rows) {
    if (!cache.windows.empty())
        return for_entries(c, s, rows, [&](std::size_t b, std::int64_t begin, std::int64_t count) {
            attend_window(cache.windows[b], c, w, s, begin, count);
        });
    std::vector<std::int64_t> first = cache.length;
    for (const TreeCache& t : cache.trees)
        first.push_back(t.len);
    cache_append(cache, {s.k, s.v, s.importance, s.key_gate}, rows, c.exec);
    cache_query(cache, c, w, s, rows, first);
}

}  // namespace stoa
