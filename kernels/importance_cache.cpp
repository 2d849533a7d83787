#include "kernels/importance_cache.h"

#include "kernels/attention_checks.h"
#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"
#include "kernels/device_memory.h"

namespace stoa {
namespace {

void require_keys(const ImportanceCache& cache, const ImportanceCacheKeys& keys,
                  std::int64_t tokens) {
    const std::int64_t n_kv_heads = cache.k.view.shape[0], dim = cache.k.view.shape[2];
    for (const ConstTensorView& t : {keys.k, keys.v}) {
        require_shape(t, {tokens, n_kv_heads, dim}, "importance_cache: k, v");
        require_dtype(t, cache.k.view.dtype, "importance_cache: dtype");
    }
    if (!keys.gate.empty()) {
        require_shape(keys.gate, {tokens, n_kv_heads}, "importance_cache: gate");
        require_dtype(keys.gate, cache.gate.view.dtype, "importance_cache: gate");
    }
    if (cache.rule.keep > 0)
        require_shape(keys.importance, {tokens, n_kv_heads}, "importance_cache: importance");
}

}  // namespace

ImportanceCache make_importance_cache(const KeyRule& rule, std::int64_t n_kv_heads,
                                      std::int64_t head_dim, DType dtype, Device device) {
    require_rule(rule);
    require(n_kv_heads > 0 && head_dim > 0, "importance_cache: n_kv_heads, head_dim", "> 0",
            std::to_string(n_kv_heads) + ", " + std::to_string(head_dim));
    // Twice the window, so that it moves back to the beginning only once per window.
    const std::int64_t rows = rule.sinks + rule.keep + 2 * rule.window;
    return {.rule = rule,
            .window_begin = rule.sinks + rule.keep,
            .k = make_tensor({n_kv_heads, rows, head_dim}, dtype, device),
            .v = make_tensor({n_kv_heads, rows, head_dim}, dtype, device),
            .gate = make_tensor({n_kv_heads, rows}, wide_dtype(dtype), device),
            .importance = make_tensor({n_kv_heads, rows}, DType::fp64, device)};
}

std::int64_t importance_cache_bytes(const ImportanceCache& cache) {
    return cache.k.view.bytes() + cache.v.view.bytes() + cache.gate.view.bytes() +
           cache.importance.view.bytes();
}

void importance_cache_attend(ImportanceCache& cache, const ImportanceCacheArgs& args,
                             const Exec& exec) {
    require_same_device(cache.k.view.device, exec, "importance_cache: cache");
    require(args.scale > 0.0, "importance_cache: scale", "> 0", std::to_string(args.scale));
    require(args.q.shape.rank == 3, "importance_cache: q", "(q_len, n_heads, head_dim)",
            args.q.shape.str());
    const std::int64_t q_len = args.q.shape[0], n_heads = args.q.shape[1];
    const std::int64_t n_kv_heads = cache.k.view.shape[0], dim = cache.k.view.shape[2];
    const DType dtype = cache.k.view.dtype;
    require(n_heads % n_kv_heads == 0, "importance_cache: n_kv_heads", "divisor of n_heads",
            std::to_string(n_kv_heads) + " for q " + args.q.shape.str());
    require_shape(args.q, {q_len, n_heads, dim}, "importance_cache: q");
    require_shape(args.out, args.q.shape, "importance_cache: out");
    for (const ConstTensorView& t : {args.q, ConstTensorView(args.out)})
        require_dtype(t, dtype, "importance_cache: dtype");
    require_keys(cache, {args.k, args.v, args.gate, args.importance}, q_len);
    if (!args.sink_logit.empty()) {
        require_numel(args.sink_logit, n_heads, "importance_cache: sink_logit");
        require_dtype(args.sink_logit, wide_dtype(dtype), "importance_cache: sink_logit");
    }
    exec.device.is_cuda() ? cuda::importance_cache_attend(cache, args, exec.stream)
                          : cpu::importance_cache_attend(cache, args);
}

void importance_cache_append(ImportanceCache& cache, const ImportanceCacheKeys& keys,
                             const Exec& exec) {
    require_same_device(cache.k.view.device, exec, "importance_cache_append: cache");
    require(keys.k.shape.rank == 3, "importance_cache: k", "(tokens, n_kv_heads, head_dim)",
            keys.k.shape.str());
    require_keys(cache, keys, keys.k.shape[0]);
    exec.device.is_cuda() ? cuda::importance_cache_append(cache, keys, exec.stream)
                          : cpu::importance_cache_append(cache, keys);
}

}  // namespace stoa
