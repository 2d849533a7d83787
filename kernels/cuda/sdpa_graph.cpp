#include "kernels/cuda/sdpa_graph.h"

#include <utility>

namespace stoa::cuda {
namespace {

using enum GraphOp;
using Tensor = std::size_t;
constexpr GraphType kFloat = GraphType::fp32;

/// What both graphs have.
struct Builder {
    OpGraph graph{};
    SdpaShape s;
    GraphType io;
    Dims scores, rows, q_dims, kv_dims;  // (batch, heads, q_len | k_len, columns)

    explicit Builder(const SdpaShape& shape)
        : s(shape),
          io(shape.dtype == DType::bf16 ? GraphType::bf16 : GraphType::fp16),
          scores{shape.batch, shape.n_heads, shape.q_len, shape.k_len},
          rows{shape.batch, shape.n_heads, shape.q_len, 1},
          q_dims{shape.batch, shape.n_heads, shape.q_len, shape.head_dim},
          kv_dims{shape.batch, shape.n_kv_heads, shape.k_len, shape.head_dim} {
        if (const auto refusal = sdpa_refusal(shape)) throw ShapeError(*refusal);
    }
    Tensor memory(SdpaTensor id, GraphType type, const Dims& dims, const Dims& strides) {
        return graph.memory(static_cast<std::int64_t>(id), type, dims, strides);
    }
    Tensor like_q(SdpaTensor id) {
        return memory(id, io, q_dims, {s.q_batch, s.head_dim, s.q_row, 1});
    }
    Tensor like_kv(SdpaTensor id) {
        return memory(id, io, kv_dims, {s.kv_batch, s.head_dim, s.kv_row, 1});
    }
    Tensor gradient_of_kv(SdpaTensor id) {
        return memory(id, io, kv_dims, {s.d_kv_batch, s.head_dim, s.d_kv_row, 1});
    }
    Tensor transposed_kv(SdpaTensor id) {  // (batch, n_kv_heads, head_dim, k_len)
        return memory(id, io, {s.batch, s.n_kv_heads, s.head_dim, s.k_len},
                      {s.kv_batch, s.head_dim, 1, s.kv_row});
    }
    Tensor lse() { return memory(SdpaTensor::lse, kFloat, rows, {s.lse_batch, s.lse_head, 1, 1}); }
    Tensor keys(SdpaTensor id) {  // of a row, alike for all heads
        return memory(id, GraphType::int32, {s.batch, 1, s.q_len, 1},
                      {s.keys_batch, s.keys_batch, 1, 1});
    }
    Tensor scalar(SdpaTensor id) { return graph.scalar(static_cast<std::int64_t>(id)); }
    Tensor compute(GraphOp op, const Dims& dims, Tensor a, Tensor b = kNone) {
        return graph.step(op, graph.between(kFloat, dims), a, b);
    }
    Tensor index(Tensor like, std::int64_t axis) {
        const Tensor y = graph.between(GraphType::int32, scores);
        return graph.step(GraphOp::index, y, like, kNone, kNone, axis);
    }
    /// x where a op b, else `masked`.
    Tensor keep(Tensor x, Tensor a, GraphOp op, Tensor b, Tensor masked) {
        const Tensor seen = graph.step(op, graph.between(GraphType::boolean, scores), a, b);
        return graph.step(select, graph.between(kFloat, scores), x, masked, seen);
    }
    /// scale q k^T, masked
    Tensor masked_scores(Tensor q, Tensor k, Tensor scale) {
        Tensor x = compute(multiply, scores, compute(matmul, scores, q, k), scale);
        const Tensor masked = scalar(SdpaTensor::masked);
        if (s.causal) {
            const Tensor query = index(x, 2), key = index(x, 3);
            x = keep(x, query, greater_equal, key, masked);
        } else {
            const Tensor key = index(x, 3), end = keys(SdpaTensor::key_end);
            x = keep(x, key, less, end, masked);
        }
        const Tensor key = index(x, 3), begin = keys(SdpaTensor::key_begin);
        return keep(x, key, greater_equal, begin, masked);
    }
    /// y = a b, with the heads of a group summed into their kv head.
    void into_kv(Tensor y, Tensor a, Tensor b) {
        if (s.n_heads == s.n_kv_heads) {
            graph.step(matmul, y, a, b);
            return;
        }
        const Dims every_head{s.batch, s.n_heads, s.k_len, s.head_dim};
        graph.step(reduce_sum, y, graph.step(matmul, graph.between(io, every_head), a, b));
    }
    /// x^T in the elements' type: (batch, n_heads, k_len, q_len)
    Tensor transposed(Tensor x) {
        const Dims st = packed_strides(scores);
        const Tensor y =
            graph.between(io, {s.batch, s.n_heads, s.k_len, s.q_len}, {st[0], st[1], st[3], st[2]});
        return graph.step(reshape, y, x);
    }
};

}  // namespace

OpGraph sdpa_forward_graph(const SdpaShape& shape) {
    Builder b(shape);
    OpGraph& g = b.graph;
    const Tensor q = b.like_q(SdpaTensor::q), k = b.transposed_kv(SdpaTensor::k),
                 v = b.like_kv(SdpaTensor::v), out = b.like_q(SdpaTensor::out), lse = b.lse();
    const Tensor x = b.masked_scores(q, k, b.scalar(SdpaTensor::scale));
    const Tensor max = b.compute(reduce_max, b.rows, x);
    const Tensor e = b.compute(exp, b.scores, b.compute(subtract, b.scores, x, max));
    const Tensor sum = b.compute(reduce_sum, b.rows, e);
    g.step(add, lse, max, b.compute(log, b.rows, sum));
    g.step(matmul, out, g.step(divide, g.between(b.io, b.scores), e, sum), v);
    return std::move(b.graph);
}

OpGraph sdpa_backward_graph(const SdpaShape& shape) {
    Builder b(shape);
    OpGraph& g = b.graph;
    const Tensor q = b.like_q(SdpaTensor::q), k = b.transposed_kv(SdpaTensor::k),
                 v = b.transposed_kv(SdpaTensor::v), out = b.like_q(SdpaTensor::out),
                 d_out = b.like_q(SdpaTensor::d_out), lse = b.lse(),
                 d_q = b.like_q(SdpaTensor::d_q), d_k = b.gradient_of_kv(SdpaTensor::d_k),
                 d_v = b.gradient_of_kv(SdpaTensor::d_v), scale = b.scalar(SdpaTensor::scale);

    // delta = rowsum(d_out * out); the product by 1 puts it into memory.
    const Tensor delta = b.memory(SdpaTensor::delta, kFloat, b.rows, packed_strides(b.rows));
    const Tensor sum = b.compute(reduce_sum, b.rows, b.compute(multiply, b.q_dims, d_out, out));
    g.step(multiply, delta, sum, b.scalar(SdpaTensor::one));

    const Tensor x = b.masked_scores(q, k, scale);
    const Tensor p = b.compute(exp, b.scores, b.compute(subtract, b.scores, x, lse));
    b.into_kv(d_v, b.transposed(p), d_out);

    const Tensor d_p = b.compute(subtract, b.scores, b.compute(matmul, b.scores, d_out, v), delta);
    const Tensor d_s =
        g.step(multiply, g.between(b.io, b.scores), b.compute(multiply, b.scores, d_p, p), scale);
    b.into_kv(d_k, b.transposed(d_s), q);
    const Tensor k_rows = g.between(b.io, b.kv_dims, {b.s.kv_batch, b.s.head_dim, b.s.kv_row, 1});
    g.step(matmul, d_q, d_s, g.step(reshape, k_rows, k));
    return std::move(b.graph);
}

}  // namespace stoa::cuda
