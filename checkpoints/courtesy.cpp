#include "checkpoints/courtesy.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <utility>

namespace stoa {

// What the kernel keeps of every thread: nanoseconds on a core, nanoseconds in the queue for one.
Courtesy::Spent Courtesy::spent() {
    Spent s;
    if (std::FILE* f = std::fopen("/proc/thread-self/schedstat", "re")) {
        long long ran = 0, waited = 0;
        if (std::fscanf(f, "%lld %lld", &ran, &waited) == 2) s = {ran, waited};
        std::fclose(f);
    }
    return s;
}

std::int64_t Courtesy::pause_ns(std::int64_t ran_ns, std::int64_t waited_ns, double share) {
    constexpr std::int64_t kMost_ns = 1'000'000'000;
    if (ran_ns <= 0 || waited_ns <= ran_ns) return 0;
    const double owed = static_cast<double>(ran_ns) / share - static_cast<double>(waited_ns);
    return static_cast<std::int64_t>(std::clamp(owed, 0.0, static_cast<double>(kMost_ns)));
}

void Courtesy::begin() {
    const std::lock_guard lock(mutex_);
    before_ = {};
    hurry_ = false;
}

void Courtesy::hurry() {
    const std::lock_guard lock(mutex_);
    hurry_ = true;
    hurried_.notify_all();
}

void Courtesy::pause() {
    const Spent now = spent(), before = std::exchange(before_, now);
    if (before.ran_ns == 0) return;  // the first piece
    stand_back(pause_ns(now.ran_ns - before.ran_ns, now.waited_ns - before.waited_ns, share_));
}

void Courtesy::stand_back(std::int64_t ns) {
    std::unique_lock lock(mutex_);
    hurried_.wait_for(lock, std::chrono::nanoseconds(ns), [&] { return hurry_; });
}

void lower_priority() {
    const auto thread = static_cast<id_t>(::syscall(SYS_gettid));
    (void)::setpriority(PRIO_PROCESS, thread, 19);
    constexpr int kThisThread = 1, kBestEffortLast = (2 << 13) | 7;
    (void)::syscall(SYS_ioprio_set, kThisThread, thread, kBestEffortLast);
}

double thread_seconds() {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

}  // namespace stoa
