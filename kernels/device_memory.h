#pragma once
// Memory of a device, and the copies between it and the host: all that the host reads of a tensor,
// or writes to it, is one of these lines. On the CPU both are the same memory.
#include <span>
#include <vector>

#include "kernels/core/buffer.h"
#include "kernels/core/exec.h"

namespace stoa {

/// Zeroed memory of the device.     errors: MemoryError, DeviceError
Buffer make_buffer(std::int64_t bytes, Device device);
/// Bytes of devices that such buffers of this process hold now, and the most at once.
std::int64_t held_device_bytes();
std::int64_t peak_device_bytes();
Tensor make_tensor(const Shape& shape, DType dtype, Device device);
/// Host memory that `device` copies from and to at full speed; not zeroed.     errors: MemoryError
Buffer make_copy_buffer(std::int64_t bytes, Device device);

/// to = from, byte for byte, in the order of the stream; where `to` is host memory, on return.
/// shapes: as many bytes; both may be host or device memory     errors: ShapeError, DeviceError
void copy(TensorView to, ConstTensorView from, const Exec& exec);
/// Waits for the stream.
void synchronize(const Exec& exec);

template <class T>
void upload(TensorView to, std::span<const T> from, const Exec& exec) {
    copy(to,
         {reinterpret_cast<const std::byte*>(from.data()),
          dtype_of<T>(),
          {static_cast<std::int64_t>(from.size())},
          {}},
         exec);
}
/// Waits for the stream.
template <class T>
std::vector<T> read_back(ConstTensorView x, const Exec& exec) {
    std::vector<T> values(static_cast<std::size_t>(x.bytes()) / sizeof(T));
    copy({reinterpret_cast<std::byte*>(values.data()), x.dtype, x.shape, {}}, x, exec);
    return values;
}

}  // namespace stoa
