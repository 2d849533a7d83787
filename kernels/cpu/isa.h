#pragma once
// Which instruction set the CPU kernels use, decided once at run time. Only functions with a target
// attribute are compiled for more than the baseline, so one binary runs on every x86-64 machine.
// The choice never shows in the result: kernels fix the order of every sum, and -ffp-contract=off
// keeps a * b + c apart unless fma is written out.
#include <optional>

namespace stoa::cpu {

enum class Isa { portable, avx2, avx512 };

/// The widest set that this machine has, or the one that a test has forced.
Isa current_isa();
bool isa_available(Isa isa);
/// For tests and benchmarks: force a set that the machine has; nullopt returns to the widest.
void set_isa_for_test(std::optional<Isa> isa);

#if defined(__x86_64__)
#define STOA_TARGET_AVX512 \
    gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#define STOA_TARGET_AVX2 gnu::target("avx2,fma")
// `flatten` inlines all of fn, so the vectoriser sees its loops under the wider target.
template <class Fn>
[[gnu::flatten, gnu::noinline, STOA_TARGET_AVX512]] void run_avx512(const Fn& fn) {
    fn();
}
template <class Fn>
[[gnu::flatten, gnu::noinline, STOA_TARGET_AVX2]] void run_avx2(const Fn& fn) {
    fn();
}
#endif

/// Runs fn compiled for the machine's vector width. Explicit dispatch, not target_clones: ifunc
/// resolvers run before AddressSanitizer is ready, and clones do not reach templates.
template <class Fn>
void vectorised(const Fn& fn) {
#if defined(__x86_64__)
    switch (current_isa()) {
        case Isa::avx512:
            return run_avx512(fn);
        case Isa::avx2:
            return run_avx2(fn);
        case Isa::portable:
            break;
    }
#endif
    fn();
}

}  // namespace stoa::cpu
