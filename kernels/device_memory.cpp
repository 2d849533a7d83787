#include "kernels/device_memory.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>

#include "kernels/cuda/device.h"

namespace stoa {

namespace {

// Statistics only.
struct Held {
    std::mutex mutex;
    std::int64_t bytes = 0, most = 0;
    std::map<std::byte*, std::int64_t> buffers;
};
Held& held() {
    static Held* const h = new Held;  // outlives what is released at the end of the program
    return *h;
}

void release_counted(std::byte* data) noexcept {
    {
        const std::scoped_lock lock(held().mutex);
        if (const auto at = held().buffers.find(data); at != held().buffers.end()) {
            held().bytes -= at->second;
            held().buffers.erase(at);
        }
    }
    cuda::release(data);
}

}  // namespace

std::int64_t held_device_bytes() {
    const std::scoped_lock lock(held().mutex);
    return held().bytes;
}
std::int64_t peak_device_bytes() {
    const std::scoped_lock lock(held().mutex);
    return held().most;
}

Buffer make_buffer(std::int64_t bytes, Device device) {
    if (!device.is_cuda()) return Buffer(bytes);
    cuda::use_device(device.index);
    Buffer buffer(cuda::allocate(bytes), bytes, release_counted);
    {
        const std::scoped_lock lock(held().mutex);
        held().buffers[buffer.data()] = bytes;
        held().bytes += bytes;
        held().most = std::max(held().most, held().bytes);
    }
    cuda::fill_bytes(buffer.data(), 0, bytes, {});
    cuda::synchronize({});
    return buffer;
}

Tensor make_tensor(const Shape& shape, DType dtype, Device device) {
    Tensor t;
    t.buffer = make_buffer(shape.numel() * size_of(dtype), device);
    t.view = {t.buffer.data(), dtype, shape, device};
    return t;
}

Buffer make_copy_buffer(std::int64_t bytes, Device device) {
    if (!device.is_cuda()) return Buffer(bytes);
    return {cuda::allocate_pinned(bytes), bytes, cuda::release_pinned};
}

void copy(TensorView to, ConstTensorView from, const Exec& exec) {
    const std::int64_t bytes = from.bytes();
    require(to.bytes() == bytes, "copy", "as many bytes", to.shape.str() + ", " + from.shape.str());
    if (bytes == 0) return;
    if (to.device.is_cuda() && from.device.is_cuda())
        return cuda::copy_on_device(to.data, from.data, bytes, exec.stream);
    if (to.device.is_cuda()) return cuda::copy_to_device(to.data, from.data, bytes, exec.stream);
    if (!from.device.is_cuda()) {
        std::memmove(to.data, from.data, static_cast<std::size_t>(bytes));
        return;
    }
    cuda::copy_from_device(to.data, from.data, bytes, exec.stream);
    cuda::synchronize(exec.stream);
}

void synchronize(const Exec& exec) {
    if (exec.device.is_cuda()) cuda::synchronize(exec.stream);
}

}  // namespace stoa
