#pragma once
// What forward and backward of the importance attention know of a run of keys.
#include <span>

#include "kernels/cpu/attention_panels.h"
#include "kernels/cpu/far_keys.h"
#include "kernels/cpu/head_matrix.h"
#include "kernels/cpu/scratch.h"
#include "kernels/importance_attention.h"

namespace stoa::cpu {

struct ImportanceSizes {
    std::int64_t batch, q_len, len, n_heads, n_kv_heads, dim;
    std::int64_t group() const { return n_heads / n_kv_heads; }
    std::int64_t first_query() const { return len - q_len; }  // its token
};
template <class Args>
ImportanceSizes sizes_of(const Args& a) {
    return {a.q.shape[0], a.q.shape[1], a.k.shape[1], a.q.shape[2], a.k.shape[2], a.q.shape[3]};
}

/// Key j of a run is seen by the queries from[j] <= t < to[j]. A key in the window is token[j] and
/// its gate grows with the distance; far keys have all of it.
template <class W>
struct SeenKeys {
    std::int32_t *token, *from, *to;
    W* gate;  // 0 for sinks and without gates
    bool far = false;
};

/// The tokens of one kv head of one batch entry.
template <class W>
struct Tokens {
    const std::int32_t *expiry, *begin;
    const W* gate;  // of token s at s * stride; or null
    std::int64_t stride, sinks, window;
    bool gated(std::int64_t s) const { return gate != nullptr && s - begin[s] >= sinks; }
};
template <class W, class Args>
Tokens<W> tokens_of(const Args& a, const ImportanceSizes& n, std::int64_t batch,
                    std::int64_t kv_head) {
    return {a.expiry.template as<std::int32_t>().data() + (batch * n.n_kv_heads + kv_head) * n.len,
            a.key_begin.template as<std::int32_t>().data() + batch * n.len,
            a.gate.empty()
                ? nullptr
                : a.gate.template as<W>().data() + batch * n.len * n.n_kv_heads + kv_head,
            n.n_kv_heads,
            a.rule.sinks,
            a.rule.window};
}

/// Keys [first, first + count) as their windows see them.
template <class Tag, class W>
SeenKeys<W> window_keys(const Tokens<W>& tokens, std::int64_t first, std::int64_t count) {
    std::int32_t* const memory = scratch<Tag, std::int32_t>(3 * count);
    SeenKeys<W> keys{memory, memory + count, memory + 2 * count, scratch<Tag, W>(count), false};
    for (std::int64_t j = 0; j < count; ++j) {
        const std::int64_t s = first + j;
        keys.token[j] = keys.from[j] = static_cast<std::int32_t>(s);
        keys.to[j] =
            static_cast<std::int32_t>(std::min<std::int64_t>(tokens.expiry[s], s + tokens.window));
        keys.gate[j] = tokens.gated(s) ? tokens.gate[s * tokens.stride] : W{0};
    }
    return keys;
}
/// Keys that have left the windows.
template <class Tag, class W>
SeenKeys<W> far_keys(const Tokens<W>& tokens, std::span<const std::int32_t> far) {
    const std::int64_t count = std::ssize(far);
    std::int32_t* const memory = scratch<Tag, std::int32_t>(3 * count);
    SeenKeys<W> keys{memory, memory + count, memory + 2 * count, scratch<Tag, W>(count), true};
    for (std::int64_t j = 0; j < count; ++j) {
        const std::int32_t s = far[static_cast<std::size_t>(j)];
        keys.token[j] = s;
        keys.from[j] = static_cast<std::int32_t>(s + tokens.window);
        keys.to[j] = tokens.expiry[s];
        keys.gate[j] = tokens.gated(s) ? tokens.gate[s * tokens.stride] : W{0};
    }
    return keys;
}

/// min(1, distance / window)
template <class W>
W ramp(std::int32_t distance, W inverse_window) {
    const W x = static_cast<W>(distance) * inverse_window;
    return x < W{1} ? x : W{1};
}

/// The scores z (lanes) of key j against the queries t, t + 1, ...: its gate is added. Whether all
/// `rows` queries see it.
template <std::int64_t kLanesOfRow, class W>
bool gate_scores(W* z, const SeenKeys<W>& keys, std::int64_t j, std::int32_t t, std::int64_t rows,
                 W inverse_window) {
    const W gate = keys.gate[j];
    const std::int32_t distance = t - keys.token[j];
    if (gate != W{0} && keys.far)
        for (std::int32_t q = 0; q < kLanesOfRow; ++q)
            z[q] += gate;
    if (gate != W{0} && !keys.far)
        for (std::int32_t q = 0; q < kLanesOfRow; ++q)
            z[q] += ramp(distance + q, inverse_window) * gate;
    return keys.from[j] <= t && t + rows <= keys.to[j];
}
template <class W>
bool sees(const SeenKeys<W>& keys, std::int64_t j, std::int32_t t) {
    return keys.from[j] <= t && t < keys.to[j];
}

/// The far keys' rows of one head, one after the other.
template <class Tag, class T>
HeadMatrix<T> gather(const HeadMatrix<T>& m, std::span<const std::int32_t> far, std::int64_t dim) {
    T* const rows = scratch<Tag, T>(std::max<std::int64_t>(1, std::ssize(far)) * dim);
    for (std::int64_t j = 0; j < std::ssize(far); ++j)
        std::copy_n(m.row(far[static_cast<std::size_t>(j)]), dim, rows + j * dim);
    return {rows, dim};
}

}  // namespace stoa::cpu
