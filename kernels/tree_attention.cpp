#include "kernels/tree_attention.h"

#include <algorithm>

#include "kernels/attention_checks.h"
#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"

namespace stoa {
void require_tree_rule(const TreeRule& r) {
    require(r.leaf >= 1, "tree_attention: leaf", ">= 1", std::to_string(r.leaf));
    require(r.window >= r.leaf && r.window % r.leaf == 0, "tree_attention: window",
            "a multiple of leaf", std::to_string(r.window) + " for leaf " + std::to_string(r.leaf));
    require(r.fanout >= 2, "tree_attention: fanout", ">= 2", std::to_string(r.fanout));
    require(r.beam >= 1, "tree_attention: beam", ">= 1", std::to_string(r.beam));
    require(r.sinks >= 0 && r.sinks <= r.leaf, "tree_attention: sinks", "within the first leaf",
            std::to_string(r.sinks));
}

namespace {

template <class Args>
void require_attention(const Args& a) {
    require(a.scale > 0.0, "tree_attention: scale", "> 0", std::to_string(a.scale));
    require_tree_rule(a.rule);
    require(a.q.shape.rank == 4, "tree_attention: q", "(batch, len, n_heads, head_dim)",
            a.q.shape.str());
    const std::int64_t batch = a.q.shape[0], len = a.q.shape[1], n_heads = a.q.shape[2];
    require(a.k.shape.rank == 4 && a.k.shape[0] == batch && a.k.shape[1] == len &&
                a.k.shape[3] == a.q.shape[3],
            "tree_attention: k",
            "(batch, len, n_kv_heads, head_dim) with the batch, len and head_dim of q",
            a.k.shape.str() + " for q " + a.q.shape.str());
    const std::int64_t n_kv_heads = a.k.shape[2];
    require(n_kv_heads > 0 && n_heads % n_kv_heads == 0, "tree_attention: n_kv_heads",
            "divisor of n_heads", a.k.shape.str() + " for q " + a.q.shape.str());
    require(len < INT32_MAX, "tree_attention: len", "below 2^31", std::to_string(len));
    require_shape(a.v, a.k.shape, "tree_attention: v");
    require_shape(a.out, a.q.shape, "tree_attention: out");
    require_shape(a.lse, {batch, n_heads, len}, "tree_attention: lse");
    require_shape(a.selection,
                  {batch * n_kv_heads, len, tree_levels(a.rule, len), tree_slots(a.rule)},
                  "tree_attention: selection");
    require_dtype(a.selection, DType::int32, "tree_attention: selection");
    const DType wide = wide_dtype(a.q.dtype);
    for (const ConstTensorView& t : {a.k, a.v, ConstTensorView(a.out)})
        require_dtype(t, a.q.dtype, "tree_attention: dtype");
    require_dtype(a.lse, wide, "tree_attention: lse");
    if (!a.gate.empty()) {
        require_shape(a.gate, {batch, len, n_kv_heads}, "tree_attention: gate");
        require_dtype(a.gate, wide, "tree_attention: gate");
    }
    if (!a.sink_logit.empty()) {
        require_numel(a.sink_logit, n_heads, "tree_attention: sink_logit");
        require_dtype(a.sink_logit, wide, "tree_attention: sink_logit");
    }
    require_documents(a.key_begin, batch, len, "tree_attention: key_begin");
}

}  // namespace

std::int64_t tree_levels(const TreeRule& rule, std::int64_t len) {
    std::int64_t levels = 0;
    for (std::int64_t nodes = std::max<std::int64_t>(0, len - rule.window) / rule.leaf; nodes > 0;
         nodes /= rule.fanout)
        ++levels;
    return std::max<std::int64_t>(1, levels);
}

std::int64_t tree_slots(const TreeRule& rule) { return rule.beam + (rule.sinks > 0 ? 1 : 0); }

void tree_attention_forward(const TreeAttentionArgs& args, const Exec& exec) {
    require_attention(args);
    exec.device.is_cuda() ? cuda::tree_attention_forward(args, exec.stream)
                          : cpu::tree_attention_forward(args);
}

void tree_attention_backward(const TreeAttentionBackwardArgs& args, const Exec& exec) {
    require_attention(args);
    require_shape(args.d_out, args.q.shape, "tree_attention: d_out");
    require_dtype(args.d_out, args.q.dtype, "tree_attention: d_out");
    require_like(args.d_q, args.q, "tree_attention: d_q");
    require_like(args.d_k, args.k, "tree_attention: d_k");
    require_like(args.d_v, args.v, "tree_attention: d_v");
    require_like(args.d_gate, args.gate, "tree_attention: d_gate");
    require(args.d_sink.empty() == args.sink_logit.empty(), "tree_attention: d_sink",
            "given where sink_logit is", args.d_sink.shape.str());
    if (!args.d_sink.empty()) {
        require_shape(args.d_sink, {args.q.shape[0], args.q.shape[1], args.q.shape[2]},
                      "tree_attention: d_sink");
        require_dtype(args.d_sink, wide_dtype(args.q.dtype), "tree_attention: d_sink");
    }
    exec.device.is_cuda() ? cuda::tree_attention_backward(args, exec.stream)
                          : cpu::tree_attention_backward(args);
}

}  // namespace stoa
