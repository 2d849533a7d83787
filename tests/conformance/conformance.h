#pragma once
// What the op tests share: every instruction set of this machine, bit comparison, and gradients by
// central differences of the forward op in fp64.
#include "tests/support/catch.h"
#include <cstring>
#include <vector>

#include "kernels/cpu/isa.h"
#include "tests/support/tensors.h"

namespace stoa::test {

/// Forces one instruction set for the scope.
struct IsaScope {
    explicit IsaScope(cpu::Isa isa) { cpu::set_isa_for_test(isa); }
    ~IsaScope() { cpu::set_isa_for_test(std::nullopt); }
    IsaScope(const IsaScope&) = delete;
    IsaScope& operator=(const IsaScope&) = delete;
};

inline std::vector<cpu::Isa> available_isas() {
    std::vector<cpu::Isa> isas;
    for (const cpu::Isa isa : {cpu::Isa::portable, cpu::Isa::avx2, cpu::Isa::avx512})
        if (cpu::isa_available(isa)) isas.push_back(isa);
    return isas;
}

inline std::vector<std::byte> bytes_of(ConstTensorView t) { return {t.data, t.data + t.bytes()}; }

/// Runs `op` under every instruction set and checks that the bytes it returns are the same.
template <class Op>
void check_same_bits(const Op& op) {
    const std::vector<cpu::Isa> isas = available_isas();
    std::vector<std::byte> first;
    for (const cpu::Isa isa : isas) {
        const IsaScope scope(isa);
        const std::vector<std::byte> bytes = op();
        if (first.empty()) first = bytes;
        CAPTURE(static_cast<int>(isa));
        CHECK(bytes == first);
    }
}

inline Tensor copy_of(ConstTensorView t) {
    Tensor copy(t.shape, t.dtype);
    std::memcpy(copy.view.data, t.data, static_cast<std::size_t>(t.bytes()));
    return copy;
}

inline Tensor int_tensor(const std::vector<std::int32_t>& values) {
    Tensor t({static_cast<std::int64_t>(values.size())}, DType::int32);
    std::copy(values.begin(), values.end(), t.as<std::int32_t>().begin());
    return t;
}

/// sum over elements of weight * y: a scalar whose gradient with respect to y is `weight`.
inline double weighted_sum(ConstTensorView y, ConstTensorView weight) {
    const std::vector<double> a = to_double(y), w = to_double(weight);
    double sum = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i)
        sum += a[i] * w[i];
    return sum;
}

/// The gradient of loss() with respect to the fp64 tensor x, element by element.
template <class Loss>
std::vector<double> central_differences(const Tensor& x, const Loss& loss, double eps = 1e-6) {
    std::vector<double> gradient;
    for (double& element : x.as<double>()) {
        const double value = element;
        element = value + eps;
        const double above = loss();
        element = value - eps;
        const double below = loss();
        element = value;
        gradient.push_back((above - below) / (2.0 * eps));
    }
    return gradient;
}
constexpr double kDifferenceTolerance = 1e-6;

}  // namespace stoa::test
