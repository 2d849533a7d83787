#include "kernels/elementwise.h"
#include "kernels/importance_gate.h"
#include "tests/conformance/conformance.h"
#include "tests/support/execs.h"

using namespace stoa;
using namespace stoa::test;

TEST_CASE("importance_gate meets float64, also where sigmoid is 0 or 1") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const DType dtype = GENERATE(DType::fp32, DType::fp64);
    const Tensor importance = random_tensor({9, 3}, dtype, 1), bias = random_tensor({3}, dtype, 2);
    dispatch_dtype(dtype, [&]<Element T>(T) {
        const double far[] = {40, -40, 14.5, -14.5, 0, -0.0};
        for (std::size_t i = 0; i < std::size(far); ++i)
            importance.as<T>()[i] = narrow_to<T>(static_cast<Wide<T>>(far[i]));
    });
    const auto raw = to_double(importance), b = to_double(bias);
    const Tensor gate({9, 3}, dtype);
    run(importance_gate_forward, {.gate = gate, .importance = importance, .bias = bias}, exec);
    std::vector<double> u(raw.size()), expected(raw.size());
    for (std::size_t i = 0; i < raw.size(); ++i) {
        u[i] = std::clamp(raw[i] + b[i % 3], -15.0, 15.0);
        expected[i] = -std::log(1.0 + std::exp(-u[i]));
    }
    CHECK(relative_error(to_double(importance), u) < tolerance(dtype));
    CHECK(relative_error(to_double(gate), expected) < tolerance(dtype));
    for (const double g : to_double(gate))
        CHECK(g < 0.0);
}

TEST_CASE("importance_gate_backward is the gradient, and none where it was clamped") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const Tensor raw = random_tensor({7, 2}, DType::fp64, 1),
                 bias = random_tensor({2}, DType::fp64, 2),
                 weight = random_tensor({7, 2}, DType::fp64, 3);
    raw.as<double>()[4] = 100.0;
    Tensor importance = copy_of(raw);
    const Tensor gate({7, 2}, DType::fp64);
    const auto value = [&] {
        importance = copy_of(raw);
        importance_gate_forward({.gate = gate, .importance = importance, .bias = bias}, {});
        return weighted_sum(gate, weight);
    };
    const auto of_raw = central_differences(raw, value), of_bias = central_differences(bias, value);
    value();
    const Tensor d = copy_of(weight), d_bias({2}, DType::fp64);
    zero(d_bias, {});
    run(importance_gate_backward, {.d_gate = d, .d_bias = d_bias, .importance = importance}, exec);
    CHECK(relative_error(to_double(d), of_raw) < kDifferenceTolerance);
    CHECK(relative_error(to_double(d_bias), of_bias) < kDifferenceTolerance);
    CHECK(to_double(d)[4] == 0.0);
}

TEST_CASE("add_rows adds the rows in their order to what is there") {
    const Tensor x = random_tensor({5, 3}, DType::fp32, 1),
                 sum = random_tensor({3}, DType::fp32, 2);
    std::vector<float> expected(sum.as<float>().begin(), sum.as<float>().end());
    for (std::size_t i = 0; i < 15; ++i)
        expected[i % 3] += x.as<float>()[i];
    add_rows(sum, x, {});
    CHECK(std::ranges::equal(sum.as<float>(), expected));
}
