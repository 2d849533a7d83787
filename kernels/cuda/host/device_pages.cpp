#include "kernels/cuda/host/device_pages.h"

#include <execinfo.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <mutex>

#include "kernels/core/buffer.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/host/recording.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace stoa::cuda {
namespace {

constexpr std::int64_t kReserve = std::int64_t{1} << 38;  // of addresses
constexpr std::int64_t kPages = std::int64_t{1} << 21;    // opened and closed at once
constexpr std::int64_t kAlign = 256, kBetween = 256;      // kBetween: nobody's bytes behind a piece
constexpr int kUninitialised = 0xff;                      // NaN in every format

std::size_t size(std::int64_t bytes) { return static_cast<std::size_t>(bytes); }

struct Pool {
    std::mutex mutex;
    std::byte* base = nullptr;
    std::int64_t top = 0;  // bytes in use at once, whole pages
    std::int64_t end = 0;  // of the last piece
    std::int64_t held = 0;
    int open = 0;
    std::map<std::int64_t, std::int64_t> pieces, gaps;  // offset -> bytes
    struct sigaction before {};
};
Pool& pool() {
    static Pool* const p = new Pool;  // outlives what is released at the end of the program
    return *p;
}

void protect(const Pool& p, std::int64_t from, std::int64_t to, int how) {
    if (to > from) mprotect(p.base + from, size(to - from), how);
}

// Says what the fault is, then lets it end the program.
[[maybe_unused]] void on_fault(int number, siginfo_t* info, void*) {
    if (host::is_device_memory(info->si_addr)) {
        constexpr char kText[] =
            "\nerror: host code touches device memory: copy it (kernels/device_memory.h). From:\n";
        (void)!write(STDERR_FILENO, kText, sizeof kText - 1);
        void* frames[32];
        backtrace_symbols_fd(frames, backtrace(frames, 32), STDERR_FILENO);
    }
    sigaction(number, &pool().before, nullptr);
}

void reserve(Pool& p) {
    void* const memory = mmap(nullptr, size(kReserve + kPages), PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw MemoryError({.what = "no addresses for device memory"});
    const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(memory));
    p.base = static_cast<std::byte*>(memory) + (align_up(address, kPages) - address);
    madvise(p.base, size(kReserve), MADV_HUGEPAGE);
#if !defined(__SANITIZE_ADDRESS__)  // it says as much itself
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, &p.before);
#endif
}

// The first gap that is large enough, else behind the last piece.
std::int64_t take(Pool& p, std::int64_t bytes) {
    for (auto gap = p.gaps.begin(); gap != p.gaps.end(); ++gap) {
        const auto [at, room] = *gap;
        if (room < bytes) continue;
        p.gaps.erase(gap);
        if (room > bytes) p.gaps[at + bytes] = room - bytes;
        return at;
    }
    if (p.end + bytes > kReserve) throw MemoryError({.what = "out of device memory"});
    const std::int64_t at = p.end, top = align_up(p.end + bytes, kPages);
    p.end += bytes;
    if (top > p.top) {
        if (p.open > 0) protect(p, p.top, top, PROT_READ | PROT_WRITE);
        p.top = top;
    }
    return at;
}

}  // namespace

std::byte* allocate(std::int64_t bytes) {
    host::refuse_recording("memory that is not scratch");
    Pool& p = pool();
    const std::int64_t room = align_up((bytes > 0 ? bytes : 1) + kBetween, kAlign);
    std::byte* data = nullptr;
    {
        const std::scoped_lock lock(p.mutex);
        if (p.base == nullptr) reserve(p);
        const std::int64_t at = take(p, room);
        p.pieces[at] = room;
        p.held += room;
        data = p.base + at;
    }
    const host::DeviceMemoryOpen open;
    ASAN_UNPOISON_MEMORY_REGION(data, size(bytes));
    std::memset(data, kUninitialised, size(bytes));
    ASAN_POISON_MEMORY_REGION(data + bytes, size(room - bytes));
    return data;
}

namespace host {

void give_back(std::byte* data) {
    Pool& p = pool();
    const std::scoped_lock lock(p.mutex);
    const auto piece = p.pieces.find(data - p.base);
    if (piece == p.pieces.end()) return;
    auto [at, bytes] = *piece;
    ASAN_POISON_MEMORY_REGION(data, size(bytes));
    p.pieces.erase(piece);
    p.held -= bytes;
    auto next = p.gaps.lower_bound(at);  // neighbours become one gap
    if (next != p.gaps.end() && next->first == at + bytes) {
        bytes += next->second;
        next = p.gaps.erase(next);
    }
    if (next != p.gaps.begin() && std::prev(next)->first + std::prev(next)->second == at)
        std::prev(next)->second += bytes;
    else
        p.gaps[at] = bytes;
}

DeviceMemoryOpen::DeviceMemoryOpen() {
    Pool& p = pool();
    const std::scoped_lock lock(p.mutex);
    if (p.open++ == 0) protect(p, 0, p.top, PROT_READ | PROT_WRITE);
}
DeviceMemoryOpen::~DeviceMemoryOpen() {
    Pool& p = pool();
    const std::scoped_lock lock(p.mutex);
    if (--p.open == 0) protect(p, 0, p.top, PROT_NONE);
}

bool is_device_memory(const void* address) {
    const Pool& p = pool();
    const auto* const at = static_cast<const std::byte*>(address);
    return p.base != nullptr && at >= p.base && at < p.base + kReserve;
}

std::int64_t device_bytes() {
    Pool& p = pool();
    const std::scoped_lock lock(p.mutex);
    return p.held;
}

}  // namespace host
}  // namespace stoa::cuda
