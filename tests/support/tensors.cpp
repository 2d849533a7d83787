#include "tests/support/tensors.h"

#include <cstring>
#include <limits>

#include "kernels/core/philox.h"

namespace stoa::test {
namespace {
constexpr std::int64_t kGuardBytes = 64;
constexpr unsigned char kGuard = 0xA5;
}  // namespace

Tensor random_tensor(Shape shape, DType dtype, std::uint64_t seed, double scale) {
    Tensor t(shape, dtype);
    Draws draws(mix_key(seed, 0x7e57), 0);
    dispatch_dtype(dtype, [&]<Element T>(T) {
        for (T& x : t.as<T>())
            x = narrow_to<T>(static_cast<Wide<T>>(scale * (draws.next_u32() * 0x1p-31 - 1.0)));
    });
    return t;
}

PoisonedTensor poisoned_tensor(Shape shape, DType dtype) {
    const std::int64_t bytes = shape.numel() * size_of(dtype);
    PoisonedTensor t{Buffer(bytes + kGuardBytes), {}};
    t.view = {t.buffer.data(), dtype, shape, {}};
    std::memset(t.buffer.data(), 0xff, static_cast<std::size_t>(bytes));  // a NaN in every dtype
    std::memset(t.buffer.data() + bytes, kGuard, kGuardBytes);
    return t;
}

bool PoisonedTensor::guards_intact() const {
    const auto* p = reinterpret_cast<const unsigned char*>(buffer.data() + view.bytes());
    for (std::int64_t i = 0; i < kGuardBytes; ++i)
        if (p[i] != kGuard) return false;
    return true;
}

std::vector<double> to_double(ConstTensorView t) {
    std::vector<double> out;
    dispatch_dtype(t.dtype, [&]<Element T>(T) {
        for (const T x : t.as<T>())
            out.push_back(static_cast<double>(widen(x)));
    });
    return out;
}

double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
    if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
    double diff = 0.0, size = 1e-30;
    for (std::size_t i = 0; i < a.size(); ++i) {
        if (!(std::abs(a[i] - b[i]) < std::numeric_limits<double>::infinity()))
            return std::numeric_limits<double>::infinity();
        diff = std::max(diff, std::abs(a[i] - b[i]));
        size = std::max(size, std::abs(b[i]));
    }
    return diff / size;
}

double tolerance(DType dtype) {
    return dtype == DType::bf16 ? 1e-2 : dtype == DType::fp64 ? 1e-12 : 2e-5;
}

}  // namespace stoa::test
