#include "kernels/cpu/isa.h"

#include <atomic>

#include "kernels/core/error.h"

namespace stoa::cpu {
namespace {

Isa widest_isa() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return Isa::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
    return Isa::portable;
}

std::atomic<Isa>& chosen_isa() {
    static std::atomic<Isa> isa{widest_isa()};
    return isa;
}

}  // namespace

Isa current_isa() { return chosen_isa().load(std::memory_order_relaxed); }

bool isa_available(Isa isa) { return isa <= widest_isa(); }

void set_isa_for_test(std::optional<Isa> isa) {
    if (isa && !isa_available(*isa))
        throw DeviceError({.what = "this machine lacks the instruction set that a test asks for"});
    chosen_isa() = isa.value_or(widest_isa());
}

}  // namespace stoa::cpu
