#include "trainer/fault_hook.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace stoa {
namespace {

struct Fault {
    std::string kind;
    std::int64_t step = 0;
    int rank = 0;
};

// Those of the environment that are to happen in this generation.
std::vector<Fault> read_faults() {
    std::vector<Fault> faults;
    const char* text = std::getenv("STOA_FAULT");
    const char* generation = std::getenv("STOA_GENERATION");
    const bool first = generation == nullptr || std::atoi(generation) == 0;
    for (std::string_view rest = text == nullptr ? "" : text; !rest.empty();) {
        const std::string part(rest.substr(0, rest.find(',')));
        rest.remove_prefix(std::min(rest.size(), part.size() + 1));
        char kind[32] = {}, star = ' ';
        long long step = 0;
        int rank = 0;
        const int n =
            std::sscanf(part.c_str(), "%31[a-z0-9-]@%lld:%d%c", kind, &step, &rank, &star);
        if (n == 3 ? first : n == 4 && star == '*') faults.push_back({kind, step, rank});
    }
    return faults;
}

const std::vector<Fault>& faults() {
    static const std::vector<Fault> all = read_faults();
    return all;
}

[[noreturn]] void compute_for_ever() {
    volatile std::uint64_t n = 0;
    for (;;)
        n = n + 1;
}

// Seconds of this thread's processor time.
void compute_for(double seconds) {
    const auto spent = [] {
        timespec t{};
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
        return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
    };
    for (const double begin = spent(); spent() - begin < seconds;)
        continue;
}

void happen_in_step(const Fault& f, std::int64_t step) {
    if (f.kind == "slow" && step >= f.step)
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
    if (step != f.step) return;
    if (f.kind == "segv") std::raise(SIGSEGV);
    if (f.kind == "abort") std::abort();
    if (f.kind == "exit0") _exit(0);
    if (f.kind == "oom") throw std::bad_alloc();
    if (f.kind == "stop") std::raise(SIGSTOP);
    if (f.kind == "loop") compute_for_ever();
}

}  // namespace

void fault_point(std::int64_t step, int rank) {
    for (const Fault& f : faults())
        if (f.kind == "kill" && f.step == step && f.rank == rank) std::raise(SIGKILL);
}

void fault_in(Phase phase, std::int64_t step, int rank) {
    for (const Fault& f : faults()) {
        if (f.rank != rank) continue;
        if (phase == Phase::step) happen_in_step(f, step);
        const bool early = phase == Phase::start || phase == Phase::restore;
        if (phase == Phase::start && f.kind == "slow" && f.step == 0) compute_for(0.05);
        if (f.kind == std::string("throw-") + phase_name(phase) && (early || step >= f.step))
            throw std::runtime_error("STOA_FAULT asked for an exception");
    }
}

void pace_step(std::chrono::steady_clock::time_point begin) {
    static const char* const text = std::getenv("STOA_PACE_MS");
    if (text != nullptr)
        std::this_thread::sleep_until(begin + std::chrono::milliseconds(std::atoi(text)));
}

CollectiveFault collective_fault(std::int64_t step, int rank) {
    for (const Fault& f : faults()) {
        if (f.rank != rank || f.step != step) continue;
        if (f.kind == "skip-collective") return CollectiveFault::skip;
        if (f.kind == "swap-collective") return CollectiveFault::swap;
    }
    return CollectiveFault::none;
}

bool fault_due(std::int64_t step) {
    return std::ranges::any_of(faults(),
                               [&](const Fault& f) { return f.kind == "kill" && f.step == step; });
}

Injection fault_injection(std::int64_t step, int rank, std::size_t micro_batch) {
    const char* text = std::getenv("STOA_FAULT");
    char kind[4] = {};
    long long first = 0, last = 0, layer = 0;
    int who = 0;
    if (text == nullptr || micro_batch != 0 ||
        std::sscanf(text, "%3[infa]@%lld-%lld:%d:%lld", kind, &first, &last, &who, &layer) != 5 ||
        rank != who || step < first || step > last)
        return {};
    const bool nan = std::string_view(kind) == "nan";
    return {layer,
            nan ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity()};
}

}  // namespace stoa
