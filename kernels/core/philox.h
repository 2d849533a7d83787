#pragma once
// Philox4x32-10, a counter-based generator [Salmon et al., SC 2011]: the output is a pure function
// of (key, counter), so any rank can compute any draw without the ones before it.
#include <array>
#include <cstdint>

#include "kernels/core/numeric.h"

namespace stoa {

using PhiloxBlock = std::array<std::uint32_t, 4>;

STOA_HD inline PhiloxBlock philox(std::uint64_t key, std::uint64_t counter_lo,
                                  std::uint64_t counter_hi) {
    PhiloxBlock c{
        static_cast<std::uint32_t>(counter_lo), static_cast<std::uint32_t>(counter_lo >> 32),
        static_cast<std::uint32_t>(counter_hi), static_cast<std::uint32_t>(counter_hi >> 32)};
    auto k0 = static_cast<std::uint32_t>(key);
    auto k1 = static_cast<std::uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c[0];
        const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c[2];
        c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(p1),
             static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(p0)};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

/// 64 bits mixed from two words; the way keys are derived from (seed, what it is for).
inline std::uint64_t mix_key(std::uint64_t a, std::uint64_t b) {
    const PhiloxBlock r = philox(a, b, 0x73746f61);  // "stoa"
    return std::uint64_t{r[0]} | (std::uint64_t{r[1]} << 32);
}

/// A sequence of draws at one counter: draw d of stream (key, index).
class Draws {
public:
    Draws(std::uint64_t key, std::uint64_t index) : key_(key), index_(index) {}
    std::uint32_t next_u32() {
        if (used_ == 4) {
            block_ = philox(key_, index_, block_index_++);
            used_ = 0;
        }
        return block_[used_++];
    }
    std::uint64_t next_u64() {
        const std::uint64_t lo = next_u32();
        return lo | (std::uint64_t{next_u32()} << 32);
    }
    /// Uniform in [0, n), n >= 1, without modulo bias. [Lemire 2019, rejection on the low word]
    std::uint32_t below(std::uint32_t n) {
        std::uint64_t m = std::uint64_t{next_u32()} * n;
        const std::uint32_t threshold = (0u - n) % n;
        while (static_cast<std::uint32_t>(m) < threshold)
            m = std::uint64_t{next_u32()} * n;
        return static_cast<std::uint32_t>(m >> 32);
    }
    /// Uniform integer in [lo, hi], both included.
    std::int64_t between(std::int64_t lo, std::int64_t hi) {
        return lo + static_cast<std::int64_t>(below(static_cast<std::uint32_t>(hi - lo + 1)));
    }

private:
    std::uint64_t key_;
    std::uint64_t index_;
    std::uint64_t block_index_ = 0;
    std::size_t used_ = 4;
    PhiloxBlock block_{};
};

/// A keyed permutation of [0, n), evaluated at one point in O(1): a 4-round Feistel network over
/// the next even power of two with cycle walking. No index is built; any rank can start anywhere.
inline std::uint64_t permute(std::uint64_t key, std::uint64_t n, std::uint64_t i) {
    if (n <= 1) return 0;
    int half_bits = 1;
    while (half_bits < 32 && (std::uint64_t{1} << (2 * half_bits)) < n)
        ++half_bits;
    const std::uint64_t mask = (std::uint64_t{1} << half_bits) - 1;
    do {
        std::uint64_t left = i >> half_bits;
        std::uint64_t right = i & mask;
        for (std::uint64_t round = 0; round < 4; ++round) {
            const std::uint64_t next = left ^ (philox(key, right, round)[0] & mask);
            left = right;
            right = next;
        }
        i = (left << half_bits) | right;
    } while (i >= n);
    return i;
}

}  // namespace stoa
