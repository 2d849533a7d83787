// kernels/cuda/device.h where kernels run on the host: copies are made as they are for a GPU, and
// only they and kernels open device memory (device_pages.h).
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <utility>

#include "kernels/cuda/device.h"
#include "kernels/cuda/host/device_pages.h"
#include "kernels/cuda/toolkit.h"
#include "kernels/device_scratch.h"

namespace stoa::cuda {
namespace {

double now_ms() {
    const std::chrono::duration<double, std::milli> t =
        std::chrono::steady_clock::now().time_since_epoch();
    return t.count();
}
std::size_t size(std::int64_t bytes) { return static_cast<std::size_t>(bytes); }

}  // namespace

bool is_built() { return true; }
bool runs_kernels() { return true; }
bool has_cudnn() { return true; }
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

namespace {

// Of allocate_on and of CountedScratch.
struct ScratchCount {
    std::mutex mutex;
    std::int64_t held = 0, most = 0, of_op = 0;
    std::set<std::int64_t> of_ops;
    std::map<std::byte*, std::int64_t> pieces;
    void add(std::int64_t bytes) {
        held += bytes;
        most = std::max(most, held);
        of_op = std::max(of_op, held);
        if (held == 0) of_ops.insert(std::exchange(of_op, 0));
    }
};
ScratchCount& scratch() {
    static ScratchCount count;
    return count;
}

}  // namespace

std::byte* allocate_on(Stream, std::int64_t bytes) {
    std::byte* const data = allocate(bytes);
    const std::scoped_lock lock(scratch().mutex);
    scratch().add(scratch().pieces[data] = scratch_room(bytes));
    return data;
}
void release_on(Stream, std::byte* data) noexcept {
    {
        const std::scoped_lock lock(scratch().mutex);
        const auto piece = scratch().pieces.find(data);
        if (piece != scratch().pieces.end()) {
            scratch().add(-piece->second);
            scratch().pieces.erase(piece);
        }
    }
    release(data);
}
void reserve_scratch(Stream, std::int64_t) { host::reset_scratch_peak(); }

namespace host {

CountedScratch::CountedScratch(std::int64_t bytes) : bytes_(scratch_room(bytes)) {
    const std::scoped_lock lock(scratch().mutex);
    scratch().add(bytes_);
}
CountedScratch::~CountedScratch() {
    const std::scoped_lock lock(scratch().mutex);
    scratch().add(-bytes_);
}
std::int64_t scratch_peak() {
    const std::scoped_lock lock(scratch().mutex);
    return scratch().most;
}
std::set<std::int64_t> scratch_peaks_of_ops() {
    const std::scoped_lock lock(scratch().mutex);
    return scratch().of_ops;
}
void reset_scratch_peak() {
    const std::scoped_lock lock(scratch().mutex);
    scratch().most = scratch().held;
    scratch().of_ops.clear();
}

}  // namespace host

std::int64_t scratch_peak_bytes() { return host::scratch_peak(); }

std::byte* allocate_pinned(std::int64_t bytes) {
    auto* const data =
        static_cast<std::byte*>(std::aligned_alloc(4096, size(bytes / 4096 * 4096 + 4096)));
    if (data == nullptr) throw MemoryError({.what = "out of memory"});
    return data;
}
void release_pinned(std::byte* data) noexcept { std::free(data); }

void copy_to_device(std::byte* to, const std::byte* from, std::int64_t bytes, Stream) {
    const host::DeviceMemoryOpen open;
    std::memcpy(to, from, size(bytes));
}
void copy_from_device(std::byte* to, const std::byte* from, std::int64_t bytes, Stream) {
    const host::DeviceMemoryOpen open;
    std::memcpy(to, from, size(bytes));
}
void copy_on_device(std::byte* to, const std::byte* from, std::int64_t bytes, Stream) {
    const host::DeviceMemoryOpen open;
    std::memmove(to, from, size(bytes));
}
void fill_bytes(std::byte* to, int value, std::int64_t bytes, Stream) {
    const host::DeviceMemoryOpen open;
    std::memset(to, value, size(bytes));
}
void use_device(int) {}
void synchronize(Stream) {}

Stopwatch::Stopwatch(Stream stream) : stream_(stream), begin_(new double(0.0)) {}
Stopwatch::~Stopwatch() { delete static_cast<double*>(begin_); }
void Stopwatch::start() { *static_cast<double*>(begin_) = now_ms(); }
double Stopwatch::stop_ms() { return now_ms() - *static_cast<double*>(begin_); }

CudaStream::CudaStream() = default;
CudaStream::~CudaStream() = default;

}  // namespace stoa::cuda
