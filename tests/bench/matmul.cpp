// GFLOP/s of matmul at the shapes of two models, as a share of the peak that an in-register FMA
// loop reaches on the same number of threads. Peak and product alternate in short bursts, and the
// share is the best burst of one by the best of the other: on a shared machine the quiet moments
// count.
//   bench_matmul [threads] [filter]      The last line is one JSON object.
#include "kernels/matmul.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/core/buffer.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "kernels/quantize.h"

namespace {

using namespace stoa;

constexpr int kBursts = 60;
constexpr double kBurstFlop = 2e8;  // some 2 ms

template <class Fn>
double seconds_of(const Fn& fn) {
    const auto begin = std::chrono::steady_clock::now();
    fn();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// 24 independent chains of fused multiply-adds that never leave the registers, on every thread.
double peak_gflops() {
    constexpr int kChains = 24, kWidth = 16, kSteps = 100'000;
    using Vector = float __attribute__((vector_size(64)));
    static volatile float source = 0.0f;
    const double seconds = seconds_of([&] {
        parallel_for(cpu_threads(), 1, [](std::int64_t begin, std::int64_t end) {
            for (; begin < end; ++begin)
                cpu::vectorised([&] {
                    Vector chain[kChains];
                    for (auto& c : chain)
                        c = Vector{} + source;
                    const Vector x = Vector{} + 0.5f, y = Vector{} + 1.0f;
                    for (int step = 0; step < kSteps; ++step)
#pragma GCC unroll 24
                        for (int c = 0; c < kChains; ++c)
#pragma GCC unroll 16
                            for (int l = 0; l < kWidth; ++l)
                                chain[c][l] = __builtin_fmaf(chain[c][l], x[l], y[l]);
                    Vector sum{};
                    for (const auto& c : chain)
                        sum += c;
                    static volatile float sink;
                    sink = sum[0];
                    (void)sink;
                });
        });
    });
    return 2.0 * kChains * kWidth * kSteps * cpu_threads() / seconds * 1e-9;
}

enum class Kind { forward, data_gradient, weight_gradient };  // NT, NN, TN and +=
constexpr const char* kKindNames[] = {"NT", "NN", "TN"};

struct Problem {
    Kind kind;
    std::int64_t m, n, k;
    DType a, b;
};

Tensor filled(Shape shape, DType dtype) {
    Tensor t(shape, dtype);
    std::uint32_t state = 1;
    const auto next = [&] { return (state = state * 1664525u + 1013904223u) >> 8; };
    if (size_of(dtype) == 1) {
        for (std::int64_t i = 0; i < t.view.bytes(); ++i)
            t.view.data[i] = static_cast<std::byte>(next() & 0xbbu);  // no NaN, no Inf
        return t;
    }
    dispatch_dtype(dtype, [&]<Element T>(T) {
        for (T& x : t.as<T>())
            x = narrow_to<T>(static_cast<Wide<T>>(next()) * Wide<T>(0x1p-24) - Wide<T>(0.5));
    });
    return t;
}

/// Scales of 2^0 in 128 x 128 blocks for an 8-bit matrix, nothing for others.
Tensor ones_scale(const Tensor& x) {
    if (size_of(x.view.dtype) > 1) return {};
    const auto blocks = [](std::int64_t n) { return (n + kQuantBlock - 1) / kQuantBlock; };
    Tensor s({blocks(x.view.rows()), blocks(x.view.cols())}, DType::e8m0);
    std::fill_n(s.view.data, s.view.bytes(), std::byte{127});
    return s;
}

std::string name_of(const Problem& p) {
    const std::string b = p.b == p.a ? "" : fmt::format(" x {}", dtype_name(p.b));
    return fmt::format("{} {}{} m={} n={} k={}", kKindNames[static_cast<int>(p.kind)],
                       dtype_name(p.a), b, p.m, p.n, p.k);
}

struct Measured {
    double seconds, gflops, share;
};

Measured measure(const Problem& p) {
    const bool ta = p.kind == Kind::weight_gradient, tb = p.kind == Kind::forward;
    const Tensor a = filled(ta ? Shape{p.k, p.m} : Shape{p.m, p.k}, p.a);
    const Tensor b = filled(tb ? Shape{p.n, p.k} : Shape{p.k, p.n}, p.b);
    const Tensor c({p.m, p.n}, DType::fp32), a_scale = ones_scale(a), b_scale = ones_scale(b);
    const MatmulArgs args{.c = c,
                          .a = a,
                          .b = b,
                          .transpose_a = ta,
                          .transpose_b = tb,
                          .accumulate = ta,
                          .a_scale = a_scale,
                          .b_scale = b_scale};
    const double flop = 2.0 * static_cast<double>(p.m * p.n * p.k);
    const int inner = static_cast<int>(std::max(1.0, kBurstFlop / flop));
    double best = 1e30, peak = 0.0;
    const int bursts = static_cast<int>(std::clamp(6e10 / flop, 8.0, double{kBursts}));
    for (int i = 0; i < bursts; ++i) {
        peak = std::max(peak, peak_gflops());
        const double seconds = seconds_of([&] {
            for (int r = 0; r < inner; ++r)
                matmul(args, {});
        });
        if (i > 0) best = std::min(best, seconds / inner);  // the first warms caches and scratch
    }
    const double gflops = flop / best * 1e-9;
    fmt::print("{:<44} {:9.1f} us {:8.1f} GFLOP/s {:6.1f} % of peak\n", name_of(p), best * 1e6,
               gflops, 100.0 * gflops / peak);
    std::fflush(stdout);
    return {best, gflops, gflops / peak};
}

nlohmann::json as_json(const Problem& p, const Measured& m) {
    return {{"name", name_of(p)}, {"gflops", m.gflops}, {"share_of_peak", m.share}};
}

struct Weight {
    std::int64_t out, in, count;
};
struct Model {
    const char* name;
    std::int64_t rows;
    std::vector<Weight> weights;
};
const std::vector<Model> kModels = {
    {"small", 1024, {{768, 256, 4}, {256, 256, 4}, {2048, 256, 4}, {256, 1024, 4}, {4096, 256, 1}}},
    {"124M",
     256,
     {{2304, 768, 12}, {768, 768, 12}, {3072, 768, 12}, {768, 3072, 12}, {50257, 768, 1}}}};

/// All products with weights of one step, and their sum weighted by how often each occurs.
void measure_model(const Model& model, nlohmann::json& shapes, nlohmann::json& totals) {
    const auto f = DType::fp32;
    for (const Kind kind : {Kind::forward, Kind::data_gradient, Kind::weight_gradient}) {
        double seconds = 0.0, flop = 0.0;
        for (const Weight& w : model.weights) {
            const Problem p = kind == Kind::forward ? Problem{kind, model.rows, w.out, w.in, f, f}
                              : kind == Kind::data_gradient
                                  ? Problem{kind, model.rows, w.in, w.out, f, f}
                                  : Problem{kind, w.out, w.in, model.rows, f, f};
            const Measured m = measure(p);
            seconds += m.seconds * static_cast<double>(w.count);
            flop += 2e-9 * static_cast<double>(p.m * p.n * p.k * w.count);
            shapes.push_back(as_json(p, m));
        }
        const char* const name = kKindNames[static_cast<int>(kind)];
        fmt::print("{} {}: {:.2f} ms, {:.1f} GFLOP/s\n", model.name, name, seconds * 1e3,
                   flop / seconds);
        totals.push_back({{"model", model.name},
                          {"kind", name},
                          {"ms", seconds * 1e3},
                          {"gflops", flop / seconds}});
    }
}

std::vector<Problem> single_problems() {
    using enum Kind;
    const auto f = DType::fp32, h = DType::bf16, s = DType::fp16, q = DType::e4m3, g = DType::e5m2;
    std::vector<Problem> problems = {
        {forward, 1, 768, 256, f, f},      {data_gradient, 1, 768, 256, f, f},
        {forward, 16, 768, 256, f, f},     {data_gradient, 16, 768, 256, f, f},
        {forward, 100, 768, 256, f, f},    {forward, 64, 64, 64, f, f},
        {data_gradient, 64, 64, 64, f, f}, {weight_gradient, 64, 64, 64, f, f},
        {forward, 512, 512, 512, f, f}};
    for (const auto& [a, b] : {std::pair{f, f}, {h, h}, {s, s}, {q, q}, {g, q}}) {
        problems.push_back({forward, 1024, 768, 256, a, b});
        problems.push_back({forward, 256, 3072, 768, a, b});
        problems.push_back({data_gradient, 256, 768, 3072, a, b});
        problems.push_back({weight_gradient, 3072, 768, 256, a, b});
    }
    return problems;
}

}  // namespace

int main(int argc, char** argv) {
    set_cpu_threads(argc > 1 ? std::atoi(argv[1]) : 1);
    const std::string filter = argc > 2 ? argv[2] : "";
    nlohmann::json shapes = nlohmann::json::array(), totals = nlohmann::json::array();
    double peak = 0.0;
    for (int i = 0; i < kBursts; ++i)
        peak = std::max(peak, peak_gflops());
    fmt::print("{} threads, FMA in registers: {:.1f} GFLOP/s\n", cpu_threads(), peak);
    for (const Model& model : kModels)
        if (filter.empty() || filter == model.name) measure_model(model, shapes, totals);
    if (filter.empty() || filter == "single")
        for (const Problem& p : single_problems())
            shapes.push_back(as_json(p, measure(p)));
    const nlohmann::json report = {{"bench", "matmul"},
                                   {"threads", cpu_threads()},
                                   {"peak_gflops", peak},
                                   {"models", totals},
                                   {"shapes", shapes}};
    fmt::print("{}\n", report.dump());
}
