#include "trainer/fault_hook.h"

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string_view>
#include <thread>

namespace stoa {

void fault_point(std::int64_t step, int rank) {
    const char* text = std::getenv("STOA_FAULT");
    long long at = 0;
    int who = 0;
    if (text == nullptr) return;
    if (std::sscanf(text, "kill@%lld:%d", &at, &who) == 2 && step == at && rank == who)
        std::raise(SIGKILL);
    if (std::sscanf(text, "slow@%lld:%d", &at, &who) == 2 && step >= at && rank == who)
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
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
