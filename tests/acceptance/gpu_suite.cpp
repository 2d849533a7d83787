// The CUDA kernels on a GPU against the CPU ops: small shapes with every odd edge, shapes that fill
// the device, and the quantiser over every fp32. Then what each op moves or computes per second.
// Prints one JSON object last; exit code 0 only without a difference, 77 without a GPU.
//   --quick: every 251st fp32   --checks: only the small shapes, for compute-sanitizer
//   --own: those without matmul, for its initcheck, which does not see what the library writes
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "kernels/core/error.h"
#include "kernels/core/thread_pool.h"
#include "tests/support/execs.h"
#include "tests/support/kernel_checks.h"
#include "tests/support/tensors.h"

using namespace stoa;

namespace {

/// A tensor on the device, from a host one or not initialised.
struct OnDevice {
    cuda::DeviceBuffer buffer;
    TensorView view;
    OnDevice(Shape shape, DType t, const Exec& exec)
        : buffer(shape.numel() * size_of(t)), view{buffer.data(), t, shape, exec.device} {}
    OnDevice(const Tensor& host, const Exec& exec)
        : OnDevice(host.view.shape, host.view.dtype, exec) {
        cuda::copy_to_device(buffer.data(), host.view.data, host.view.bytes(), exec.stream);
        cuda::synchronize(exec.stream);
    }
    operator TensorView() const { return view; }       // NOLINT
    operator ConstTensorView() const { return view; }  // NOLINT
};

nlohmann::json check(const Exec& exec, bool large, bool library, std::int64_t& differences) {
    nlohmann::json report;
    for (const auto& c : test::check_kernels(exec, large, library)) {
        fmt::print(stderr, "{:18} {:5} runs {:11} values {:3} differences, error {:.1e} {}\n", c.op,
                   c.runs, c.values, c.differences, c.worst, c.first);
        differences += c.differences;
        report[c.op] = {{"runs", c.runs}, {"values", c.values}, {"differences", c.differences}};
        if (c.worst > 0) report[c.op]["worst_error"] = c.worst;
    }
    return report;
}

// The quantiser, chunk by chunk: rows of 127 inputs and an Inf, so that the scale is 1 and every
// code shows; then the chunk as one row in blocks of one column, so that every input has its scale.
constexpr std::int64_t kRows = std::int64_t{1} << 17, kTaken = kQuantBlock - 1;
constexpr std::int64_t kValues = kRows * kQuantBlock;

std::int64_t differing(const Tensor& a, const Tensor& b) {
    std::int64_t n = 0;
    for (std::int64_t i = 0; i < a.view.bytes(); ++i)
        n += a.view.data[i] != b.view.data[i];
    return n;
}

nlohmann::json quantizer(const Exec& exec, std::int64_t stride, std::int64_t& differences) {
    const std::int64_t count = ((std::int64_t{1} << 32) + stride - 1) / stride;
    const Tensor x({kRows, kQuantBlock}, DType::fp32);
    const OnDevice device_x({kRows, kQuantBlock}, DType::fp32, exec);
    const Shape line{1, kValues};
    std::int64_t compared = 0, wrong = 0;
    const auto one = [&](DType code, Shape shape, Shape scales) {
        const Tensor codes(shape, code), scale(scales, DType::e8m0);
        const Tensor got_codes(shape, code), got_scale(scales, DType::e8m0);
        const OnDevice d_codes(shape, code, exec), d_scale(scales, DType::e8m0, exec);
        quantize({.codes = d_codes, .scale = d_scale, .x = device_x.view.reshaped(shape)}, exec);
        cuda::copy_from_device(got_codes.view.data, d_codes.view.data, codes.view.bytes(),
                               exec.stream);
        cuda::copy_from_device(got_scale.view.data, d_scale.view.data, scale.view.bytes(),
                               exec.stream);
        quantize({.codes = codes, .scale = scale, .x = x.view.reshaped(shape)}, {});
        cuda::synchronize(exec.stream);
        const auto same = [](const Tensor& a, const Tensor& b) {
            return std::memcmp(a.view.data, b.view.data,
                               static_cast<std::size_t>(a.view.bytes())) == 0;
        };
        if (!same(codes, got_codes)) wrong += differing(codes, got_codes);
        if (!same(scale, got_scale)) wrong += differing(scale, got_scale);
        compared += codes.view.numel() + scale.view.numel();
    };
    for (std::int64_t first = 0; first < count; first += kRows * kTaken) {
        float* const out = x.as<float>().data();
        parallel_for(kValues, 1 << 16, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) {
                const std::int64_t r = i / kQuantBlock, c = i % kQuantBlock;
                const std::int64_t input = std::min(first + r * kTaken + c, count - 1);
                out[i] = c == kTaken ? std::numeric_limits<float>::infinity()
                                     : bits_float(static_cast<std::uint32_t>(input * stride));
            }
        });
        cuda::copy_to_device(device_x.view.data, x.view.data, x.view.bytes(), exec.stream);
        for (const DType code : {DType::e4m3, DType::e5m2}) {
            one(code, {kRows, kQuantBlock}, {kRows, 1});
            one(code, line, line);
        }
    }
    differences += wrong;
    fmt::print(stderr, "quantiser: {} inputs, {} bytes compared, {} differences\n", count, compared,
               wrong);
    return {{"inputs", count}, {"compared", compared}, {"differences", wrong}};
}

