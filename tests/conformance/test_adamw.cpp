#include "kernels/adamw.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "tests/conformance/conformance.h"
#include "tests/support/execs.h"

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
    const Exec exec = GENERATE(from_range(available_execs()));
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
            run(adamw, args_of(s, grad, step), exec);
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

namespace {

// State below fp32 over whole blocks: sqrt(v) in e4m3, param in fp24, gradients of 0, so that v
// only decays.
struct NarrowState {
    Tensor param, m, v, m_scale, v_scale, grad;
    std::int64_t rows, cols;
};
NarrowState narrow_state(std::int64_t rows, std::int64_t cols) {
    NarrowState s{Tensor({rows, cols}, DType::fp24),
                  Tensor({rows, cols}, DType::e4m3),
                  Tensor({rows, cols}, DType::e4m3),
                  Tensor({rows, cols / 128}, DType::e8m0),
                  Tensor({rows, cols / 128}, DType::e8m0),
                  Tensor({rows, cols}, DType::fp32),
                  rows,
                  cols};
    for (std::size_t i = 0; i < static_cast<std::size_t>(rows * cols); ++i) {
        s.param.as<fp24>()[i] = truncate_to_fp24(1.0f);
        s.v.as<e4m3>()[i] = to_e4m3(i % 128 == 0 ? 448.0f : 1.0f + static_cast<float>(i % 8) / 8);
    }
    for (auto* const scales : {&s.m_scale, &s.v_scale})
        for (e8m0& e : scales->as<e8m0>())
            e.bits = 127;  // 1
    return s;
}
AdamwArgs narrow_args(const NarrowState& s, std::int64_t step, double decay = 0.0) {
    return {.param = s.param,
            .m = s.m,
            .v = s.v,
            .grad = s.grad,
            .lr = 1e-5,
            .weight_decay = decay,
            .step = step,
            .m_scale = s.m_scale,
            .v_scale = s.v_scale,
            .rounding_key = 5,
            .logical_cols = s.cols};
}
double v_at(const NarrowState& s, std::size_t i) {
    const double root = to_float(s.v.as<e4m3>()[i]) * to_float(s.v_scale.as<e8m0>()[i / 128]);
    return root * root;
}

}  // namespace

TEST_CASE("adamw's e4m3 v decays on average as in fp32, though a step is below its spacing") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const NarrowState s = narrow_state(64, 1024);
    double before = 0.0, after = 0.0;
    const std::size_t n = static_cast<std::size_t>(s.rows * s.cols);
    for (std::size_t i = 0; i < n; ++i)
        before += i % 128 == 0 ? 0.0 : std::sqrt(v_at(s, i));
    for (std::int64_t step = 1; step <= 20; ++step)
        run(adamw, narrow_args(s, step), exec);
    for (std::size_t i = 0; i < n; ++i)
        after += i % 128 == 0 ? 0.0 : std::sqrt(v_at(s, i));
    // 20 steps of sqrt(0.95); 65,536 draws of at most 6 % leave the mean within 0.1 %.
    CHECK(std::abs(after / before - std::pow(0.95, 10)) < 1e-3);
}

TEST_CASE("adamw's fp24 parameters move on average, though a step is below their spacing") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const NarrowState s = narrow_state(64, 1024);
    for (std::int64_t step = 1; step <= 10; ++step)
        run(adamw, narrow_args(s, step, 0.1),
            exec);  // lr * decay = 1e-6; half a spacing is 2^-17 = 7.6e-6
    double mean = 0.0;
    for (const fp24 x : s.param.as<fp24>())
        mean += to_float(x);
    mean /= static_cast<double>(s.rows * s.cols);
    CHECK(std::abs(1.0 - mean - 1e-5) < 5e-7);
}

TEST_CASE("adamw keeps a positive e4m3 v above 0") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const NarrowState s = narrow_state(1, 128);
    s.v.as<e4m3>()[1] = e4m3{1};
    for (std::int64_t step = 1; step <= 50; ++step)
        run(adamw, narrow_args(s, step), exec);
    CHECK(v_at(s, 1) > 0.0);
}

TEST_CASE("adamw rounds the shards of a tensor as the whole tensor") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const NarrowState whole = narrow_state(256, 512);
    const NarrowState left = narrow_state(128, 256);  // rows [128, 256), columns [256, 512)
    for (std::int64_t step = 1; step <= 3; ++step) {
        run(adamw, narrow_args(whole, step, 0.1), exec);
        AdamwArgs args = narrow_args(left, step, 0.1);
        args.row_begin = 128, args.col_begin = 256, args.logical_cols = 512;
        run(adamw, args, exec);
    }
    std::size_t different = 0;
    for (std::size_t r = 0; r < 128; ++r)
        for (std::size_t c = 0; c < 256; ++c) {
            const std::size_t mine = r * 256 + c, its = (r + 128) * 512 + c + 256;
            different += left.v.as<e4m3>()[mine].bits != whole.v.as<e4m3>()[its].bits;
            different +=
                to_float(left.param.as<fp24>()[mine]) != to_float(whole.param.as<fp24>()[its]);
        }
    CHECK(different == 0);
}

TEST_CASE("adamw has the same bits on every instruction set and number of threads, also narrow") {
    const auto run = [](int threads) {
        set_cpu_threads(threads);
        const NarrowState s = narrow_state(96, 512);
        for (std::int64_t step = 1; step <= 3; ++step)
            adamw(narrow_args(s, step, 0.1), {});
        set_cpu_threads(1);
        std::vector<unsigned> codes;
        for (const e4m3 code : s.v.as<e4m3>())
            codes.push_back(code.bits);
        for (const fp24 x : s.param.as<fp24>())
            codes.push_back(x.bytes[0]);
        return codes;
    };
    const auto expected = run(1);
    CHECK(run(3) == expected);
    for (const cpu::Isa isa : {cpu::Isa::portable, cpu::Isa::avx2, cpu::Isa::avx512}) {
        if (!cpu::isa_available(isa)) continue;
        cpu::set_isa_for_test(isa);
        CHECK(run(1) == expected);
        cpu::set_isa_for_test({});
    }
}
