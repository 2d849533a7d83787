#pragma once
// kernels/cuda/launch.h for nvcc.
#include "kernels/cuda/check.h"
#include "kernels/cuda/launch_shape.h"

#define STOA_KERNEL __global__
#define STOA_DEVICE __device__
#define STOA_UNROLL_8 _Pragma("unroll 8")
#define STOA_CONSTANT const __grid_constant__  // a parameter that each thread reads where it lies

namespace stoa::cuda {

/// Starts kernel(args...); each argument becomes the parameter's type first. No launch where there
/// are no blocks.     errors: DeviceError
template <class... Params, class... Args>
void launch(const Launch& l, void (*kernel)(Params...), const Args&... args) {
    static_assert(sizeof...(Params) == sizeof...(Args));
    if (l.blocks == 0) return;
    if (l.blocks > 0x7fffffff)
        throw DeviceError({.what = "more blocks than a GPU takes", .where = l.name});
    kernel<<<dim3(static_cast<unsigned>(l.blocks)), dim3(static_cast<unsigned>(l.threads)),
             static_cast<std::size_t>(l.shared_bytes),
             static_cast<cudaStream_t>(l.stream.handle)>>>(static_cast<Params>(args)...);
    check_cuda(cudaGetLastError(), l.name);
}

__device__ inline int thread_index() { return static_cast<int>(threadIdx.x); }
__device__ inline int block_threads() { return static_cast<int>(blockDim.x); }
__device__ inline std::int64_t block_index() { return static_cast<std::int64_t>(blockIdx.x); }
__device__ inline std::int64_t grid_blocks() { return static_cast<std::int64_t>(gridDim.x); }

/// All threads of the block meet; what they wrote to shared memory before is seen after.
__device__ inline void sync_block() { __syncthreads(); }

/// The lanes of one aligned group of `width` threads (16 or 32), which all call this together.
__device__ inline unsigned group_mask(int width) {
    const unsigned lane = threadIdx.x & 31u;
    return width == 32 ? 0xffffffffu : 0xffffu << (lane & 16u);
}
/// The value of the lane `delta` above, within the group; undefined behind its end.
template <class T>
__device__ T shuffle_down(T value, int delta, int width = kWarp) {
    return __shfl_down_sync(group_mask(width), value, static_cast<unsigned>(delta), width);
}
/// The value of lane `lane` of the group.
template <class T>
__device__ T shuffle(T value, int lane, int width = kWarp) {
    return __shfl_sync(group_mask(width), value, lane, width);
}
/// Bit l: whether lane l of the warp calls with `bit`.
__device__ inline std::uint32_t warp_ballot(bool bit) { return __ballot_sync(0xffffffffu, bit); }

/// The index of the lowest bit that is set; bits is not 0.
__device__ inline int lowest_bit(std::uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }

__device__ inline int count_bits(std::uint32_t bits) { return __popc(bits); }

__device__ inline void atomic_or(std::int32_t* to, std::int32_t bits) { atomicOr(to, bits); }
/// Integers only: their sums do not depend on the order.
__device__ inline void atomic_add(std::int64_t* to, std::int64_t value) {
    atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}

/// An array that the threads of a block share. Between a write and another thread's access lies a
/// sync_block; the host build checks that.
template <class T>
class Shared {
public:
    __device__ explicit Shared(T* data, int) : data_(data) {}
    __device__ T read(int i) const { return data_[i]; }
    __device__ void write(int i, T value) const { data_[i] = value; }

private:
    T* data_;
};
/// The block's shared memory, cut into arrays in the order of the calls.
class SharedMemory {
public:
    template <class T>
    __device__ Shared<T> array(int count) {
        extern __shared__ double block_memory[];
        T* const data = reinterpret_cast<T*>(reinterpret_cast<char*>(block_memory) + used_);
        used_ += (count * static_cast<int>(sizeof(T)) + 15) / 16 * 16;
        return Shared<T>(data, count);
    }

private:
    int used_ = 0;
};

}  // namespace stoa::cuda
