#pragma once
// A collective on device memory, by way of the host: tensors are copied to pinned memory, the ranks
// do there what CPU ranks do, and the results are copied back. So sums have the CPU's order and
// bits, and ranks may share a GPU, which NCCL does not allow.
#include <span>

#include "kernels/cuda/device.h"
#include "kernels/device_memory.h"
#include "parallel/communicator.h"
#include "parallel/owned_parts.h"

namespace stoa {

/// What these take of it; the memory plan counts with them, too. Of an all-reduce or a broadcast it
/// is the tensor.
inline std::int64_t staged_chain_bytes(const ConstTensorView& values) {
    return 2 * align_up(values.bytes());
}
inline std::int64_t staged_sum_bytes(std::span<const PartSum> parts) {
    std::int64_t bytes = 0;
    for (const PartSum& p : parts)
        bytes += staged_chain_bytes(p.values);
    return bytes;
}
inline std::int64_t staged_copy_bytes(std::span<const PartCopy> parts) {
    std::int64_t bytes = 0;
    for (const PartCopy& p : parts)
        bytes += align_up(p.data.bytes());
    return bytes;
}

class Staged {
public:
    /// Room for `bytes` of tensors, each counted in steps of kAlignment.
    Staged(std::int64_t bytes, Device device, const Communicator& comm, Stream stream)
        : exec_{device, stream}, next_(comm.staging(bytes, exec_)), end_(next_ + bytes) {
        cuda::use_device(device.index);  // a queue's thread may be new to it
    }
    /// Host memory in the shape of t, without its values.
    TensorView place(const ConstTensorView& t) {
        const TensorView host{next_, t.dtype, t.shape, {}};
        next_ += align_up(t.bytes());
        require(host.data + t.bytes() <= end_, "staged collective", "room for all tensors",
                t.shape.str());
        return host;
    }
    /// A copy of t; there after wait().
    TensorView take(const ConstTensorView& t) {
        const TensorView host = place(t);
        cuda::copy_from_device(host.data, t.data, t.bytes(), exec_.stream);
        return host;
    }
    void wait() { synchronize(exec_); }
    /// t = host. The next collective of this group waits before it uses the memory again.
    void put(const TensorView& t, const TensorView& host) { copy(t, host, exec_); }

private:
    Exec exec_;
    std::byte *next_, *end_;
};

}  // namespace stoa
