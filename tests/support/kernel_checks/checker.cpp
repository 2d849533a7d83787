#include "tests/support/kernel_checks/checker.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/philox.h"

namespace stoa::test {
namespace {

bool is_nan(const std::byte* p, DType t) {
    const auto load = [&]<class T>(T x) {
        std::memcpy(&x, p, sizeof x);
        return x;
    };
    switch (t) {
        case DType::fp32:
            return std::isnan(load(float{}));
        case DType::fp64:
            return std::isnan(load(double{}));
        case DType::bf16:
            return std::isnan(to_float(load(bf16{})));
        case DType::fp16:
            return std::isnan(to_float(load(fp16{})));
        case DType::fp24:
            return std::isnan(to_float(load(fp24{})));
        default:
            return false;
    }
}

/// Values that differ in a bit; one NaN is as good as another.
void compare_bits(KernelCheck& check, ConstTensorView got, ConstTensorView expected,
                  const std::string& where) {
    const std::int64_t size = size_of(got.dtype);
    check.values += got.numel();
    for (std::int64_t i = 0; i < got.numel(); ++i) {
        const std::byte *const a = got.data + i * size, *const b = expected.data + i * size;
        if (std::memcmp(a, b, static_cast<std::size_t>(size)) == 0) continue;
        if (is_nan(a, got.dtype) && is_nan(b, got.dtype)) continue;
        if (++check.differences == 1) check.first = where + ", element " + std::to_string(i);
    }
}
void compare_values(KernelCheck& check, ConstTensorView got, ConstTensorView expected,
                    double tolerance, const std::string& where) {
    check.values += got.numel();
    const double error = relative_error(to_double(got), to_double(expected));
    check.worst = std::max(check.worst, error);
    if (error <= tolerance) return;
    ++check.differences;
    if (check.first.empty()) check.first = where + ", error " + std::to_string(error);
}

}  // namespace

void compare_written(KernelCheck& check, const TensorView& got, const TensorView& expected,
                     double tolerance, const std::string& where) {
    if (got.empty()) return;
    const bool bits = tolerance == 0.0 || size_of(got.dtype) == 1 || got.dtype == DType::int32;
    bits ? compare_bits(check, got, expected, where)
         : compare_values(check, got, expected, tolerance, where);
}

std::string named(DType t, const Shape& s) { return std::string(dtype_name(t)) + " " + s.str(); }

double exp_tolerance(DType t) { return t == DType::fp64 ? 1e-13 : 0.0; }

double library_tolerance(DType t) {
    static const bool on_gpu = [] {
        std::string reason;
        return !cuda::list_devices(reason).empty();
    }();
    return !on_gpu ? 0.0 : t == DType::fp64 ? 1e-12 : t == DType::bf16 ? 1e-2 : 1e-3;
}

Tensor ints(std::int64_t n, std::uint64_t seed, std::int32_t below, std::int32_t least) {
    Tensor t({n}, DType::int32);
    Draws draws(mix_key(seed, 0x1275), 0);
    for (std::int32_t& x : t.as<std::int32_t>())
        x = static_cast<std::int32_t>(draws.between(least, below - 1));
    return t;
}

Tensor any_bits(Shape shape, DType dtype, std::uint64_t seed) {
    Tensor t(shape, dtype);
    Draws draws(mix_key(seed, 0xb175), 0);
    for (std::int64_t i = 0; i < t.view.bytes(); ++i)
        t.view.data[i] = static_cast<std::byte>(draws.next_u32() >> 24);
    return t;
}

std::vector<std::int64_t> lengths(const Checker& c) {
    if (c.large) return {(std::int64_t{1} << 22) + 5};
    return {1, 31, 256, 1000};
}
std::vector<Shape> row_shapes(const Checker& c) {
    if (c.large) return {{4096, 1024}, {1000, 4096}, {777, 1283}};
    return {{1, 1}, {3, 127}, {17, 16}, {2, 3, 96}, {33, 1040}};
}

}  // namespace stoa::test
