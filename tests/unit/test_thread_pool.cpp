#include <atomic>
#include <chrono>
#include <cstdlib>
#include <new>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "tests/support/catch.h"

using namespace stoa;

namespace {
std::atomic<std::int64_t> allocations{0};

struct Threads {
    explicit Threads(int n) { set_cpu_threads(n); }
    ~Threads() { set_cpu_threads(1); }
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;
};
}  // namespace

void* operator new(std::size_t bytes) {
    ++allocations;
    if (void* const p = std::malloc(bytes)) return p;
    throw std::bad_alloc();
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
    ++allocations;
    return std::malloc(bytes);
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }

TEST_CASE("parallel_for covers every index once") {
    const Threads threads(GENERATE(1, 2, 3, 7));
    for (const std::int64_t count : {0, 1, 2, 17, 1000})
        for (const std::int64_t grain : {1, 3, 64, 2000}) {
            std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
            parallel_for(count, grain, [&](std::int64_t begin, std::int64_t end) {
                for (std::int64_t i = begin; i < end; ++i)
                    ++seen[static_cast<std::size_t>(i)];
            });
            CAPTURE(cpu_threads(), count, grain);
            CHECK(std::all_of(seen.begin(), seen.end(), [](const auto& n) { return n == 1; }));
        }
}

TEST_CASE("parallel_for runs on as many threads as it was given") {
    const Threads threads(3);
    // Each range waits for the others to have begun: with fewer threads this would never end.
    std::atomic<int> begun{0};
    parallel_for(3, 1, [&](std::int64_t begin, std::int64_t end) {
        begun += static_cast<int>(end - begin);
        while (begun < 3)
            std::this_thread::yield();
    });
    CHECK(begun == 3);
}

TEST_CASE("parallel_for after a rest finds sleeping threads") {
    const Threads threads(2);
    for (int round = 0; round < 3; ++round) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        std::atomic<int> begun{0};
        parallel_for(2, 1, [&](std::int64_t begin, std::int64_t end) {
            begun += static_cast<int>(end - begin);
            while (begun < 2)
                std::this_thread::yield();
        });
        CHECK(begun == 2);
    }
}

TEST_CASE("many short jobs lose and repeat nothing") {
    const Threads threads(3);
    std::int64_t sum = 0;
    for (int job = 0; job < 20'000; ++job) {
        std::atomic<std::int64_t> part{0};
        parallel_for(5, 1, [&](std::int64_t begin, std::int64_t end) { part += end - begin; });
        sum += part;
    }
    CHECK(sum == 100'000);
}

TEST_CASE("a nested parallel_for runs on its own thread") {
    const Threads threads(2);
    std::atomic<int> wrong{0}, covered{0};
    parallel_for(4, 1, [&](std::int64_t begin, std::int64_t end) {
        const auto self = std::this_thread::get_id();
        for (std::int64_t i = begin; i < end; ++i)
            parallel_for(10, 1, [&](std::int64_t b, std::int64_t e) {
                covered += static_cast<int>(e - b);
                wrong += std::this_thread::get_id() != self;
            });
    });
    CHECK(covered == 40);
    CHECK(wrong == 0);
}

TEST_CASE("two threads of the program may call parallel_for at once") {
    const Threads threads(2);
    std::atomic<std::int64_t> sum{0};
    const auto many = [&] {
        for (int i = 0; i < 2'000; ++i)
            parallel_for(7, 2, [&](std::int64_t begin, std::int64_t end) { sum += end - begin; });
    };
    std::thread other(many);
    many();
    other.join();
    CHECK(sum == 28'000);
}

TEST_CASE("an exception of any range reaches the caller, and the next job runs") {
    const Threads threads(3);
    for (const std::int64_t bad : {0, 4, 8}) {
        CHECK_THROWS_AS(parallel_for(9, 1,
                                     [&](std::int64_t begin, std::int64_t end) {
                                         if (begin <= bad && bad < end)
                                             throw std::runtime_error("range");
                                     }),
                        std::runtime_error);
        std::atomic<int> covered{0};
        parallel_for(9, 1,
                     [&](std::int64_t b, std::int64_t e) { covered += static_cast<int>(e - b); });
        CHECK(covered == 9);
    }
}

TEST_CASE("a job allocates nothing") {
    const Threads threads(2);
    std::atomic<std::int64_t> sum{0};
    const auto job = [&] {
        parallel_for(100, 3, [&](std::int64_t begin, std::int64_t end) { sum += end - begin; });
    };
    job();
    const std::int64_t before = allocations;
    for (int i = 0; i < 100; ++i)
        job();
    CHECK(allocations == before);
    CHECK(sum == 10'100);
}
