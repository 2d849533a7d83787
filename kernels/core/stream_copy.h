#pragma once
// A copy of much memory that is not read again soon.
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace stoa {

/// memcpy that writes past the caches: the lines of `to` are not read first (a third less traffic),
/// and what the caches hold stays there. The ranges do not overlap.
inline void stream_copy(std::byte* to, const std::byte* from, std::int64_t bytes) {
#if defined(__SSE2__)
    constexpr std::int64_t kLine = 64, kWorthIt = 64 * kLine;
    if (bytes >= kWorthIt) {
        const auto head = static_cast<std::int64_t>(-reinterpret_cast<std::uintptr_t>(to) % kLine);
        std::memcpy(to, from, static_cast<std::size_t>(head));
        const std::int64_t lines = (bytes - head) / kLine;
        const auto* source = reinterpret_cast<const __m128i*>(from + head);
        auto* target = reinterpret_cast<__m128i*>(to + head);
        for (std::int64_t i = 0; i < lines; ++i, source += 4, target += 4) {
            const __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1),
                          c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
            _mm_stream_si128(target, a);
            _mm_stream_si128(target + 1, b);
            _mm_stream_si128(target + 2, c);
            _mm_stream_si128(target + 3, d);
        }
        _mm_sfence();
        const std::int64_t done = head + lines * kLine;
        to += done;
        from += done;
        bytes -= done;
    }
#endif
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

}  // namespace stoa
