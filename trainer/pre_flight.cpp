#include "trainer/pre_flight.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <ctime>

#include "kernels/matmul.h"
#include "parallel/check_mpi.h"
#include "parallel/collectives.h"
#include "trainer/fault_hook.h"

namespace stoa {
namespace {

constexpr int kTries = 3;
constexpr int kAllPairs = 32;  // ranks

double wall_ms() {
    return std::chrono::duration<double, std::milli>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

template <class Fn>
double best_ms(double (*clock)(), const Fn& fn) {
    double best = 1e30;
    for (int i = 0; i < kTries; ++i) {
        const double begin = clock();
        fn();
        best = std::min(best, clock() - begin);
    }
    return best;
}

// Of this thread: another process on its core does not count.
double cpu_ms() {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return 1e3 * static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_nsec);
}

double time_product(int rank) {
    constexpr std::int64_t kSize = 256;
    std::vector<float> a(kSize * kSize, 0.5f), b(a), c(a);
    const auto view = [](std::vector<float>& v) {
        return TensorView{reinterpret_cast<std::byte*>(v.data()), DType::fp32, {kSize, kSize}, {}};
    };
    return best_ms(cpu_ms, [&] {
        fault_in(Phase::start, 0, rank);
        matmul({.c = view(c), .a = view(a), .b = view(b)}, {});
    });
}

double time_copy() {
    std::vector<char> from(8 << 20, 1), to(from.size(), 2);
    return best_ms(cpu_ms, [&] { std::memcpy(to.data(), from.data(), to.size()); });
}

// The others that rank r has a link to measure with, in an order in which pairs meet: in round k
// of n - 1 rounds the pairs are disjoint (the circle method; n made even, the last one idle).
std::vector<int> partners_of(int r, int size) {
    std::vector<int> partners;
    if (size > kAllPairs) {
        for (int distance = 1; distance < size; distance *= 2)
            for (const int phase : {0, 1}) {
                const bool first = r / distance % 2 == phase;
                const int p = first ? r + distance : r - distance;
                if (p >= 0 && p < size) partners.push_back(p);
            }
        return partners;
    }
    const int n = size + size % 2;
    for (int round = 0; round < n - 1; ++round) {
        int p = 0;
        if (r == n - 1) {
            p = round % 2 == 0 ? round / 2 : (round + n - 1) / 2;
        } else {
            p = ((round - r) % (n - 1) + (n - 1)) % (n - 1);
            if (p == r) p = n - 1;
        }
        if (p < size) partners.push_back(p);
    }
    return partners;
}

double time_link(int peer, const Communicator& world) {
    constexpr int kBytes = 256 << 10, kTag = 71;
    std::vector<char> give(kBytes, 1), got(kBytes);
    return best_ms(wall_ms, [&] {
        check_mpi(MPI_Sendrecv(give.data(), kBytes, MPI_CHAR, peer, kTag, got.data(), kBytes,
                               MPI_CHAR, peer, kTag, world.handle(), MPI_STATUS_IGNORE),
                  "pre-flight", world);
    });
}

double lower_median(std::vector<double> v) {
    if (v.empty()) return 0.0;
    std::ranges::sort(v);
    return v[(v.size() - 1) / 2];
}

}  // namespace

namespace {

PreFlightTimes measure_once(const Communicator& world) {
    const auto ranks = static_cast<std::size_t>(world.size()),
               me = static_cast<std::size_t>(world.rank());
    barrier(world);
    std::vector<double> table((2 + ranks) * ranks, 0.0);  // own times, then links by (a, b)
    table[me] = time_product(world.rank());
    table[ranks + me] = time_copy();
    if (world.size() > 1) {
        const CollectiveScope scope{"pre_flight", world, 0, "bytes", {}};
        for (const int peer : partners_of(world.rank(), world.size()))
            if (const double ms = time_link(peer, world); world.rank() < peer)
                table[(2 + me) * ranks + static_cast<std::size_t>(peer)] = ms;
    }
    all_reduce(TensorView{reinterpret_cast<std::byte*>(table.data()),
                          DType::fp64,
                          {static_cast<std::int64_t>(table.size())},
                          {}},
               ReduceOp::sum, world, {});
    const auto row = [&](std::size_t i) { return table.begin() + static_cast<long>(i * ranks); };
    PreFlightTimes times{{row(0), row(1)}, {row(1), row(2)}, {}};
    for (std::size_t a = 0; a < ranks; ++a)
        for (std::size_t b = a + 1; b < ranks; ++b)
            if (const double ms = table[(2 + a) * ranks + b]; ms > 0.0)
                times.links.push_back({static_cast<int>(a), static_cast<int>(b), ms});
    return times;
}

}  // namespace

PreFlightTimes measure_pre_flight(const Communicator& world, double factor) {
    constexpr int kMostPasses = 4;
    PreFlightTimes best = measure_once(world);
    for (int pass = 1; pass < kMostPasses && !find_outliers(best, factor).empty(); ++pass) {
        const PreFlightTimes again = measure_once(world);  // all ranks have the same times
        const auto keep_best = [](std::vector<double>& a, const std::vector<double>& b) {
            for (std::size_t i = 0; i < a.size(); ++i)
                a[i] = std::min(a[i], b[i]);
        };
        keep_best(best.product_ms, again.product_ms);
        keep_best(best.copy_ms, again.copy_ms);
        for (std::size_t i = 0; i < best.links.size(); ++i)
            best.links[i].ms = std::min(best.links[i].ms, again.links[i].ms);
    }
    return best;
}

std::vector<PreFlightOutlier> find_outliers(const PreFlightTimes& times, double factor) {
    std::vector<PreFlightOutlier> found;
    const auto off = [&](double ms, double median) {
        constexpr double kLeastMs = 1.0;  // below, a busy core looks like a slow one
        return ms >= factor * median && ms - median >= kLeastMs;
    };
    const auto look = [&](const char* what, const std::vector<double>& ms) {
        const double median = lower_median(ms);
        for (std::size_t r = 0; r < ms.size(); ++r)
            if (off(ms[r], median)) found.push_back({what, static_cast<int>(r), -1, ms[r], median});
    };
    look("matrix product", times.product_ms);
    look("memory copy", times.copy_ms);
    std::vector<double> all;
    for (const auto& link : times.links)
        all.push_back(link.ms);
    const double median = lower_median(all);
    for (const auto& link : times.links)
        if (off(link.ms, median)) found.push_back({"link", link.a, link.b, link.ms, median});
    return found;
}

}  // namespace stoa
