#include "kernels/attention.h"

#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"

namespace stoa {
namespace {

/// The rules that forward and backward share.
void require_attention(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v,
                       const ConstTensorView& out, const ConstTensorView& lse,
                       const ConstTensorView& key_begin, const ConstTensorView& key_end) {
    require(q.shape.rank == 4, "attention: q", "(batch, q_len, n_heads, head_dim)", q.shape.str());
    require(k.shape.rank == 4 && k.shape[0] == q.shape[0] && k.shape[3] == q.shape[3],
            "attention: k", "(batch, k_len, n_kv_heads, head_dim) with the batch and head_dim of q",
            k.shape.str() + " for q " + q.shape.str());
    require(k.shape[2] > 0 && q.shape[2] % k.shape[2] == 0, "attention: n_kv_heads",
            "divisor of n_heads", k.shape.str() + " for q " + q.shape.str());
    require_shape(v, k.shape, "attention: v");
    require_shape(out, q.shape, "attention: out");
    require_shape(lse, {q.shape[0], q.shape[2], q.shape[1]}, "attention: lse");
    for (const ConstTensorView* t : {&k, &v, &out})
        require_dtype(*t, q.dtype, "attention: dtype");
    require_dtype(lse, wide_dtype(q.dtype), "attention: lse");
    const std::int64_t rows = q.shape[0] * q.shape[1];
    require_numel(key_begin, rows, "attention: key_begin");
    require_numel(key_end, rows, "attention: key_end");
    require_dtype(key_begin, DType::int32, "attention: key_begin");
    require_dtype(key_end, DType::int32, "attention: key_end");
}

/// The same for what the rows' keys are: they are read, so on the CPU alone.
void require_keys(const ConstTensorView& key_begin, const ConstTensorView& key_end,
                  std::int64_t q_len, std::int64_t k_len, bool causal) {
    if (causal)
        require(q_len == k_len, "attention: causal", "as many queries as keys",
                std::to_string(q_len) + " and " + std::to_string(k_len));
    const auto begins = key_begin.as<std::int32_t>(), ends = key_end.as<std::int32_t>();
    for (std::size_t r = 0; r < begins.size(); ++r) {
        require(begins[r] >= 0 && ends[r] <= k_len, "attention: keys of a row", "within k_len",
                std::to_string(begins[r]) + ".." + std::to_string(ends[r]));
        const auto t = static_cast<std::int64_t>(r) % q_len;
        require(!causal || (begins[r] <= t && ends[r] == t + 1), "attention: keys of a causal row",
                "its own the last", std::to_string(begins[r]) + ".." + std::to_string(ends[r]));
    }
}

}  // namespace

void attention_forward(const AttentionArgs& args, const Exec& exec) {
    require(args.scale > 0.0, "attention: scale", "> 0", std::to_string(args.scale));
    require_attention(args.q, args.k, args.v, args.out, args.lse, args.key_begin, args.key_end);
    if (exec.device.is_cuda()) return cuda::attention_forward(args, exec.stream);
    require_keys(args.key_begin, args.key_end, args.q.shape[1], args.k.shape[1], args.causal);
    cpu::attention_forward(args);
}

void attention_backward(const AttentionBackwardArgs& args, const Exec& exec) {
    require(args.scale > 0.0, "attention: scale", "> 0", std::to_string(args.scale));
    require_attention(args.q, args.k, args.v, args.out, args.lse, args.key_begin, args.key_end);
    require_shape(args.d_q, args.q.shape, "attention: d_q");
    require_shape(args.d_out, args.q.shape, "attention: d_out");
    require_shape(args.d_k, args.k.shape, "attention: d_k");
    require_shape(args.d_v, args.v.shape, "attention: d_v");
    for (const ConstTensorView& t : {ConstTensorView(args.d_q), args.d_out,
                                     ConstTensorView(args.d_k), ConstTensorView(args.d_v)})
        require_dtype(t, args.q.dtype, "attention: dtype");
    if (exec.device.is_cuda()) return cuda::attention_backward(args, exec.stream);
    require_keys(args.key_begin, args.key_end, args.q.shape[1], args.k.shape[1], args.causal);
    cpu::attention_backward(args);
}

}  // namespace stoa
