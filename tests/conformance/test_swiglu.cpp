#include <limits>

#include "kernels/cpu/fast_exp.h"
#include "kernels/swiglu.h"
#include "tests/conformance/conformance.h"
#include "tests/support/execs.h"

using namespace stoa;
using namespace stoa::test;

namespace {

struct Inputs {
    Tensor gate, up, d_y;
};
Inputs make_inputs(std::int64_t n, DType dtype) {
    return {random_tensor({n}, dtype, 1, 8.0), random_tensor({n}, dtype, 2),
            random_tensor({n}, dtype, 3)};
}

}  // namespace

TEST_CASE("swiglu meets float64, forward and backward, also in place") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    for (const std::int64_t n : {1, 17, 1000}) {
        const Inputs in = make_inputs(n, dtype);
        const auto gate = to_double(in.gate), up = to_double(in.up), d = to_double(in.d_y);
        std::vector<double> y, d_gate, d_up;
        for (std::size_t i = 0; i < gate.size(); ++i) {
            const double s = 1.0 / (1.0 + std::exp(-gate[i]));
            y.push_back(gate[i] * s * up[i]);
            d_gate.push_back(d[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s)));
            d_up.push_back(d[i] * gate[i] * s);
        }
        CAPTURE(dtype_name(dtype), n);
        const PoisonedTensor out = poisoned_tensor({n}, dtype);
        run(swiglu_forward, {.y = out, .gate = in.gate, .up = in.up}, exec);
        CHECK(relative_error(to_double(out), y) < tolerance(dtype));
        CHECK(out.guards_intact());
        const PoisonedTensor out_gate = poisoned_tensor({n}, dtype),
                             out_up = poisoned_tensor({n}, dtype);
        run(swiglu_backward,
            {.d_gate = out_gate, .d_up = out_up, .d_y = in.d_y, .gate = in.gate, .up = in.up},
            exec);
        CHECK(relative_error(to_double(out_gate), d_gate) < tolerance(dtype));
        CHECK(relative_error(to_double(out_up), d_up) < tolerance(dtype));
        CHECK(out_gate.guards_intact());
        CHECK(out_up.guards_intact());
        run(swiglu_backward,
            {.d_gate = in.gate, .d_up = in.up, .d_y = in.d_y, .gate = in.gate, .up = in.up}, exec);
        CHECK(bytes_of(in.gate) == bytes_of(out_gate));
        CHECK(bytes_of(in.up) == bytes_of(out_up));
    }
}

TEST_CASE("swiglu_backward meets central differences") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const Inputs in = make_inputs(23, DType::fp64);
    const Tensor y({23}, DType::fp64), d_gate({23}, DType::fp64), d_up({23}, DType::fp64);
    const auto loss = [&] {
        run(swiglu_forward, {.y = y, .gate = in.gate, .up = in.up}, exec);
        return weighted_sum(y, in.d_y);
    };
    run(swiglu_backward,
        {.d_gate = d_gate, .d_up = d_up, .d_y = in.d_y, .gate = in.gate, .up = in.up}, exec);
    CHECK(relative_error(to_double(d_gate), central_differences(in.gate, loss)) <
          kDifferenceTolerance);
    CHECK(relative_error(to_double(d_up), central_differences(in.up, loss)) < kDifferenceTolerance);
}

TEST_CASE("swiglu gives the same bits on every instruction set") {
    const Inputs in = make_inputs(1001, GENERATE(DType::fp32, DType::bf16));
    const Tensor y({1001}, in.gate.view.dtype);
    check_same_bits([&] {
        swiglu_forward({.y = y, .gate = in.gate, .up = in.up}, {});
        return bytes_of(y);
    });
}

TEST_CASE("fast_exp stays within 2 ulp and holds at the ends") {
    using cpu::fast_exp;
    double worst = 0.0;
    for (double x = -87.3; x < 88.7; x += 1e-4) {
        const auto x32 = static_cast<float>(x);
        const double exact = std::exp(static_cast<double>(x32));
        const auto nearest = static_cast<float>(exact);
        const double ulp = static_cast<double>(std::nextafter(nearest, INFINITY)) - nearest;
        worst = std::max(worst, std::abs(fast_exp(x32) - exact) / ulp);
    }
    CAPTURE(worst);
    CHECK(worst < 2.0);
    constexpr float kInf = std::numeric_limits<float>::infinity();
    CHECK(fast_exp(0.0f) == 1.0f);
    CHECK(fast_exp(-kInf) == 0.0f);
    CHECK(fast_exp(-1e30f) == 0.0f);
    CHECK(fast_exp(-90.0f) == 0.0f);
    CHECK(fast_exp(kInf) == kInf);
    CHECK(fast_exp(1e30f) == kInf);
    CHECK(fast_exp(89.0f) == kInf);
    CHECK(std::isnan(fast_exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST_CASE("swiglu refuses what does not fit") {
    const Tensor a({8}, DType::fp32), b({7}, DType::fp32), h({8}, DType::bf16);
    CHECK_THROWS_AS(swiglu_forward({.y = a, .gate = a, .up = b}, {}), ShapeError);
    CHECK_THROWS_AS(swiglu_forward({.y = h, .gate = a, .up = a}, {}), ShapeError);
}
