// Every fp32, all 2^32 of them, through our conversions to e4m3, e5m2, fp16 and bf16, one by one,
// through the ops on every instruction set of this machine and through the bodies of the CUDA
// kernels, run on the host, against the CUDA toolkit's own host conversions; and every scale
// against the formula of kernels/quantize.h. Prints one JSON object last; exit code 0 only without
// a difference, 77 without the toolkit's headers.
//   quantizer_exhaustive [--quick]        --quick: every 251st; a quarter of those by the kernels
#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "kernels/core/buffer.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "kernels/elementwise.h"
#include "kernels/quantize.h"
#include "tests/support/cuda_conversions.h"
#include "tests/support/execs.h"

using namespace stoa;

namespace {

constexpr std::int64_t kRows = std::int64_t{1} << 13, kTaken = kQuantBlock - 1;
constexpr std::int64_t kInputs = kRows * kTaken;  // of a chunk, the last repeated if it is short
constexpr std::int64_t kValues = kRows * kQuantBlock;  // the same and an Inf per row
constexpr std::int64_t kGrain = std::int64_t{1} << 15;
constexpr std::int64_t kQuickKernels = 4;  // of so many chunks, kernels take one
constexpr const char* kIsaNames[] = {"portable", "avx2", "avx512"};

struct Tally {
    std::int64_t comparisons = 0;
    std::atomic<std::int64_t> differences{0};
};

/// fn(i) for every value of a chunk, on both threads.
template <class Fn>
void for_each_value(const Fn& fn) {
    parallel_for(kValues, kGrain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i)
            fn(i);
    });
}

/// Rows of 127 consecutive inputs and an Inf, which makes the scale of each row's block 1.
void fill(float* out, std::int64_t first, std::int64_t count, std::int64_t stride) {
    for_each_value([=](std::int64_t i) {
        const std::int64_t r = i / kQuantBlock, c = i % kQuantBlock;
        const std::int64_t input = std::min(first + r * kTaken + c, count - 1);
        out[i] = c == kTaken ? std::numeric_limits<float>::infinity()
                             : bits_float(static_cast<std::uint32_t>(input * stride));
    });
}

/// Counts the values whose bits differ and shows the first of each range.
template <class T>
void compare(Tally& tally, const std::string& what, const float* x, const T* ours,
             const T* expected) {
    parallel_for(kValues, kGrain, [&](std::int64_t begin, std::int64_t end) {
        const auto bytes = static_cast<std::size_t>(end - begin) * sizeof(T);
        if (std::memcmp(ours + begin, expected + begin, bytes) == 0) return;
        std::int64_t wrong = 0;
        for (std::int64_t i = begin; i < end; ++i)
            if (ours[i].bits != expected[i].bits && ++wrong == 1)
                fmt::print(stderr, "{}: {:#010x} becomes {:#x}, expected {:#x}\n", what,
                           float_bits(x[i]), ours[i].bits, expected[i].bits);
        tally.differences += wrong;
    });
    tally.comparisons += kInputs;
}

template <class T>
T convert(float x) {
    if constexpr (std::is_same_v<T, e4m3>)
        return to_e4m3(x);
    else if constexpr (std::is_same_v<T, e5m2>)
        return to_e5m2(x);
    else
        return narrow_to<T>(x);
}

/// fn(name) under every instruction set.
template <class Fn>
void on_every_isa(const Fn& fn) {
    for (const cpu::Isa isa : {cpu::Isa::portable, cpu::Isa::avx2, cpu::Isa::avx512}) {
        if (!cpu::isa_available(isa)) continue;
        cpu::set_isa_for_test(isa);
        fn(std::string(kIsaNames[static_cast<int>(isa)]));
    }
    cpu::set_isa_for_test(std::nullopt);
}

