// kernels/cuda/device.h where kernels run on the host: copies are made as they are for a GPU.
// Only they and kernels open device memory (device_pages.h), in the order of streams.h.
#include <algorithm>
#include <atomic>
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
#include "kernels/cuda/host/recording.h"
#include "kernels/cuda/host/streams.h"
#include "kernels/device_errors.h"
#include "kernels/device_scratch.h"

namespace stoa::cuda {
namespace {

double now_ms() {
    const std::chrono::duration<double, std::milli> t =
        std::chrono::steady_clock::now().time_since_epoch();
    return t.count();
}
std::size_t size(std::int64_t bytes) { return static_cast<std::size_t>(bytes); }
std::atomic<std::int64_t> waited{0};

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

thread_local int current_gpu = 0;

/// $STOA_HOST_GPU_FAULT, for tests: "cudaErrorECCUncorrectable 20" fails the 20th wait so.
void fail_when_told() {
    static const char* const told = std::getenv("STOA_HOST_GPU_FAULT");
    static std::atomic<int> waits{0};
    if (told == nullptr) return;
    std::istringstream in(told);
    std::string name;
    int at = 0;
    if (in >> name >> at && ++waits == at)
        throw_device_error(name, "as the test wants it", "a kernel before this point", current_gpu);
}

}  // namespace

std::int64_t host::waits() { return waited; }

bool runs_kernels() { return true; }
bool has_cudnn() { return true; }
int toolkit_version() { return 13000; }  // described, as the GPUs are
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
    static ScratchCount* const count = new ScratchCount;  // as the pinned pieces
    return *count;
}

}  // namespace

// Counted as the host gives work; what is recorded was counted when it ran by itself.
std::byte* allocate_on(Stream stream, std::int64_t bytes) {
    if (host::Recording* const r = host::recording()) return r->take_scratch(stream, bytes);
    std::byte* const data = allocate(bytes);
    const std::scoped_lock lock(scratch().mutex);
    scratch().add(scratch().pieces[data] = scratch_room(bytes));
    return data;
}
void release_on(Stream stream, std::byte* data) noexcept {
    if (host::Recording* const r = host::recording()) return r->give_back_scratch(data);
    {
        const std::scoped_lock lock(scratch().mutex);
        const auto piece = scratch().pieces.find(data);
        if (piece != scratch().pieces.end()) {
            scratch().add(-piece->second);
            scratch().pieces.erase(piece);
        }
    }
    host::enqueue(stream, [data] { host::give_back(data); });
}
void reserve_scratch(Stream, std::int64_t) { host::reset_scratch_peak(); }

namespace host {

CountedScratch::CountedScratch(std::int64_t bytes)
    : bytes_(recording() == nullptr ? scratch_room(bytes) : 0) {
    if (bytes_ == 0) return;
    const std::scoped_lock lock(scratch().mutex);
    scratch().add(bytes_);
}
CountedScratch::~CountedScratch() {
    if (bytes_ == 0) return;
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
    host::refuse_recording("a copy from host memory");
    if (host::runs_at_once(stream) || is_pinned(from))
        return host::enqueue(stream, [=] { std::memcpy(to, from, size(bytes)); });
    host::enqueue(stream, [to, staged = std::vector<std::byte>(from, from + bytes)] {
        std::memcpy(to, staged.data(), staged.size());
    });
}
void copy_from_device(std::byte* to, const std::byte* from, std::int64_t bytes, Stream stream) {
    host::refuse_recording("a copy to host memory");
    host::enqueue(stream, [=] { std::memcpy(to, from, size(bytes)); });
    if (!is_pinned(to)) host::finish(stream);
}
void copy_on_device(std::byte* to, const std::byte* from, std::int64_t bytes, Stream stream) {
    host::start(
        {.name = "copy", .blocks = 1, .threads = 1, .stream = stream}, nullptr,
        [=] { std::memmove(to, from, size(bytes)); }, to, from, bytes);
}
void fill_bytes(std::byte* to, int value, std::int64_t bytes, Stream stream) {
    host::start(
        {.name = "fill", .blocks = 1, .threads = 1, .stream = stream}, nullptr,
        [=] { std::memset(to, value, size(bytes)); }, to, value, bytes);
}
void use_device(int index) { current_gpu = index; }
void synchronize(Stream stream) {
    ++waited;
    host::finish(stream);
    fail_when_told();
}

Stopwatch::Stopwatch(Stream stream) : stream_(stream), begin_(new double(0.0)) {}
Stopwatch::~Stopwatch() { delete static_cast<double*>(begin_); }
void Stopwatch::start() { *static_cast<double*>(begin_) = now_ms(); }
double Stopwatch::stop_ms() {
    host::finish(stream_);
    return now_ms() - *static_cast<double*>(begin_);
}

}  // namespace stoa::cuda
