// Values per second of quantize and dequantize on one core, where the tensor stays in the cache and
// where it does not. The last line is one JSON object.
#include "kernels/quantize.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/core/buffer.h"
#include "kernels/core/philox.h"
#include "kernels/cpu/isa.h"

namespace {

using namespace stoa;

constexpr int kRepetitions = 9;

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
Timing time_of(const Fn& fn) {
    fn();  // warm caches
    std::vector<double> seconds;
    for (int i = 0; i < kRepetitions; ++i) {
        const double begin = thread_seconds();
        fn();
        seconds.push_back(thread_seconds() - begin);
    }
    std::sort(seconds.begin(), seconds.end());
    const double median = seconds[seconds.size() / 2];
    return {median, (seconds.back() - seconds.front()) / median};
}

struct Size {
    std::int64_t rows, cols;
    const char* where;
};
constexpr Size kSizes[] = {{128, 512, "L2"}, {4096, 4096, "memory"}};
constexpr const char* kKindNames[] = {"row", "column", "square"};
constexpr const char* kIsaNames[] = {"portable", "avx2", "avx512"};

Tensor filled(Shape shape, DType dtype) {
    Tensor t(shape, dtype);
    dispatch_dtype(dtype, [&]<Element T>(T) {
        Draws draws(1, 0);
        for (T& x : t.as<T>())
            x = narrow_to<T>(static_cast<Wide<T>>(draws.next_u32() >> 8) * Wide<T>(0x1p-24) -
                             Wide<T>(0.5));
    });
    return t;
}

struct Problem {
    Size size;
    DType x, codes;
    QuantBlocks kind;
    cpu::Isa isa;
};

nlohmann::json report(const char* op, const Problem& p, const Timing& t, double values) {
    const std::string name = fmt::format("{} {} {} {} {} {}", op, dtype_name(p.x),
                                         dtype_name(p.codes), kKindNames[static_cast<int>(p.kind)],
                                         kIsaNames[static_cast<int>(p.isa)], p.size.where);
    const double giga = values / t.median_s * 1e-9;
    fmt::print("{:<44} {:7.2f} Gvalues/s  spread {:.1f} %\n", name, giga, 100.0 * t.spread);
    return {{"name", name}, {"gvalues_per_s", giga}, {"spread", t.spread}};
}

void measure(const Problem& p, nlohmann::json& out) {
    const Shape shape{p.size.rows, p.size.cols};
    const Tensor x = filled(shape, p.x), codes(shape, p.codes);
    const Tensor scale(scale_shape(shape, p.kind), DType::e8m0), y(shape, DType::fp32);
    const auto inner = std::max<std::int64_t>(1, (std::int64_t{1} << 24) / shape.numel());
    const auto values = static_cast<double>(inner * shape.numel());
    cpu::set_isa_for_test(p.isa);
    out.push_back(report("quantize", p, time_of([&] {
                             for (std::int64_t i = 0; i < inner; ++i)
                                 quantize({.codes = codes, .scale = scale, .x = x}, {});
                         }),
                         values));
    if (p.x == DType::fp32)
        out.push_back(report("dequantize", p, time_of([&] {
                                 for (std::int64_t i = 0; i < inner; ++i)
                                     dequantize({.y = y, .codes = codes, .scale = scale}, {});
                             }),
                             values));
    cpu::set_isa_for_test(std::nullopt);
}

}  // namespace

int main() {
    nlohmann::json cases = nlohmann::json::array();
    for (const cpu::Isa isa : {cpu::Isa::portable, cpu::Isa::avx2, cpu::Isa::avx512}) {
        if (!cpu::isa_available(isa)) continue;
        for (const Size& size : kSizes)
            for (const QuantBlocks kind :
                 {QuantBlocks::row, QuantBlocks::column, QuantBlocks::square}) {
                for (const DType x : {DType::fp32, DType::bf16, DType::fp16})
                    measure({size, x, DType::e4m3, kind, isa}, cases);
                measure({size, DType::fp32, DType::e5m2, kind, isa}, cases);
            }
    }
    fmt::print("{}\n", nlohmann::json{{"bench", "quantize"}, {"cases", cases}}.dump());
}
