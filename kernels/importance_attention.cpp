#include "kernels/importance_attention.h"

#include "kernels/attention_checks.h"
#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"

namespace stoa {
namespace {

/// Tokens of each entry, ascending, once each.
void require_dense_rows(const ConstTensorView& rows, std::int64_t batch, std::int64_t q_len,
                        std::int64_t len) {
    constexpr const char* kName = "importance_attention: dense_rows";
    if (rows.empty()) return;
    require(q_len == len, kName, "absent where q has fewer tokens than k", rows.shape.str());
    require(rows.shape.rank == 2 && rows.shape[0] == batch, kName, "(batch, rows)",
            rows.shape.str());
    require_dtype(rows, DType::int32, kName);
    if (rows.device.is_cuda()) return;  // the host does not read device memory
    for (std::int64_t b = 0; b < batch; ++b) {
        std::int32_t before = -1;
        for (const std::int32_t t : rows.row<std::int32_t>(b)) {
            require(before < t && t < len, kName, "ascending tokens", std::to_string(t));
            before = t;
        }
    }
}

/// The rules that forward and backward share.
template <class Args>
void require_attention(const Args& a) {
    require(a.scale > 0.0, "importance_attention: scale", "> 0", std::to_string(a.scale));
    require_rule(a.rule);
    require(a.q.shape.rank == 4, "importance_attention: q", "(batch, q_len, n_heads, head_dim)",
            a.q.shape.str());
    const std::int64_t batch = a.q.shape[0], q_len = a.q.shape[1], n_heads = a.q.shape[2];
    require(a.k.shape.rank == 4 && a.k.shape[0] == batch && a.k.shape[1] >= q_len &&
                a.k.shape[3] == a.q.shape[3],
            "importance_attention: k",
            "(batch, len, n_kv_heads, head_dim) with the batch and head_dim of q, and its tokens",
            a.k.shape.str() + " for q " + a.q.shape.str());
    const std::int64_t len = a.k.shape[1], n_kv_heads = a.k.shape[2];
    require(n_kv_heads > 0 && n_heads % n_kv_heads == 0, "importance_attention: n_kv_heads",
            "divisor of n_heads", a.k.shape.str() + " for q " + a.q.shape.str());
    require_shape(a.v, a.k.shape, "importance_attention: v");
    require_shape(a.out, a.q.shape, "importance_attention: out");
    require_shape(a.lse, {batch, n_heads, q_len}, "importance_attention: lse");
    require_shape(a.expiry, {batch, n_kv_heads, len}, "importance_attention: expiry");
    require_dtype(a.expiry, DType::int32, "importance_attention: expiry");
    const DType wide = wide_dtype(a.q.dtype);
    for (const ConstTensorView& t : {a.k, a.v, ConstTensorView(a.out)})
        require_dtype(t, a.q.dtype, "importance_attention: dtype");
    require_dtype(a.lse, wide, "importance_attention: lse");
    if (!a.gate.empty()) {
        require_shape(a.gate, {batch, len, n_kv_heads}, "importance_attention: gate");
        require_dtype(a.gate, wide, "importance_attention: gate");
    }
    if (!a.sink_logit.empty()) {
        require_numel(a.sink_logit, n_heads, "importance_attention: sink_logit");
        require_dtype(a.sink_logit, wide, "importance_attention: sink_logit");
    }
    require_documents(a.key_begin, batch, len, "importance_attention: key_begin");
    require_dense_rows(a.dense_rows, batch, q_len, len);
}

}  // namespace

void select_keys(const SelectKeysArgs& args, const Exec& exec) {
    require_rule(args.rule);
    require(args.expiry.shape.rank == 3, "select_keys: expiry", "(batch, n_kv_heads, len)",
            args.expiry.shape.str());
    require_dtype(args.expiry, DType::int32, "select_keys: expiry");
    const std::int64_t batch = args.expiry.shape[0], heads = args.expiry.shape[1],
                       len = args.expiry.shape[2];
    require(len < INT32_MAX, "select_keys: len", "below 2^31", std::to_string(len));
    require_documents(args.key_begin, batch, len, "select_keys: key_begin");
    if (args.rule.keep > 0)
        require_shape(args.importance, {batch, len, heads}, "select_keys: importance");
    exec.device.is_cuda() ? cuda::select_keys(args, exec.stream) : cpu::select_keys(args);
}

void importance_attention_forward(const ImportanceAttentionArgs& args, const Exec& exec) {
    require_attention(args);
    exec.device.is_cuda() ? cuda::importance_attention_forward(args, exec.stream)
                          : cpu::importance_attention_forward(args);
}

void importance_attention_backward(const ImportanceAttentionBackwardArgs& args, const Exec& exec) {
    require_attention(args);
    require_shape(args.q, {args.k.shape[0], args.k.shape[1], args.q.shape[2], args.k.shape[3]},
                  "importance_attention: q of a backward");
    require_shape(args.d_out, args.q.shape, "importance_attention: d_out");
    require_dtype(args.d_out, args.q.dtype, "importance_attention: d_out");
    require_like(args.d_q, args.q, "importance_attention: d_q");
    require_like(args.d_k, args.k, "importance_attention: d_k");
    require_like(args.d_v, args.v, "importance_attention: d_v");
    require_like(args.d_gate, args.gate, "importance_attention: d_gate");
    require_sink_gradient(args.d_sink, args.sink_logit, args.q, "importance_attention: d_sink");
    if (!args.far_mass.empty()) {
        require(!args.dense_rows.empty(), "importance_attention: far_mass", "given with dense_rows",
                "no dense_rows");
        require_shape(args.far_mass, {args.k.shape[0], args.k.shape[1], args.k.shape[2]},
                      "importance_attention: far_mass");
        require_dtype(args.far_mass, wide_dtype(args.q.dtype), "importance_attention: far_mass");
    }
    exec.device.is_cuda() ? cuda::importance_attention_backward(args, exec.stream)
                          : cpu::importance_attention_backward(args);
}

}  // namespace stoa
