#pragma once
// Which tokens an importance cache keeps, and in which rows.
#include "kernels/importance_cache.h"

namespace stoa::cpu {

/// Rows of one head: those of far keys, then the window somewhere in the rest.
inline std::int64_t far_room(const ImportanceCache& c) { return c.rule.sinks + c.rule.keep; }
inline std::int64_t row_count(const ImportanceCache& c) { return c.k.view.shape[1]; }

/// The cache's tokens are held tokens 0, 1, ... in order of age, and new ones follow. What is far
/// in the cache is far from all new ones, too, and sinks come first.
inline std::int64_t held(const ImportanceCache& c) { return c.far_keys + c.window_keys; }
inline std::int64_t row_of(const ImportanceCache& c, std::int64_t token) {
    return token < c.far_keys ? token : c.window_begin + token - c.far_keys;
}

/// The one token of `keys` joins the window. O(keep)
void push(ImportanceCache& c, const ImportanceCacheKeys& keys);

/// expiry (n_kv_heads, held + count) of the sequence that ends with `count` new tokens.
/// importance (count, n_kv_heads). O(log keep) per token
Tensor select_with(const ImportanceCache& c, const ConstTensorView& importance, std::int64_t count);

/// The tokens of `keys` join, by their select_with: as after a push of each.
void take(ImportanceCache& c, const ImportanceCacheKeys& keys, const Tensor& expiry);

}  // namespace stoa::cpu