struct Timing {
    std::string name;
    double unit_per_call;  // bytes or operations
    std::function<void()> call;
};

/// The median over several windows, each of at least 2 ms.
double ms_of(const std::function<void()>& call, const Exec& exec) {
    cuda::Stopwatch watch(exec.stream);
    for (int i = 0; i < 3; ++i)
        call();
    watch.start();
    call();
    const double once = watch.stop_ms();
    const int calls = std::clamp(static_cast<int>(2.0 / std::max(once, 1e-3)), 1, 200);
    std::vector<double> ms;
    for (int window = 0; window < 7; ++window) {
        watch.start();
        for (int i = 0; i < calls; ++i)
            call();
        ms.push_back(watch.stop_ms() / calls);
    }
    std::sort(ms.begin(), ms.end());
    return ms[3];
}

nlohmann::json timings(const Exec& exec) {
    constexpr std::int64_t kTokens = 16384, kModel = 4096, kFf = 14336, kVocab = 32768;
    nlohmann::json report;
    const auto gb_s = [&](const std::string& name, double bytes,
                          const std::function<void()>& call) {
        const double ms = ms_of(call, exec);
        report[name] = {{"ms", ms}, {"GB_s", bytes / ms * 1e-6}};
        fmt::print(stderr, "{:44} {:8.3f} ms {:8.0f} GB/s\n", name, ms, bytes / ms * 1e-6);
    };
    const auto random = [&](Shape shape, DType t, std::uint64_t seed) {
        // A slice of random values, repeated on the device: making all of them takes minutes.
        const Tensor part =
            test::random_tensor({std::min(shape.numel(), std::int64_t{1} << 20)}, t, seed);
        OnDevice x(shape, t, exec);
        for (std::int64_t at = 0; at < x.view.bytes(); at += part.view.bytes())
            cuda::copy_to_device(x.view.data + at, part.view.data,
                                 std::min(part.view.bytes(), x.view.bytes() - at), exec.stream);
        cuda::synchronize(exec.stream);
        return x;
    };
    const double n = static_cast<double>(kTokens * kModel), bf = 2.0;
    {
        const OnDevice x = random({kTokens, kModel}, DType::bf16, 1),
                       y = random({kTokens, kModel}, DType::bf16, 2);
        const OnDevice w = random({kModel}, DType::fp32, 3), rstd({kTokens}, DType::fp32, exec);
        const OnDevice d_x({kTokens, kModel}, DType::bf16, exec),
            d_w = random({kModel}, DType::fp32, 4);
        gb_s("add bf16 (16384, 4096)", 3 * bf * n, [&] { add(d_x, x, y, exec); });
        gb_s("rms_norm_forward bf16 (16384, 4096)", 2 * bf * n,
             [&] { rms_norm_forward({.y = d_x, .rstd = rstd, .x = x, .weight = w}, exec); });
        gb_s("rms_norm_backward bf16 (16384, 4096)", 3 * bf * n, [&] {
            rms_norm_backward(
                {.d_x = d_x, .d_weight = d_w, .d_y = y, .x = x, .weight = w, .rstd = rstd}, exec);
        });
        const OnDevice codes({kTokens, kModel}, DType::e4m3, exec);
        for (const QuantBlocks kind :
             {QuantBlocks::row, QuantBlocks::column, QuantBlocks::square}) {
            const OnDevice scale(scale_shape({kTokens, kModel}, kind), DType::e8m0, exec);
            gb_s(fmt::format("quantize bf16 to e4m3, blocks {}", static_cast<int>(kind)), 3.0 * n,
                 [&] { quantize({.codes = codes, .scale = scale, .x = x}, exec); });
        }
        const OnDevice cos = random({4096, 64}, DType::fp32, 5),
                       sin = random({4096, 64}, DType::fp32, 6);
        Tensor positions({kTokens}, DType::int32);
        for (std::int64_t i = 0; i < kTokens; ++i)
            positions.as<std::int32_t>()[static_cast<std::size_t>(i)] =
                static_cast<std::int32_t>(i % 4096);
        const OnDevice at(positions, exec);
        gb_s("rope bf16 (16384, 32, 128)", 2 * bf * n, [&] {
            rope({.x = d_x.view.reshaped({kTokens, 32, 128}),
                  .cos = cos,
                  .sin = sin,
                  .positions = at},
                 exec);
        });
    }
    {
        const OnDevice gate = random({kTokens, kFf}, DType::bf16, 1),
                       up = random({kTokens, kFf}, DType::bf16, 2);
        const OnDevice y({kTokens, kFf}, DType::bf16, exec);
        const double ff = static_cast<double>(kTokens * kFf);
        gb_s("swiglu_forward bf16 (16384, 14336)", 3 * bf * ff,
             [&] { swiglu_forward({.y = y, .gate = gate, .up = up}, exec); });
        gb_s("swiglu_backward bf16 (16384, 14336)", 5 * bf * ff, [&] {
            swiglu_backward({.d_gate = gate, .d_up = up, .d_y = y, .gate = gate, .up = up}, exec);
        });
    }
    {
        const OnDevice logits = random({4096, kVocab}, DType::bf16, 1),
                       out({4096, kVocab}, DType::bf16, exec);
        const OnDevice max({4096}, DType::fp32, exec), sum({4096}, DType::fp32, exec),
            target({4096}, DType::fp32, exec);
        const OnDevice targets(Tensor({4096}, DType::int32), exec),
            loss(Tensor({1}, DType::fp64), exec);
        const double size = 4096.0 * kVocab;
        gb_s("cross_entropy_row_max bf16 (4096, 32768)", bf * size, [&] {
            cross_entropy_row_max({.row_max = max, .logits = logits, .vocab_valid = kVocab}, exec);
        });
        for (const std::int64_t chunk : {std::int64_t{0}, kVocab / 16})
            gb_s(fmt::format("cross_entropy_exp_sum, {} chunks", chunk == 0 ? 1 : 16), bf * size,
                 [&] {
                     cross_entropy_exp_sum({.exp_sum = sum,
                                            .target_logit = target,
                                            .logits = logits,
                                            .row_max = max,
                                            .targets = targets,
                                            .vocab_valid = kVocab,
                                            .chunk = chunk},
                                           exec);
                 });
        gb_s("cross_entropy_finish", 2 * bf * size, [&] {
            cross_entropy_finish({.d_logits = out,
                                  .loss_sum = loss,
                                  .logits = logits,
                                  .row_max = max,
                                  .exp_sum = sum,
                                  .target_logit = target,
                                  .targets = targets,
                                  .vocab_valid = kVocab,
                                  .d_loss = 1e-3},
                                 exec);
        });
        const OnDevice d_y = random({kTokens, kModel}, DType::bf16, 1),
                       table = random({kVocab, kModel}, DType::fp32, 2);
        Tensor tokens({kTokens}, DType::int32);
        for (std::int64_t i = 0; i < kTokens; ++i)
            tokens.as<std::int32_t>()[static_cast<std::size_t>(i)] =
                static_cast<std::int32_t>((i * i) % 20011);
        const OnDevice ids(tokens, exec);
        gb_s("embedding_backward bf16 into fp32 (16384, 4096)", n * bf + n * 8,
             [&] { embedding_backward({.d_table = table, .d_y = d_y, .tokens = ids}, exec); });
    }
    {
        const Shape s{16384, 8192};
        const double size = 16384.0 * 8192.0;
        const OnDevice param = random(s, DType::fp32, 1), m = random(s, DType::fp32, 2),
                       v = random(s, DType::fp32, 3), grad = random(s, DType::fp32, 4);
        gb_s("adamw fp32, 134 M parameters", 28 * size,
             [&] { adamw({.param = param, .m = m, .v = v, .grad = grad, .lr = 1e-4}, exec); });
        const OnDevice p24({16384, 8192}, DType::fp24, exec), m8(s, DType::e4m3, exec),
            v8(s, DType::e4m3, exec);
        const OnDevice ms({16384, 64}, DType::e8m0, exec), vs({16384, 64}, DType::e8m0, exec);
        cast(p24, param, exec);
        quantize({.codes = m8, .scale = ms, .x = m}, exec);
        add(v, m, m, exec);
        quantize({.codes = v8, .scale = vs, .x = grad}, exec);
        gb_s("adamw fp24, e4m3, e4m3, grad fp32", 14 * size, [&] {
            adamw({.param = p24,
                   .m = m8,
                   .v = v8,
                   .grad = grad,
                   .lr = 1e-4,
                   .m_scale = ms,
                   .v_scale = vs,
                   .logical_cols = 8192},
                  exec);
        });
        const OnDevice sum({kExactSumWords}, DType::int32, exec);
        gb_s("sum_of_squares fp32", 4 * size, [&] { sum_of_squares(sum, grad, 1024, exec); });
        gb_s("random_normal fp32", 4 * size, [&] {
            random_normal({.x = param, .key = 1, .logical_rows = 16384, .logical_cols = 8192},
                          exec);
        });
    }
    const auto product = [&](const std::string& name, std::int64_t side, DType a_type, DType c_type,
                             bool ta, bool tb, QuantBlocks a_blocks, QuantBlocks b_blocks) {
        const Shape s{side, side};
        const OnDevice wide = random(s, DType::fp32, 1), a(s, a_type, exec), b(s, a_type, exec),
                       c(s, c_type, exec);
        const bool codes = size_of(a_type) == 1;
        const OnDevice a_scale(scale_shape(s, a_blocks), DType::e8m0, exec),
            b_scale(scale_shape(s, b_blocks), DType::e8m0, exec);
        if (codes) {
            quantize({.codes = a, .scale = a_scale, .x = wide}, exec);
            quantize({.codes = b, .scale = b_scale, .x = wide}, exec);
        } else {
            cast(a, wide, exec);
            cast(b, wide, exec);
        }
        MatmulArgs args{.c = c, .a = a, .b = b, .transpose_a = ta, .transpose_b = tb};
        if (codes) args.a_scale = a_scale.view, args.b_scale = b_scale.view;
        const double ms = ms_of([&] { matmul(args, exec); }, exec);
        const double flop =
            2.0 * static_cast<double>(side) * static_cast<double>(side) * static_cast<double>(side);
        report[name] = {{"ms", ms}, {"TFLOP_s", flop / ms * 1e-9}};
        fmt::print(stderr, "{:44} {:8.3f} ms {:8.0f} TFLOP/s\n", name, ms, flop / ms * 1e-9);
    };
    using enum QuantBlocks;
    for (const std::int64_t side : {4096, 8192}) {
        const std::string size = " " + std::to_string(side);
        product("matmul bf16, c bf16" + size, side, DType::bf16, DType::bf16, false, true, row,
                row);
        product("matmul e4m3 1x128 x 128x128, c bf16" + size, side, DType::e4m3, DType::bf16, false,
                true, row, square);
        product("matmul e4m3 128x1 x 128x1, c fp32" + size, side, DType::e4m3, DType::fp32, true,
                false, column, column);
    }
    product("matmul fp32 4096", 4096, DType::fp32, DType::fp32, false, true, row, row);
    return report;
}

int suite(bool quick, bool checks_only, bool library) {
    std::string reason;
    const auto devices = cuda::list_devices(reason);
    if (devices.empty()) {
        fmt::print("{}\n", nlohmann::json{{"skipped", "no GPU: " + reason}}.dump());
        return 77;
    }
    set_cpu_threads(std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
    const Exec exec = test::available_execs().back();
    const auto begin = std::chrono::steady_clock::now();
    std::int64_t differences = 0;
    nlohmann::json report{{"device", devices[0].name}, {"capability", devices[0].capability}};
    report["small"] = check(exec, false, library, differences);
    if (!checks_only) {
        report["large"] = check(exec, true, true, differences);
        report["quantizer"] = quantizer(exec, quick ? 251 : 1, differences);
        report["timings"] = timings(exec);
    }
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    report["differences"] = differences;
    report["seconds"] = elapsed.count();
    fmt::print("{}\n", report.dump());
    return differences == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
    const std::string option = argc > 1 ? argv[1] : "";
    try {
        return suite(option == "--quick", option == "--checks" || option == "--own",
                     option != "--own");
    } catch (const std::exception& e) {
        fmt::print(stderr, "{}\n", e.what());
        return 1;
    }
}
