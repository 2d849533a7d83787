#pragma once
// What forward and backward of the importance attention share on the GPU. A warp has one query or
// one key; scores are chains of fused steps, one key or query a lane, and sums over keys or queries
// are chains too, one channel a lane. The order of every chain is the CPU's, and so are the bits,
// but for exp and log of the C library (in lse and d_sink, and everywhere in fp64).
#include "kernels/cuda/attention_chains.h"
#include "kernels/cuda/device.h"
#include "kernels/device_scratch.h"

namespace stoa::cuda {

struct ImportanceShape {
    std::int64_t batch, q_len, len, n_heads, n_kv_heads, dim, dense_count;
    KeyRule rule;
    STOA_HD std::int64_t group() const { return n_heads / n_kv_heads; }
};
template <class Args>
ImportanceShape importance_shape(const Args& a) {
    return {a.q.shape[0],
            a.q.shape[1],
            a.k.shape[1],
            a.q.shape[2],
            a.k.shape[2],
            a.q.shape[3],
            a.dense_rows.empty() ? 0 : a.dense_rows.shape[1],
            a.rule};
}

/// By tiles of queries of a kv head: the keys, ascending, that any of them sees although they have
/// left its window (kernels/cpu/far_keys.h).
struct FarLists {
    FarListScratch room;
    Scratch keys, counts;  // (batch, n_kv_heads, tiles, capacity), (batch, n_kv_heads, tiles)
    FarLists(const ImportanceShape& n, const std::int32_t* expiry, const std::int32_t* key_begin,
             std::int64_t tile_rows, Stream stream);
};
struct FarView {
    const std::int32_t *keys, *counts;
    std::int64_t tiles, capacity, tile_rows;
};
inline FarView view_of(const FarLists& far, std::int64_t tile_rows) {
    return {far.keys.as<std::int32_t>(), far.counts.as<std::int32_t>(), far.room.tiles,
            far.room.capacity, tile_rows};
}

/// The tensors that both passes read. gate, sink_logit, dense_rows may be null.
template <class T, class W = Wide<T>>
struct ImportanceInputs {
    ImportanceShape n;
    const T *q, *k, *v;
    const std::int32_t *expiry, *key_begin, *dense_rows;
    const W *gate, *sink_logit;
    W scale;

    STOA_DEVICE const T* q_row(std::int64_t batch, std::int64_t row, std::int64_t h) const {
        return q + ((batch * n.q_len + row) * n.n_heads + h) * n.dim;
    }
    STOA_DEVICE std::int64_t key_at(std::int64_t batch, std::int64_t s, std::int64_t head) const {
        return (batch * n.len + s) * n.n_kv_heads + head;
    }
    STOA_DEVICE W gate_of(std::int64_t batch, std::int64_t s, std::int64_t head) const {
        const bool gated = gate != nullptr && s - key_begin[batch * n.len + s] >= n.rule.sinks;
        return gated ? gate[key_at(batch, s, head)] : W{0};
    }
};
template <class T, class Args, class W = Wide<T>>
ImportanceInputs<T> importance_inputs(const Args& a) {
    const auto values = [](const ConstTensorView& t) {
        return t.empty() ? nullptr : t.as<W>().data();
    };
    return {importance_shape(a),
            a.q.template as<T>().data(),
            a.k.template as<T>().data(),
            a.v.template as<T>().data(),
            a.expiry.template as<std::int32_t>().data(),
            a.key_begin.template as<std::int32_t>().data(),
            a.dense_rows.empty() ? nullptr : a.dense_rows.template as<std::int32_t>().data(),
            values(a.gate),
            values(a.sink_logit),
            static_cast<W>(a.scale)};
}

}  // namespace stoa::cuda
