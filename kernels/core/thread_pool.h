#pragma once
// The threads of one rank's CPU kernels. Kernels split their work so that every output has one
// owner and one order of sums: results do not depend on how many threads there are or who runs
// what.
#include <algorithm>
#include <cstdint>

namespace stoa {

/// Threads that parallel_for uses, its caller among them; 1 until it is set. Waits for the threads
/// that it removes. Not to be called from inside parallel_for.      errors: std::system_error
void set_cpu_threads(int threads);
int cpu_threads();

/// A function over part of a range, without ownership and without allocation.
struct RangeFunction {
    void (*call)(const void* fn, std::int64_t begin, std::int64_t end);
    const void* fn;
};
void run_parallel(std::int64_t count, std::int64_t grain, RangeFunction fn);

/// fn(begin, end) for ranges that cover [0, count) once: ranges of `grain` (the last may be
/// shorter) are handed out to whichever thread is free, or one range is the whole when there is one
/// thread, when the call is nested in another, or when another thread of the program is inside one.
/// Returns when all are done; the first exception of an fn is thrown here, and ranges not begun are
/// left.
template <class Fn>
void parallel_for(std::int64_t count, std::int64_t grain, const Fn& fn) {
    if (count <= 0) return;
    grain = std::max<std::int64_t>(1, grain);
    if (cpu_threads() == 1 || count <= grain) return fn(std::int64_t{0}, count);
    run_parallel(count, grain,
                 {[](const void* f, std::int64_t begin, std::int64_t end) {
                      (*static_cast<const Fn*>(f))(begin, end);
                  },
                  &fn});
}

/// A grain for items of `size` values each: ranges of some ten microseconds of elementwise work.
constexpr std::int64_t grain_for(std::int64_t size) {
    return std::max<std::int64_t>(1, (1 << 14) / std::max<std::int64_t>(1, size));
}

}  // namespace stoa