/// By the CUDA kernels, whose threads are fibers; of kRows, or of the columns of one row, a part on
/// each of our threads.
void quantize_by_kernel(const QuantizeArgs& all) {
    static const Exec kKernels = test::available_execs().back();
    const bool columns = all.codes.rows() == 1;
    parallel_for(
        kRows / kQuantBlock, kRows / kQuantBlock / 2, [&](std::int64_t begin, std::int64_t end) {
            const auto part = [&](const auto& t) {
                const std::int64_t each = t.numel() / (kRows / kQuantBlock);
                const auto flat =
                    t.reshaped({t.numel(), 1}).slice_rows(begin * each, (end - begin) * each);
                return columns ? flat.reshaped({1, flat.numel()})
                               : flat.reshaped({flat.numel() / t.cols(), t.cols()});
            };
            test::run(quantize,
                      {.codes = part(all.codes), .scale = part(all.scale), .x = part(all.x)},
                      kKernels);
        });
}

/// What one output type needs for a chunk; allocated once.
template <class T>
struct Outputs {
    Tensor ours{{kRows, kQuantBlock}, dtype_of<T>()}, expected{{kRows, kQuantBlock}, dtype_of<T>()};
    Tensor row_scale{{kRows, 1}, DType::e8m0}, square_scale{{kRows / kQuantBlock, 1}, DType::e8m0};
    Tensor scale{{1, kValues}, DType::e8m0}, expected_scale{{1, kValues}, DType::e8m0};
};

/// The toolkit's values of the chunk into `expected`, and ours one by one against them. The toolkit
/// drops the payload of fp16 and bf16 NaNs and we keep it: there, ours is what the ops must give.
template <class T>
void check_conversion(Tally& tally, const Tensor& x, const Outputs<T>& out) {
    const float* const in = x.as<float>().data();
    T *const ours = out.ours.template as<T>().data(), *const expected =
                                                          out.expected.template as<T>().data();
    parallel_for(kValues, kGrain, [&](std::int64_t begin, std::int64_t end) {
        test::cuda_from_float(expected + begin, in + begin, end - begin);
        for (std::int64_t i = begin; i < end; ++i) {
            ours[i] = convert<T>(in[i]);
            if constexpr (sizeof(T) == 2)
                if (std::isnan(in[i]) && std::isnan(to_float(ours[i])) &&
                    std::isnan(to_float(expected[i])))
                    expected[i] = ours[i];
        }
    });
    compare(tally, std::string("to_") + dtype_name(dtype_of<T>()), in, ours, expected);
}

template <class T>
void check_cast(Tally& tally, const Tensor& x, const Outputs<T>& out) {
    check_conversion(tally, x, out);
    on_every_isa([&](const std::string& isa) {
        cast(out.ours, x, {});
        compare(tally, "cast " + isa, x.as<float>().data(), out.ours.template as<T>().data(),
                out.expected.template as<T>().data());
    });
}

template <class Code>
void check_quantize(Tally& tally, const Tensor& x, const Outputs<Code>& out, bool by_kernel) {
    check_conversion(tally, x, out);
    const auto compare_kernel = [&](const char* what, const Tensor& scale) {
        quantize_by_kernel({.codes = out.ours, .scale = scale, .x = x});
        compare(tally, what, x.as<float>().data(), out.ours.template as<Code>().data(),
                out.expected.template as<Code>().data());
    };
    if (by_kernel) compare_kernel("kernel of rows", out.row_scale);
    if (by_kernel) compare_kernel("kernel of tiles", out.square_scale);
    on_every_isa([&](const std::string& isa) {
        quantize({.codes = out.ours, .scale = out.row_scale, .x = x}, {});
        compare(tally, "quantize " + isa, x.as<float>().data(), out.ours.template as<Code>().data(),
                out.expected.template as<Code>().data());
    });
}

/// s of kernels/quantize.h, as it is written there.
template <class Code>
float factor_of(float a) {
    if (!(a > 0.0f && a <= std::numeric_limits<float>::max())) return 1.0f;
    const float s = std::min((std::is_same_v<Code, e4m3> ? 448.0f : 57344.0f) / a, 0x1p126f);
    return bits_float(float_bits(s) & 0xff800000u);
}

