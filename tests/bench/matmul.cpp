// GFLOP/s of matmul on one core, as a share of the peak that an in-register FMA loop reaches in the
// same run, and against a naive triple loop. The last line is one JSON object.
#include "kernels/matmul.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/core/buffer.h"
#include "kernels/cpu/isa.h"

namespace {

using namespace stoa;

constexpr int kRepetitions = 7;

struct Timing {
    double median_s = 0.0, spread = 0.0;  // spread: (slowest - fastest) / median
};

/// Processor time of this thread: what other processes do on the machine stays out of it.
double thread_seconds() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

template <class Fn>
Timing time_of(const Fn& fn, int repetitions = kRepetitions) {
    fn();  // warm caches and scratch
    std::vector<double> seconds;
    for (int i = 0; i < repetitions; ++i) {
        const double begin = thread_seconds();
        fn();
        seconds.push_back(thread_seconds() - begin);
    }
    std::sort(seconds.begin(), seconds.end());
    const double median = seconds[seconds.size() / 2];
    return {median, (seconds.back() - seconds.front()) / median};
}

/// 24 independent chains of fused multiply-adds that never leave the registers.
double peak_gflops() {
    constexpr int kChains = 24, kWidth = 16, kSteps = 2'000'000;
    using Vector = float __attribute__((vector_size(64)));
    static volatile float sink = 0.0f;
    const Timing t = time_of([&] {
        cpu::vectorised([&] {
            Vector chain[kChains];
            for (auto& c : chain)
                c = Vector{} + sink;
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
            sink = sum[0] * 0.0f;
        });
    });
    return 2.0 * kChains * kWidth * kSteps / t.median_s * 1e-9;
}

struct Problem {
    std::int64_t m, n, k;
    bool transpose_a, transpose_b;
    DType dtype;
};

Tensor filled(Shape shape, DType dtype) {
    Tensor t(shape, dtype);
    dispatch_dtype(dtype, [&]<Element T>(T) {
        std::uint32_t state = 1;
        for (T& x : t.as<T>()) {
            state = state * 1664525u + 1013904223u;
            x = narrow_to<T>(static_cast<Wide<T>>(state >> 8) * Wide<T>(0x1p-24) - Wide<T>(0.5));
        }
    });
    return t;
}

/// What one would write first: three loops, row-major, no tiles.
void naive(float* c, const float* a, const float* b, std::int64_t m, std::int64_t n,
           std::int64_t k) {
    for (std::int64_t i = 0; i < m; ++i)
        for (std::int64_t j = 0; j < n; ++j) {
            float sum = 0.0f;
            for (std::int64_t p = 0; p < k; ++p)
                sum += a[i * k + p] * b[p * n + j];
            c[i * n + j] = sum;
        }
}

std::string name_of(const Problem& p) {
    return fmt::format("{}{} {} m={} n={} k={}", p.transpose_a ? 'T' : 'N',
                       p.transpose_b ? 'T' : 'N', dtype_name(p.dtype), p.m, p.n, p.k);
}

nlohmann::json measure(const Problem& p, double peak) {
    const Tensor a = filled(p.transpose_a ? Shape{p.k, p.m} : Shape{p.m, p.k}, p.dtype);
    const Tensor b = filled(p.transpose_b ? Shape{p.n, p.k} : Shape{p.k, p.n}, p.dtype);
    const Tensor c({p.m, p.n}, DType::fp32);
    const double flop = 2.0 * static_cast<double>(p.m * p.n * p.k);
    const int inner = static_cast<int>(std::max(1.0, 2e8 / flop));
    const Timing t = time_of([&] {
        for (int i = 0; i < inner; ++i)
            matmul({.c = c,
                    .a = a,
                    .b = b,
                    .transpose_a = p.transpose_a,
                    .transpose_b = p.transpose_b},
                   {});
    });
    const double gflops = flop * inner / t.median_s * 1e-9;
    fmt::print("{:<36} {:8.1f} GFLOP/s  {:5.1f} % of peak  spread {:.1f} %\n", name_of(p), gflops,
               100.0 * gflops / peak, 100.0 * t.spread);
    return {{"name", name_of(p)},
            {"gflops", gflops},
            {"share_of_peak", gflops / peak},
            {"spread", t.spread}};
}

nlohmann::json compare_with_naive() {
    constexpr std::int64_t kM = 512, kN = 512, kK = 512;
    const Tensor a = filled({kM, kK}, DType::fp32), b = filled({kK, kN}, DType::fp32);
    const Tensor c({kM, kN}, DType::fp32);
    const Timing ours = time_of([&] { matmul({.c = c, .a = a, .b = b}, {}); });
    const Timing plain = time_of([&] {
        naive(c.as<float>().data(), a.as<float>().data(), b.as<float>().data(), kM, kN, kK);
    });
    const double ratio = plain.median_s / ours.median_s;
    fmt::print("512^3: {:.1f} times a naive triple loop (spread {:.1f} % and {:.1f} %)\n", ratio,
               100.0 * ours.spread, 100.0 * plain.spread);
    return {{"m_n_k", kM},
            {"ratio", ratio},
            {"spread_ours", ours.spread},
            {"spread_naive", plain.spread}};
}

}  // namespace

int main() {
    const double peak = peak_gflops();
    fmt::print("peak of one core, FMA in registers: {:.1f} GFLOP/s\n", peak);
    nlohmann::json shapes = nlohmann::json::array();
    const auto f = DType::fp32, h = DType::bf16;
    for (const Problem& p : std::vector<Problem>{
             {1024, 128, 128, false, false, f},  {4096, 256, 256, false, false, f},
             {4096, 768, 256, false, false, f},  {4096, 256, 768, false, false, f},
             {4096, 4096, 256, false, false, f}, {4096, 128, 128, false, true, f},
             {4096, 256, 256, false, true, f},   {4096, 256, 768, false, true, f},
             {4096, 4096, 256, false, true, f},  {4096, 256, 4096, false, false, f},
             {128, 128, 4096, true, false, f},   {256, 768, 4096, true, false, f},
             {256, 4096, 4096, true, false, f},  {4096, 256, 256, false, false, h},
             {4096, 256, 256, false, true, h},   {256, 768, 4096, true, false, h},
             {1, 768, 256, false, false, f},     {1, 768, 256, false, true, f},
             {16, 768, 256, false, false, f},    {16, 768, 256, false, true, f},
             {100, 768, 256, false, false, f},   {100, 768, 256, false, true, f},
             {64, 64, 32, false, true, f},       {64, 32, 64, false, false, f}})
        shapes.push_back(measure(p, peak));
    const nlohmann::json report = {{"bench", "matmul"},
                                   {"peak_gflops", peak},
                                   {"naive", compare_with_naive()},
                                   {"shapes", shapes}};
    fmt::print("{}\n", report.dump());
}
