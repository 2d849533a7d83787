#pragma once
// The rows of an importance cache on the GPU: which tokens it keeps, and where. What is counted
// (kernels/importance_cache.h) are functions of the length, so that the host knows them without
// having to ask.
#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.h"
#include "kernels/importance_cache.h"

namespace stoa::cuda {

/// A cache as kernels read it.
template <class T, class W = Wide<T>>
struct CacheRows {
    T *k, *v;            // (heads, rows, dim)
    W* gate;             // (heads, rows)
    double* importance;  // (heads, rows)
    std::int64_t heads, rows, dim;
    KeyRule rule;
    std::int64_t length, far_keys, window_begin, window_keys;

    STOA_HD std::int64_t far_room() const { return rule.sinks + rule.keep; }
    STOA_HD std::int64_t held() const { return far_keys + window_keys; }
    /// Of a held token, which are counted by age.
    STOA_HD std::int64_t row_of(std::int64_t token) const {
        return token < far_keys ? token : window_begin + token - far_keys;
    }
};
template <class T, class W = Wide<T>>
CacheRows<T> rows_of(const ImportanceCache& c) {
    const Shape& shape = c.k.view.shape;
    return {c.k.as<T>().data(),
            c.v.as<T>().data(),
            c.gate.as<W>().data(),
            c.importance.as<double>().data(),
            shape[0],
            shape[1],
            shape[2],
            c.rule,
            c.length,
            c.far_keys,
            c.window_begin,
            c.window_keys};
}

/// Tokens that join: k, v (tokens, heads, dim); gate, importance (tokens, heads), each or null.
template <class T, class W = Wide<T>>
struct NewTokens {
    const T *k, *v;
    const W* gate;
    const float* importance;  // one of the two
    const double* importance64;
    std::int64_t tokens;

    STOA_DEVICE W gate_of(std::int64_t at) const { return gate == nullptr ? W{0} : gate[at]; }
    STOA_DEVICE double importance_of(std::int64_t at) const {
        if (importance != nullptr) return importance[at];
        return importance64 == nullptr ? 0.0 : importance64[at];
    }
};
template <class T, class W = Wide<T>>
NewTokens<T> new_tokens(const ImportanceCacheKeys& a) {
    const bool given = !a.importance.empty(), wide = given && a.importance.dtype == DType::fp64;
    return {a.k.as<T>().data(),
            a.v.as<T>().data(),
            a.gate.empty() ? nullptr : a.gate.as<W>().data(),
            given && !wide ? a.importance.as<float>().data() : nullptr,
            wide ? a.importance.as<double>().data() : nullptr,
            a.k.shape[0]};
}

/// The one token of `keys` joins the window.
template <class T>
void push(ImportanceCache& c, const ImportanceCacheKeys& keys, Stream stream);

/// The held tokens by age, and the new ones behind them, as one short document.
template <class T, class W = Wide<T>>
struct PartRows {
    std::int64_t len, heads, dim;
    Scratch k, v;              // (len, heads, dim) T
    Scratch gate, importance;  // (len, heads) W, fp64
    Scratch expiry;            // (heads, len) int32, as kernels/cpu/importance_rows.h says
    PartRows(const ImportanceCache& c, const ImportanceCacheKeys& keys, Stream stream);
};

/// The new tokens of a part join, as after a push of each.
template <class T>
void take(ImportanceCache& c, const PartRows<T>& part, Stream stream);

}  // namespace stoa::cuda
