// kernels/cuda/device.h where kernels run on the host: device memory is host memory of its own, so
// that the copies are made as they are for a GPU and AddressSanitizer guards each piece.
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "kernels/cuda/device.h"
#include "kernels/cuda/toolkit.h"

namespace stoa::cuda {
namespace {

double now_ms() {
    const std::chrono::duration<double, std::milli> t =
        std::chrono::steady_clock::now().time_since_epoch();
    return t.count();
}
std::size_t size(std::int64_t bytes) { return static_cast<std::size_t>(bytes); }

}  // namespace

bool runs_kernels() { return true; }
int toolkit_version() { return 0; }
std::vector<DeviceInfo> list_devices(std::string& reason) {
    reason = "this program runs its kernels on the host";
    return {};
}

std::byte* allocate(std::int64_t bytes) {
    auto* const data = static_cast<std::byte*>(std::malloc(size(bytes > 0 ? bytes : 1)));
    if (data == nullptr) throw MemoryError({.what = "out of memory"});
    return data;
}
void release(std::byte* data) noexcept { std::free(data); }
std::byte* allocate_on(Stream, std::int64_t bytes) { return allocate(bytes); }
void release_on(Stream, std::byte* data) noexcept { release(data); }

void copy_to_device(std::byte* to, const std::byte* from, std::int64_t bytes, Stream) {
    std::memcpy(to, from, size(bytes));
}
void copy_from_device(std::byte* to, const std::byte* from, std::int64_t bytes, Stream) {
    std::memcpy(to, from, size(bytes));
}
void fill_bytes(std::byte* to, int value, std::int64_t bytes, Stream) {
    std::memset(to, value, size(bytes));
}
void synchronize(Stream) {}

Stopwatch::Stopwatch(Stream stream) : stream_(stream), begin_(new double(0.0)) {}
Stopwatch::~Stopwatch() { delete static_cast<double*>(begin_); }
void Stopwatch::start() { *static_cast<double*>(begin_) = now_ms(); }
double Stopwatch::stop_ms() { return now_ms() - *static_cast<double*>(begin_); }

CudaStream::CudaStream() = default;
CudaStream::~CudaStream() = default;

}  // namespace stoa::cuda
