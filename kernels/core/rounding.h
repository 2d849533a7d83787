#pragma once
// Stochastic rounding of sums that are stored below fp32: an addend smaller than half a step of the
// sum would be lost every time when rounded to nearest; rounded up with the probability of the
// fraction, it is kept on average.
#include <algorithm>
#include <cstdint>

#include "kernels/core/philox.h"

namespace stoa {

/// Who draws what: element (r, c) of the tensor at hand is element
/// e = (row_begin + r) * logical_cols + col_begin + c of the whole one, and draws the 16-bit half
/// e % 2 of word e / 2 % 4 of philox(key, e / 8, call). So a shard rounds as the whole would, and
/// another `call` (step, micro-batch, rows) draws anew. Without logical_cols: to nearest.
struct StochasticRounding {
    std::uint64_t key = 0, call = 0;
    std::int64_t row_begin = 0, col_begin = 0, logical_cols = 0;
    /// On a device, what is added to call: a word in its memory, for a kernel that is started again
    /// with the arguments it had (kernels/cuda/graph.h). Null: nothing.
    const std::uint64_t* call_word = nullptr;
    STOA_HD bool enabled() const { return logical_cols > 0; }
    STOA_HD std::int64_t element(std::int64_t row, std::int64_t col) const {
        return (row_begin + row) * logical_cols + col_begin + col;
    }
};

/// The draw of element e of the whole tensor.
STOA_HD inline std::uint32_t random_half(const StochasticRounding& s, std::int64_t e) {
    const std::uint64_t call = s.call_word == nullptr ? s.call : s.call + *s.call_word;
    const PhiloxBlock words = philox(s.key, static_cast<std::uint64_t>(e / 8), call);
    const std::uint32_t word = words[static_cast<std::size_t>(e / 2 % 4)];
    return e % 2 == 0 ? word & 0xffffu : word >> 16;
}

constexpr std::int64_t kRandomRun = 128;

/// out[i] = the draw of element first + i, i < n <= kRandomRun. The rounds of philox.h on 17
/// blocks side by side, in lanes that the compiler vectorises; conformance holds them to it.
inline void random_halves(std::uint32_t* out, const StochasticRounding& s, std::int64_t first,
                          std::int64_t n) {
    constexpr int kLanes = kRandomRun / 8 + 1;  // a run may begin inside a block
    std::uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
    const auto block = static_cast<std::uint64_t>(first / 8);
    for (int l = 0; l < kLanes; ++l) {
        const std::uint64_t b = block + static_cast<std::uint64_t>(l);
        c0[l] = static_cast<std::uint32_t>(b);
        c1[l] = static_cast<std::uint32_t>(b >> 32);
        c2[l] = static_cast<std::uint32_t>(s.call);
        c3[l] = static_cast<std::uint32_t>(s.call >> 32);
    }
    auto k0 = static_cast<std::uint32_t>(s.key), k1 = static_cast<std::uint32_t>(s.key >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
        for (int l = 0; l < kLanes; ++l) {
            const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0[l];
            const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c2[l];
            c0[l] = static_cast<std::uint32_t>(p1 >> 32) ^ c1[l] ^ k0;
            c1[l] = static_cast<std::uint32_t>(p1);
            c2[l] = static_cast<std::uint32_t>(p0 >> 32) ^ c3[l] ^ k1;
            c3[l] = static_cast<std::uint32_t>(p0);
        }
    std::uint32_t halves[8 * kLanes];
    for (int l = 0; l < kLanes; ++l) {
        const std::uint32_t words[4] = {c0[l], c1[l], c2[l], c3[l]};
        for (int w = 0; w < 4; ++w) {
            halves[8 * l + 2 * w] = words[w] & 0xffffu;
            halves[8 * l + 2 * w + 1] = words[w] >> 16;
        }
    }
    std::copy_n(halves + first % 8, n, out);
}

}  // namespace stoa
