#include "kernels/tree_cache.h"

#include <algorithm>

#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"
#include "kernels/device_memory.h"

namespace stoa {

std::int64_t tree_cache_bytes(const TreeRule& rule, std::int64_t n_kv_heads, std::int64_t head_dim,
                              std::int64_t capacity, DType dtype, Device device,
                              std::int64_t together) {
    if (device.is_cuda())
        return cuda::tree_cache_bytes(rule, n_kv_heads, head_dim, capacity, dtype);
    return cpu::tree_cache_values(rule, head_dim, capacity, dtype, together) * n_kv_heads *
           size_of(wide_dtype(dtype));
}

TreeCache make_tree_cache(const TreeRule& rule, std::int64_t n_kv_heads, std::int64_t head_dim,
                          std::int64_t capacity, DType dtype, Device device,
                          std::int64_t together) {
    require_tree_rule(rule);
    require(n_kv_heads >= 1 && head_dim >= 1, "tree_cache: heads", ">= 1 of >= 1 channels",
            std::to_string(n_kv_heads) + " of " + std::to_string(head_dim));
    require(capacity >= 1 && capacity < INT32_MAX, "tree_cache: capacity", "1 to 2^31 - 2 tokens",
            std::to_string(capacity));
    require(together >= 0, "tree_cache: together", ">= 0 tokens", std::to_string(together));
    require(together == 0 || dtype != DType::fp64, "tree_cache: dtype of a coded one",
            "fp32, bf16 or fp16", dtype_name(dtype));
    require(together == 0 || !device.is_cuda(), "tree_cache: device of a coded one", "the CPU",
            "a GPU");
    TreeCache cache{rule, n_kv_heads, head_dim, capacity, 0, dtype, device, {}, together, 0};
    cache.memory = make_buffer(
        tree_cache_bytes(rule, n_kv_heads, head_dim, capacity, dtype, device, together), device);
    return cache;
}

void tree_cache_append(TreeCache& cache, const ConstTensorView& k, const ConstTensorView& v,
                       const ConstTensorView& gate, const Exec& exec) {
    require_same_device(cache.device, exec, "tree_cache_append: cache");
    require(k.shape.rank == 3, "tree_cache_append: k", "(tokens, n_kv_heads, head_dim)",
            k.shape.str());
    const std::int64_t tokens = k.shape[0];
    require_shape(k, {tokens, cache.n_kv_heads, cache.head_dim}, "tree_cache_append: k");
    require_shape(v, k.shape, "tree_cache_append: v");
    require_dtype(k, cache.dtype, "tree_cache_append: k");
    require_dtype(v, cache.dtype, "tree_cache_append: v");
    if (!gate.empty()) {
        require_shape(gate, {tokens, cache.n_kv_heads}, "tree_cache_append: gate");
        require_dtype(gate, wide_dtype(cache.dtype), "tree_cache_append: gate");
    }
    require(cache.len + tokens <= cache.capacity, "tree_cache_append: tokens",
            "room for them in the capacity",
            std::to_string(tokens) + " behind " + std::to_string(cache.len) + " of " +
                std::to_string(cache.capacity));
    require(cache.together == 0 || tokens <= cache.together, "tree_cache_append: tokens",
            "as many at once as the cache is for",
            std::to_string(tokens) + " for " + std::to_string(cache.together));
    exec.device.is_cuda() ? cuda::tree_cache_append(cache, k, v, gate, exec.stream)
                          : cpu::tree_cache_append(cache, k, v, gate);
}

void tree_cache_attend(const TreeCache& cache, const TreeCacheAttendArgs& args, const Exec& exec) {
    require_same_device(cache.device, exec, "tree_cache_attend: cache");
    require(args.scale > 0.0, "tree_cache_attend: scale", "> 0", std::to_string(args.scale));
    require(args.q.shape.rank == 3, "tree_cache_attend: q", "(tokens, n_heads, head_dim)",
            args.q.shape.str());
    const std::int64_t tokens = args.q.shape[0], n_heads = args.q.shape[1];
    require_shape(args.q, {tokens, n_heads, cache.head_dim}, "tree_cache_attend: q");
    require_shape(args.out, args.q.shape, "tree_cache_attend: out");
    require(n_heads > 0 && n_heads % cache.n_kv_heads == 0, "tree_cache_attend: n_heads",
            "a multiple of n_kv_heads",
            std::to_string(n_heads) + " for " + std::to_string(cache.n_kv_heads));
    require_dtype(args.q, cache.dtype, "tree_cache_attend: q");
    require_dtype(args.out, cache.dtype, "tree_cache_attend: out");
    if (!args.sink_logit.empty()) {
        require_numel(args.sink_logit, n_heads, "tree_cache_attend: sink_logit");
        require_dtype(args.sink_logit, wide_dtype(cache.dtype), "tree_cache_attend: sink_logit");
    }
    require(args.begin >= 0 && args.begin + tokens <= cache.len, "tree_cache_attend: begin",
            "tokens that the cache holds",
            std::to_string(args.begin) + "+" + std::to_string(tokens) + " of " +
                std::to_string(cache.len));
    const TreeRule& rule = cache.rule;
    const std::int64_t near =
        std::max<std::int64_t>(0, args.begin / rule.leaf - rule.window / rule.leaf) * rule.leaf;
    require(tokens == 0 || near >= cache.first, "tree_cache_attend: begin",
            "a query whose local range is there",
            "that of " + std::to_string(args.begin) + " begins at " + std::to_string(near) + ", " +
                std::to_string(cache.first) + " is the first");
    exec.device.is_cuda() ? cuda::tree_cache_attend(cache, args, exec.stream)
                          : cpu::tree_cache_attend(cache, args);
}

}  // namespace stoa
