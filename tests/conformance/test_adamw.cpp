#include "kernels/adamw.h"
#include "tests/conformance/conformance.h"

using namespace stoa;
using namespace stoa::test;

namespace {

struct State {
    Tensor param, m, v;
};
State make_state(std::int64_t n, DType dtype) {
    return {random_tensor({n}, dtype, 1), Tensor({n}, dtype), Tensor({n}, dtype)};
}

AdamwArgs args_of(const State& s, const Tensor& grad, std::int64_t step) {
    return {.param = s.param,
            .m = s.m,
            .v = s.v,
            .grad = grad,
            .lr = 0.01,
            .beta1 = 0.9,
            .beta2 = 0.95,
            .eps = 1e-8,
            .weight_decay = 0.1,
            .grad_scale = 0.5,
            .step = step};
}

}  // namespace

TEST_CASE("adamw follows the published update for several steps") {
    const DType dtype = GENERATE(DType::fp32, DType::fp64);
    for (const std::int64_t n : {1, 37, 1024}) {
        const State s = make_state(n, dtype);
        auto param = to_double(s.param);
        std::vector<double> m(param.size()), v(param.size());
        for (std::int64_t step = 1; step <= 5; ++step) {
            const Tensor grad = random_tensor({n}, dtype, 10 + static_cast<std::uint64_t>(step));
            const auto g_all = to_double(grad);
            for (std::size_t i = 0; i < param.size(); ++i) {
                const double g = g_all[i] * 0.5;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.95 * v[i] + 0.05 * g * g;
                const double m_hat = m[i] / (1.0 - std::pow(0.9, step));
                const double v_hat = v[i] / (1.0 - std::pow(0.95, step));
                param[i] -= 0.01 * (m_hat / (std::sqrt(v_hat) + 1e-8) + 0.1 * param[i]);
            }
            adamw(args_of(s, grad, step), {});
        }
        CAPTURE(dtype_name(dtype), n);
        CHECK(relative_error(to_double(s.param), param) < tolerance(dtype));
        CHECK(relative_error(to_double(s.m), m) < tolerance(dtype));
        CHECK(relative_error(to_double(s.v), v) < tolerance(dtype));
    }
}

TEST_CASE("adamw touches nothing behind the end and is the same on every instruction set") {
    const Tensor grad = random_tensor({101}, DType::fp32, 3);
    check_same_bits([&] {
        const PoisonedTensor param = poisoned_tensor({101}, DType::fp32);
        const State s = make_state(101, DType::fp32);
        std::memcpy(param.view.data, s.param.view.data, 404);
        AdamwArgs args = args_of(s, grad, 1);
        args.param = param;
        adamw(args, {});
        CHECK(param.guards_intact());
        return bytes_of(param);
    });
}

TEST_CASE("adamw refuses what does not fit") {
    const State s = make_state(8, DType::fp32);
    const Tensor short_grad({7}, DType::fp32), wide_grad({8}, DType::fp64), grad({8}, DType::fp32);
    CHECK_THROWS_AS(adamw(args_of(s, short_grad, 1), {}), ShapeError);
    CHECK_THROWS_AS(adamw(args_of(s, wide_grad, 1), {}), ShapeError);
    CHECK_THROWS_AS(adamw(args_of(s, grad, 0), {}), ShapeError);
}
