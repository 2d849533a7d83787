#pragma once
// GPUs, their memory and the order of work on them.
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/exec.h"

namespace stoa::cuda {

struct DeviceInfo {
    std::string name;
    int capability = 0;  // 90 = sm_90
    std::int64_t memory_bytes = 0;
    std::string id;  // the same from every process of the machine, whichever GPUs that may see
};
/// The GPUs this process can use; empty without a GPU or driver. `reason` says why it is empty.
std::vector<DeviceInfo> list_devices(std::string& reason);

/// The CUDA toolkit that this program was built with, with or without a GPU here: 13000 for 13.0;
/// 0: it has no CUDA backend.
int toolkit_version();

/// Whether the ops of kernels/cuda/ops.h can run here: on a GPU, or on the host in a build for
/// tests.
bool runs_kernels();

/// Whether cuDNN is in the program: dense attention's first way on a GPU.
bool has_cudnn();

/// The calling thread's GPU from here on.     errors: DeviceError
void use_device(int index);

/// Bytes that the current GPU has left, whoever holds the others.     errors: DeviceError
std::int64_t free_bytes();

/// Memory of the current GPU, not zeroed.     errors: MemoryError, DeviceError
std::byte* allocate(std::int64_t bytes);
void release(std::byte* data) noexcept;
/// The same in the order of a stream: for scratch memory between kernels.
std::byte* allocate_on(Stream stream, std::int64_t bytes);
void release_on(Stream stream, std::byte* data) noexcept;

/// The pool of allocate_on has `bytes` from here on, so that no op of the run finds less.
/// errors: MemoryError
void reserve_scratch(Stream stream, std::int64_t bytes);

/// The most that ops have held of the pool at once since then.     errors: DeviceError
std::int64_t scratch_peak_bytes();

/// Host memory that the device copies from and to without a detour, page-aligned.
std::byte* allocate_pinned(std::int64_t bytes);
void release_pinned(std::byte* data) noexcept;

/// In the order of the stream. Pageable host memory may be reused on return; pinned memory when the
/// stream has come there.     errors: DeviceError
void copy_to_device(std::byte* to, const std::byte* from, std::int64_t bytes, Stream stream);
void copy_from_device(std::byte* to, const std::byte* from, std::int64_t bytes, Stream stream);
void copy_on_device(std::byte* to, const std::byte* from, std::int64_t bytes, Stream stream);
void fill_bytes(std::byte* to, int value, std::int64_t bytes, Stream stream);
/// Waits for all of the stream's work; its errors come here.     errors: DeviceError
void synchronize(Stream stream);

/// A point in the order of a stream, for others to wait for. One that was never recorded keeps
/// nobody waiting; it needs no GPU.
class Event {
public:
    Event() = default;
    Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Event& operator=(Event&& other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    ~Event();
    /// The point behind all that the stream has been given until now.     errors: DeviceError
    void record(Stream stream);
    /// What `stream` is given from here on waits for the point; the host does not.
    void make_wait(Stream stream) const;
    /// The host waits for the point.     errors: DeviceError, of the stream's work too
    void wait() const;
    bool reached() const;

private:
    void* handle_ = nullptr;
};

/// Milliseconds on the device between two calls: begin, work, end.
class Stopwatch {
public:
    explicit Stopwatch(Stream stream);
    ~Stopwatch();
    Stopwatch(const Stopwatch&) = delete;
    Stopwatch& operator=(const Stopwatch&) = delete;
    void start();
    double stop_ms();

private:
    Stream stream_;
    void* begin_ = nullptr;
    void* end_ = nullptr;
};

/// The one owner of a piece of GPU memory.
class DeviceBuffer {
public:
    DeviceBuffer() = default;
    explicit DeviceBuffer(std::int64_t bytes) : data_(allocate(bytes)), bytes_(bytes) {}
    DeviceBuffer(DeviceBuffer&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
    DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    ~DeviceBuffer() { release(data_); }
    std::byte* data() const { return data_; }
    std::int64_t bytes() const { return bytes_; }

private:
    std::byte* data_ = nullptr;
    std::int64_t bytes_ = 0;
};

/// Scratch memory of one op, given back in the order of its stream.
class Scratch {
public:
    Scratch(Stream stream, std::int64_t bytes)
        : stream_(stream), data_(bytes > 0 ? allocate_on(stream, bytes) : nullptr) {}
    ~Scratch() {
        if (data_ != nullptr) release_on(stream_, data_);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    template <class T>
    T* as() const {
        return reinterpret_cast<T*>(data_);
    }

private:
    Stream stream_;
    std::byte* data_;
};

/// An empty one without a GPU. In a build for tests without one it runs the kernels on the host.
class CudaStream {
public:
    CudaStream();
    ~CudaStream();
    CudaStream(const CudaStream&) = delete;
    CudaStream& operator=(const CudaStream&) = delete;
    Stream stream() const { return {handle_}; }

private:
    void* handle_ = nullptr;
};

}  // namespace stoa::cuda
