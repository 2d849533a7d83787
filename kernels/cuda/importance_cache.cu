// Decoding with the keys of importance attention: one query against those that the cache keeps, and
// a part of a prompt as a short document of these and the new tokens.
#include "kernels/cuda/importance_row.h"
#include "kernels/cuda/importance_rows.h"
#include "kernels/cuda/ops.h"

namespace stoa::cuda {
namespace {

/// The newest token's query of one head; its keys are rows of the cache.
template <class T, class W = Wide<T>>
struct NewestQuery {
    const CacheRows<T>& c;
    std::int64_t head;
    const T* q;
    W scale;

    STOA_DEVICE std::int64_t at(std::int64_t row) const { return head * c.rows + row; }
    STOA_DEVICE W score(std::int64_t row, bool far) const {
        const W z = chain_dot(q, scale, c.k + at(row) * c.dim, c.dim);
        const std::int64_t token = far ? row : c.length - c.window_keys + row - c.window_begin;
        const W gate = token < c.rule.sinks ? W{0} : c.gate[at(row)];  // far: sinks come first
        if (gate == W{0}) return z;
        return z + (far ? gate : gate_ramp<W>(c.length - 1 - token, c.rule.window) * gate);
    }
    STOA_DEVICE const T* value(std::int64_t row) const { return c.v + at(row) * c.dim; }
    template <class Fn>
    STOA_DEVICE void for_keys(const Fn& fn) const {
        const std::int64_t lane = thread_index() % kWarp, end = c.window_begin + c.window_keys;
        for (std::int64_t first = 0; first < c.far_keys; first += kWarp)
            fn(KeyItems{nullptr, first}, first + lane, true, first + lane < c.far_keys);
        for (std::int64_t first = c.window_begin; first < end; first += kWarp)
            fn(KeyItems{nullptr, first}, first + lane, false, first + lane < end);
    }
};

/// A block a kv head, a warp a query head.
template <class T, class W = Wide<T>>
STOA_KERNEL void newest_kernel(T* out, STOA_CONSTANT CacheRows<T> c, const T* q,
                               const W* sink_logit, W scale, std::int64_t group) {
    SharedMemory memory;
    const int warps = block_threads() / kWarp;
    Weights<W, 1> weights{memory.array<W>(2 * warps * kWarp)};
    for (std::int64_t g = thread_index() / kWarp; g < (group + warps - 1) / warps * warps;
         g += warps) {
        const bool here = g < group;  // the others only meet at the barriers
        const std::int64_t h = block_index() * group + (here ? g : 0);
        const W sink = sink_logit == nullptr ? -std::numeric_limits<W>::infinity() : sink_logit[h];
        attend_row(out + h * c.dim, static_cast<W*>(nullptr),
                   NewestQuery<T>{c, block_index(), q + h * c.dim, scale}, weights, sink, c.dim,
                   here);
    }
}

template <class T, class W = Wide<T>>
void attend_newest(const ImportanceCache& cache, const ImportanceCacheArgs& a, Stream stream) {
    const CacheRows<T> c = rows_of<T>(cache);
    const std::int64_t group = a.q.shape[1] / c.heads;
    const int warps = static_cast<int>(std::min<std::int64_t>(group, kHeadWarps));
    launch({.name = "importance_cache: attend",
            .blocks = c.heads,
            .threads = warps * kWarp,
            .stream = stream,
            .shared_bytes = 2 * warps * kWarp * static_cast<int>(sizeof(W))},
           newest_kernel<T>, a.out.as<T>().data(), c, a.q.as<T>().data(),
           a.sink_logit.empty() ? nullptr : a.sink_logit.as<W>().data(), static_cast<W>(a.scale),
           group);
}

template <class T, class W = Wide<T>>
void attend_part(const ImportanceCache& cache, const ImportanceCacheArgs& a, const PartRows<T>& p,
                 Stream stream) {
    const std::int64_t q_len = a.q.shape[0], n_heads = a.q.shape[1];
    const Shape queries{1, q_len, n_heads, p.dim}, keys{1, p.len, p.heads, p.dim};
    const DType wide = dtype_of<W>();
    const Scratch lse(stream, n_heads * q_len * static_cast<std::int64_t>(sizeof(W))),
        key_begin(stream, p.len * 4);
    fill_bytes(key_begin.as<std::byte>(), 0, p.len * 4, stream);
    const auto view = [&](const Scratch& memory, DType dtype, const Shape& shape) {
        return TensorView{memory.as<std::byte>(), dtype, shape, a.q.device};
    };
    importance_attention_forward(
        {.out = a.out.reshaped(queries),
         .lse = view(lse, wide, {1, n_heads, q_len}),
         .q = a.q.reshaped(queries),
         .k = view(p.k, a.q.dtype, keys),
         .v = view(p.v, a.q.dtype, keys),
         .expiry = view(p.expiry, DType::int32, {1, p.heads, p.len}),
         .key_begin = view(key_begin, DType::int32, {p.len}),
         .gate = a.gate.empty() ? TensorView{} : view(p.gate, wide, {1, p.len, p.heads}),
         .sink_logit = a.sink_logit,
         .rule = cache.rule,
         .scale = a.scale},
        stream);
}

}  // namespace

void importance_cache_attend(ImportanceCache& cache, const ImportanceCacheArgs& a, Stream stream) {
    const ImportanceCacheKeys keys{a.k, a.v, a.gate, a.importance};
    if (a.q.shape[0] == 0) return;
    dispatch_dtype(a.q.dtype, [&]<Element T>(T) {
        if (a.q.shape[0] == 1) {
            push<T>(cache, keys, stream);
            return attend_newest<T>(cache, a, stream);
        }
        const PartRows<T> part(cache, keys, stream);
        attend_part<T>(cache, a, part, stream);
        take(cache, part, stream);
    });
}

void importance_cache_append(ImportanceCache& cache, const ImportanceCacheKeys& keys,
                             Stream stream) {
    if (keys.k.shape[0] == 0) return;
    dispatch_dtype(keys.k.dtype, [&]<Element T>(T) {
        if (keys.k.shape[0] == 1) return push<T>(cache, keys, stream);
        take(cache, PartRows<T>(cache, keys, stream), stream);
    });
}

}  // namespace stoa::cuda