/// The chunk as one row in blocks of one column: every input has its own scale.
template <class Code>
void check_scales(Tally& tally, const Tensor& x, const Outputs<Code>& out, bool by_kernel) {
    const float* const in = x.as<float>().data();
    Code* const codes = out.expected.template as<Code>().data();
    e8m0* const scales = out.expected_scale.template as<e8m0>().data();
    for_each_value([=](std::int64_t i) {
        const float s = factor_of<Code>(std::abs(in[i]));
        codes[i] = convert<Code>(in[i] * s);
        scales[i].bits = static_cast<std::uint8_t>(float_bits(1.0f / s) >> 23);
    });
    const Shape line{1, kValues};
    const QuantizeArgs args{
        .codes = out.ours.view.reshaped(line), .scale = out.scale, .x = x.view.reshaped(line)};
    const auto compare_both = [&](const std::string& by) {
        compare(tally, "scale " + by, in,
                static_cast<const e8m0*>(out.scale.template as<e8m0>().data()),
                static_cast<const e8m0*>(scales));
        compare(tally, "scaled " + by, in, out.ours.template as<Code>().data(), codes);
    };
    on_every_isa([&](const std::string& isa) {
        quantize(args, {});
        compare_both(isa);
    });
    if (!by_kernel) return;
    quantize_by_kernel(args);
    compare_both("kernel");
}

/// All codes of a narrow type, decoded.
template <class T>
void check_decode(Tally& tally) {
    for (int code = 0; code < 1 << 8 * sizeof(T); ++code) {
        const T x{static_cast<decltype(T::bits)>(code)};
        bool equal;
        if constexpr (sizeof(T) == 1) {
            const fp16 ours = to_fp16(to_float(x)), theirs = test::cuda_to_fp16(x);
            equal = ours.bits == theirs.bits ||
                    (std::isnan(to_float(ours)) && std::isnan(to_float(theirs)));
        } else {
            const float ours = to_float(x), theirs = test::cuda_to_float(x);
            equal =
                float_bits(ours) == float_bits(theirs) || (std::isnan(ours) && std::isnan(theirs));
        }
        if (!equal) fmt::print(stderr, "decode {}: {:#x}\n", dtype_name(dtype_of<T>()), code);
        tally.differences += !equal;
        ++tally.comparisons;
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (!test::cuda_conversions_present()) {
        fmt::print("{{\"skipped\": \"cuda_fp8.h of the CUDA toolkit was not found\"}}\n");
        return 77;
    }
    const bool quick = argc > 1 && std::string(argv[1]) == "--quick";
    const std::int64_t stride = quick ? 251 : 1;
    const std::int64_t count = ((std::int64_t{1} << 32) + stride - 1) / stride;
    set_cpu_threads(2);
    const auto begin = std::chrono::steady_clock::now();
    Tally tally;
    std::int64_t by_kernels = 0;
    check_decode<e4m3>(tally);
    check_decode<e5m2>(tally);
    check_decode<fp16>(tally);
    const Tensor x({kRows, kQuantBlock}, DType::fp32);
    const Outputs<e4m3> for_e4m3;
    const Outputs<e5m2> for_e5m2;
    const Outputs<fp16> for_fp16;
    const Outputs<bf16> for_bf16;
    for (std::int64_t first = 0; first < count; first += kInputs) {
        fill(x.as<float>().data(), first, count, stride);
        const bool by_kernel = first / kInputs % (quick ? kQuickKernels : 1) == 0;
        by_kernels += by_kernel ? std::min(kInputs, count - first) : 0;
        check_quantize(tally, x, for_e4m3, by_kernel);
        check_quantize(tally, x, for_e5m2, by_kernel);
        check_cast(tally, x, for_fp16);
        check_cast(tally, x, for_bf16);
        if (first * stride >= std::int64_t{1} << 31) continue;  // a scale knows no sign
        check_scales(tally, x, for_e4m3, by_kernel);
        check_scales(tally, x, for_e5m2, by_kernel);
    }
    nlohmann::json isas = nlohmann::json::array();
    on_every_isa([&](const std::string& isa) { isas.push_back(isa); });
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    const std::int64_t differences = tally.differences;
    const nlohmann::json report = {{"inputs", count},
                                   {"inputs_of_kernels", by_kernels},
                                   {"comparisons", tally.comparisons},
                                   {"differences", differences},
                                   {"isas", isas},
                                   {"cuda_headers", test::cuda_headers_version()},
                                   {"seconds", elapsed.count()}};
    fmt::print("{}\n", report.dump());
    return differences == 0 ? 0 : 1;
}
