// kernels/cuda/device.h where kernels run on the host: copies are made as they are for a GPU.
// Only they and kernels open device memory (device_pages.h), in the order of streams.h.
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>

#include "kernels/cuda/device.h"
#include "kernels/cuda/host/device_pages.h"
#include "kernels/cuda/host/streams.h"
#include "kernels/cuda/toolkit.h"

namespace stoa::cuda {
namespace {

double now_ms() {
    const std::chrono::duration<double, std::milli> t =
        std::chrono::steady_clock::now().time_since_epoch();
    return t.count();
}
std::size_t size(std::int64_t bytes) { return static_cast<std::size_t>(bytes); }

struct Pinned {
    std::mutex mutex;
    std::map<const std::byte*, std::int64_t> pieces;  // address -> bytes
};
Pinned& pinned() {
    static Pinned* const p = new Pinned;  // outlives what is released at the end of the program
    return *p;
}
bool is_pinned(const std::byte* address) {
    const std::scoped_lock lock(pinned().mutex);
    const auto after = pinned().pieces.upper_bound(address);
    if (after == pinned().pieces.begin()) return false;
    const auto& [begin, bytes] = *std::prev(after);
    return address < begin + bytes;
}

}  // namespace

bool is_built() { return true; }
bool runs_kernels() { return true; }
int toolkit_version() { return 0; }
// $STOA_HOST_GPUS describes them, for tests: "NVIDIA H100/90/80, ..." is name, capability and GiB.
std::vector<DeviceInfo> list_devices(std::string& reason) {
    std::vector<DeviceInfo> devices;
    const char* text = std::getenv("STOA_HOST_GPUS");
    std::istringstream in(text == nullptr ? "" : text);
    for (std::string one; std::getline(in, one, ',');) {
        std::istringstream fields(one);
        DeviceInfo d{.id = std::to_string(devices.size())};
        std::string word;
        std::getline(fields, d.name, '/');
        if (std::getline(fields, word, '/')) d.capability = std::stoi(word);
        if (std::getline(fields, word, '/'))
            d.memory_bytes = static_cast<std::int64_t>(std::stod(word) * (1 << 30));
        devices.push_back(d);
    }
    if (devices.empty()) reason = "this program runs its kernels on the host";
    return devices;
}
std::int64_t free_bytes() {
    std::string reason;
    const std::vector<DeviceInfo> devices = list_devices(reason);
    return devices.empty() ? 0 : devices.front().memory_bytes - host::device_bytes();
}

void release(std::byte* data) noexcept {
    if (data == nullptr) return;
    host::finish_quietly();  // a driver waits likewise
    host::give_back(data);
}
std::byte* allocate_on(Stream, std::int64_t bytes) { return allocate(bytes); }
void release_on(Stream stream, std::byte* data) noexcept {
    host::enqueue(stream, [data] { host::give_back(data); });
}

std::byte* allocate_pinned(std::int64_t bytes) {
    auto* const data =
        static_cast<std::byte*>(std::aligned_alloc(4096, size(bytes / 4096 * 4096 + 4096)));
    if (data == nullptr) throw MemoryError({.what = "out of memory"});
    const std::scoped_lock lock(pinned().mutex);
    pinned().pieces[data] = bytes;
    return data;
}
void release_pinned(std::byte* data) noexcept {
    if (data == nullptr) return;
    host::finish_quietly();  // a driver waits likewise
    {
        const std::scoped_lock lock(pinned().mutex);
        pinned().pieces.erase(data);
    }
    std::free(data);
}

// Pageable memory is read when the copy is given, and written before it returns; pinned memory when
// the stream comes there.
void copy_to_device(std::byte* to, const std::byte* from, std::int64_t bytes, Stream stream) {
    if (host::runs_at_once(stream) || is_pinned(from))
        return host::enqueue(stream, [=] { std::memcpy(to, from, size(bytes)); });
    host::enqueue(stream, [to, staged = std::vector<std::byte>(from, from + bytes)] {
        std::memcpy(to, staged.data(), staged.size());
    });
}
void copy_from_device(std::byte* to, const std::byte* from, std::int64_t bytes, Stream stream) {
    host::enqueue(stream, [=] { std::memcpy(to, from, size(bytes)); });
    if (!is_pinned(to)) host::finish(stream);
}
void copy_on_device(std::byte* to, const std::byte* from, std::int64_t bytes, Stream stream) {
    host::enqueue(stream, [=] { std::memmove(to, from, size(bytes)); });
}
void fill_bytes(std::byte* to, int value, std::int64_t bytes, Stream stream) {
    host::enqueue(stream, [=] { std::memset(to, value, size(bytes)); });
}
void use_device(int) {}
void synchronize(Stream stream) { host::finish(stream); }

Stopwatch::Stopwatch(Stream stream) : stream_(stream), begin_(new double(0.0)) {}
Stopwatch::~Stopwatch() { delete static_cast<double*>(begin_); }
void Stopwatch::start() { *static_cast<double*>(begin_) = now_ms(); }
double Stopwatch::stop_ms() {
    host::finish(stream_);
    return now_ms() - *static_cast<double*>(begin_);
}

}  // namespace stoa::cuda
