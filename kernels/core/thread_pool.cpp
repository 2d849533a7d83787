#include "kernels/core/thread_pool.h"

#include <atomic>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

namespace stoa {
namespace {

constexpr int kSpins = 400;  // some 20 us of pauses: longer than the gap between two kernels

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/// One job at a time. A worker that wakes late must not touch a job that is over, and nobody waits
/// for one that never came: workers enter and leave through `door`, whose low bits count those
/// inside; the caller closes it, and waits only for them.
constexpr std::uint32_t kOpen = 1u << 16, kInside = kOpen - 1;

struct Pool {
    std::atomic<bool> busy{false};  // a caller is inside run_parallel
    std::atomic<std::uint32_t> door{0};
    std::atomic<std::uint32_t> jobs{0};  // counts up with every job: what sleepers wait on
    std::atomic<bool> stop{false};

    RangeFunction fn{};
    std::int64_t count = 0, grain = 1;
    std::atomic<std::int64_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error;

    std::vector<std::thread> workers;
};

std::atomic<int>& thread_count() {
    static std::atomic<int> threads{1};
    return threads;
}

/// Never destroyed: the program may exit while a kernel runs.
Pool& pool() {
    static Pool& p = *new Pool;
    return p;
}

void run_ranges(Pool& p) {
    try {
        for (;;) {
            const std::int64_t begin = p.next.fetch_add(p.grain, std::memory_order_relaxed);
            if (begin >= p.count) return;
            p.fn.call(p.fn.fn, begin, std::min(begin + p.grain, p.count));
        }
    } catch (...) {
        if (!p.failed.exchange(true)) p.error = std::current_exception();
        p.next.store(p.count, std::memory_order_relaxed);
    }
}

/// Waits until `value` is no longer `old`: a while awake, then asleep.
template <class T>
void wait_while(const std::atomic<T>& value, T old) {
    for (int i = 0; i < kSpins; ++i) {
        if (value.load(std::memory_order_acquire) != old) return;
        pause();
    }
    value.wait(old, std::memory_order_acquire);
}

bool enter(Pool& p) {
    std::uint32_t door = p.door.load(std::memory_order_relaxed);
    while (door & kOpen)
        if (p.door.compare_exchange_weak(door, door + 1, std::memory_order_acquire)) return true;
    return false;
}

void work(Pool& p) {
    for (std::uint32_t seen = p.jobs.load(); !p.stop.load();) {
        if (enter(p)) {
            run_ranges(p);
            if (p.door.fetch_sub(1, std::memory_order_release) == 1) p.door.notify_one();
        }
        wait_while(p.jobs, seen);
        seen = p.jobs.load();
    }
}

void stop_workers(Pool& p) {
    p.stop = true;
    p.jobs.fetch_add(1);
    p.jobs.notify_all();
    for (std::thread& t : p.workers)
        t.join();
    p.workers.clear();
    p.stop = false;
}

}  // namespace

int cpu_threads() { return thread_count().load(std::memory_order_relaxed); }

void set_cpu_threads(int threads) {
    threads = std::clamp(threads, 1, 1024);
    if (threads == cpu_threads()) return;
    Pool& p = pool();
    stop_workers(p);
    thread_count() = 1;
    for (; cpu_threads() < threads; ++thread_count())
        p.workers.emplace_back([&p] { work(p); });
}

void run_parallel(std::int64_t count, std::int64_t grain, RangeFunction fn) {
    Pool& p = pool();
    if (p.busy.exchange(true, std::memory_order_acquire)) return fn.call(fn.fn, 0, count);
    p.fn = fn;
    p.count = count;
    p.grain = grain;
    p.next.store(0, std::memory_order_relaxed);
    p.failed = false;
    p.door.store(kOpen, std::memory_order_release);
    p.jobs.fetch_add(1, std::memory_order_release);
    p.jobs.notify_all();
    run_ranges(p);
    std::uint32_t inside = p.door.fetch_and(kInside, std::memory_order_acquire) & kInside;
    for (; inside != 0; inside = p.door.load(std::memory_order_acquire))
        wait_while(p.door, inside);
    const std::exception_ptr error = p.failed ? std::exchange(p.error, nullptr) : nullptr;
    p.busy.store(false, std::memory_order_release);
    if (error) std::rethrow_exception(error);
}

}  // namespace stoa
