#pragma once
// What forward and backward of the dense rows know of rows and gates.
#include "kernels/cpu/attention_panels.h"
#include "kernels/cpu/importance_keys.h"

namespace stoa::cpu {

/// The keys [begin, end) of up to kRows rows, ascending; a row's own token is end - 1. What lies
/// beyond the rows sees nothing.
template <std::int64_t kRows>
struct RowKeys {
    alignas(64) std::int32_t begin[kRows] = {}, end[kRows] = {};
    std::int64_t rows = 0;
    RowKeys(std::span<const std::int32_t> tokens, const std::int32_t* document)
        : rows(std::ssize(tokens)) {
        for (std::int64_t r = 0; r < rows; ++r) {
            const std::int32_t t = tokens[static_cast<std::size_t>(r)];
            begin[r] = document[t];
            end[r] = t + 1;
        }
    }
    // Documents begin in the order of their tokens.
    std::int64_t first() const { return begin[0]; }
    std::int64_t last() const { return end[rows - 1]; }
};

/// min(1, distance / window) of token s from the query before whose `end` it lies.
template <class W>
W ramp_before(std::int32_t end, std::int32_t s, W inverse_window) {
    const W x = static_cast<W>(end - 1 - s) * inverse_window;
    return x < W{1} ? x : W{1};
}

/// The scores z of key s against queries whose keys end at end[r]: its gate is added. Inside
/// vectorised().
template <std::int64_t kLanesOfRow, class W>
void add_gate(W* z, const Tokens<W>& tokens, std::int64_t s, const std::int32_t* end) {
    if (!tokens.gated(s)) return;
    const W gate = tokens.gate[s * tokens.stride],
            inverse_window = W{1} / static_cast<W>(tokens.window);
    const auto token = static_cast<std::int32_t>(s);
#pragma GCC ivdep
    for (std::int64_t r = 0; r < kLanesOfRow; ++r)
        z[r] += ramp_before(end[r], token, inverse_window) * gate;
}

}  // namespace stoa::cpu
