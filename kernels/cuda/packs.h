#pragma once
// Neighbouring values at once: one thread's accesses are up to 16 bytes wide where the address
// allows, and one by one where it does not.
#include <cstring>

#include "kernels/cuda/lane_groups.h"

namespace stoa::cuda {

template <class T, int N>
struct Pack {
    T v[N];
};
constexpr int kPack = 8;

/// The widest access that cuts `bytes` into whole parts.
constexpr int access_bytes(int bytes) {
    return bytes % 16 == 0 ? 16 : bytes % 8 == 0 ? 8 : bytes % 4 == 0 ? 4 : 1;
}
template <int Bytes>
struct [[gnu::may_alias]] alignas(Bytes) Words {
    std::uint32_t w[Bytes / 4];
};
template <>
struct [[gnu::may_alias]] Words<1> {
    std::uint8_t w;
};

template <class T, int N>
STOA_DEVICE bool one_access(const T* x, std::int64_t left) {
    constexpr int kBytes = access_bytes(static_cast<int>(sizeof(T)) * N);
    return left >= N && reinterpret_cast<std::uintptr_t>(x) % kBytes == 0;
}

/// x[at] .. x[at + N - 1]; zeros from x[n] on.
template <int N, class T>
STOA_DEVICE Pack<T, N> load_pack(const T* x, std::int64_t at, std::int64_t n) {
    constexpr int kBytes = access_bytes(static_cast<int>(sizeof(T)) * N);
    Pack<T, N> pack;
    x += at;
    if (one_access<T, N>(x, n - at)) {
        Words<kBytes> words[sizeof pack / kBytes];
        for (std::size_t i = 0; i < sizeof pack / kBytes; ++i)
            words[i] = reinterpret_cast<const Words<kBytes>*>(x)[i];
        std::memcpy(&pack, words, sizeof pack);
    } else {
        for (int i = 0; i < N; ++i)
            pack.v[i] = at + i < n ? x[i] : T{};
    }
    return pack;
}

/// The counterpart; nothing from x[n] on.
template <int N, class T>
STOA_DEVICE void store_pack(T* x, std::int64_t at, std::int64_t n, const Pack<T, N>& pack) {
    constexpr int kBytes = access_bytes(static_cast<int>(sizeof(T)) * N);
    x += at;
    if (one_access<T, N>(x, n - at)) {
        Words<kBytes> words[sizeof pack / kBytes];
        std::memcpy(words, &pack, sizeof pack);
        for (std::size_t i = 0; i < sizeof pack / kBytes; ++i)
            reinterpret_cast<Words<kBytes>*>(x)[i] = words[i];
    } else {
        for (int i = 0; i < N; ++i)
            if (at + i < n) x[i] = pack.v[i];
    }
}

/// The first value of the caller's pack.
STOA_DEVICE inline std::int64_t pack_begin() { return global_thread() * kPack; }
/// A launch with a pack of n values a thread.
inline Launch over_packs(const char* name, std::int64_t n, Stream stream) {
    return {.name = name,
            .blocks = blocks_for(n, kThreads * kPack),
            .threads = kThreads,
            .stream = stream};
}

}  // namespace stoa::cuda
