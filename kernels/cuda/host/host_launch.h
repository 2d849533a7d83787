#pragma once
// kernels/cuda/launch.h for the host compiler.
#include <bit>
#include <cstring>
#include <tuple>

#include "kernels/cuda/host/fibers.h"
#include "kernels/cuda/host/recording.h"
#include "kernels/cuda/launch_shape.h"

#define STOA_KERNEL
#define STOA_DEVICE
#define STOA_UNROLL_8
#define STOA_CONSTANT const

namespace stoa::cuda {

template <class... Params, class... Args>
void launch(const Launch& l, void (*kernel)(Params...), const Args&... args) {
    static_assert(sizeof...(Params) == sizeof...(Args));
    if (l.blocks == 0) return;
    host::start(
        l, reinterpret_cast<const void*>(kernel),
        [l, kernel, given = std::tuple<Params...>(args...)] {
            host::run(l, [&] { std::apply(kernel, given); });
        },
        static_cast<Params>(args)...);
}

inline int thread_index() { return host::position().thread; }
inline int block_threads() { return host::position().threads; }
inline std::int64_t block_index() { return host::position().block; }
inline std::int64_t grid_blocks() { return host::position().blocks; }

inline void sync_block() { host::meet_block(); }

template <class T>
T exchanged(T value, int from, int width) {
    static_assert(sizeof(T) <= sizeof(std::uint64_t));
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = host::exchange(bits, from, width);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}
template <class T>
T shuffle_down(T value, int delta, int width = kWarp) {
    const int lane = thread_index() % width, from = lane + delta;
    return exchanged(value, from < width ? from : lane, width);
}
template <class T>
T shuffle(T value, int lane, int width = kWarp) {
    return exchanged(value, lane, width);
}
inline std::uint32_t warp_ballot(bool bit) { return host::ballot(bit); }

inline int lowest_bit(std::uint32_t bits) { return std::countr_zero(bits); }

inline int count_bits(std::uint32_t bits) { return std::popcount(bits); }

inline void atomic_or(std::int32_t* to, std::int32_t bits) { *to |= bits; }
inline void atomic_add(std::int64_t* to, std::int64_t value) { *to += value; }

template <class T>
class Shared {
public:
    Shared(std::int64_t offset_bytes, int count) : offset_(offset_bytes), count_(count) {}
    T read(int i) const {
        T value{};
        i = host::shifted(i);
        host::access(place(i), i, count_, false);
        std::memcpy(&value, host::shared_memory() + place(i), sizeof(T));
        return value;
    }
    void write(int i, T value) const {
        i = host::shifted(i);
        host::access(place(i), i, count_, true);
        std::memcpy(host::shared_memory() + place(i), &value, sizeof(T));
    }

private:
    std::int64_t place(int i) const {
        return offset_ + static_cast<std::int64_t>(i) * static_cast<std::int64_t>(sizeof(T));
    }
    std::int64_t offset_;
    int count_;
};
class SharedMemory {
public:
    template <class T>
    Shared<T> array(int count) {
        const Shared<T> array(used_, count);
        const auto bytes = static_cast<std::int64_t>(count) * static_cast<std::int64_t>(sizeof(T));
        host::require_shared(used_ + bytes);
        used_ += (bytes + 15) / 16 * 16;
        return array;
    }

private:
    std::int64_t used_ = 0;
};

}  // namespace stoa::cuda
