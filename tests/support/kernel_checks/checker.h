#pragma once
// What the checks of all ops share: an op on the CPU and in another place, from the same start, and
// what it wrote compared.
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "tests/support/execs.h"
#include "tests/support/kernel_checks.h"
#include "tests/support/tensors.h"

namespace stoa::test {

struct Checker {
    Exec exec;
    bool large;
    std::vector<KernelCheck> all;
    KernelCheck& now() { return all.back(); }
    void begin(const std::string& op) { all.push_back({.op = op}); }
};

/// Copies in host memory; views of the same memory share theirs.
struct HostCopies {
    std::vector<std::pair<const std::byte*, Tensor>> copies;
    template <class View>
    void move(View& view) {
        if (view.empty()) return;
        for (const auto& [from, copy] : copies)
            if (from == view.data && copy.view.bytes() == view.bytes()) {
                view.data = copy.view.data;
                return;
            }
        Tensor t(view.shape, view.dtype);
        std::memcpy(t.view.data, view.data, static_cast<std::size_t>(view.bytes()));
        copies.emplace_back(view.data, std::move(t));
        view.data = copies.back().second.view.data;
    }
};

/// Bits where the tolerance is 0 or the type is of one byte or int32, else values.
void compare_written(KernelCheck& check, const TensorView& got, const TensorView& expected,
                     double tolerance, const std::string& where);
inline void compare_written(KernelCheck&, const ConstTensorView&, const ConstTensorView&, double,
                            const std::string&) {}

/// The op on the CPU and on exec, from the same start, and all that it may write compared.
template <class Args>
void both(Checker& c, void (*op)(const Args&, const Exec&), std::type_identity_t<Args> args,
          const std::string& where, double tolerance = 0.0) {
    Args on_cpu = args;
    HostCopies copies;
    std::apply([&](auto&... views) { (copies.move(views), ...); }, tensors(on_cpu));
    op(on_cpu, {});
    run(op, args, c.exec);
    auto got = tensors(args);
    auto expected = tensors(on_cpu);
    ++c.now().runs;
    [&]<std::size_t... I>(std::index_sequence<I...>) {
        (compare_written(c.now(), std::get<I>(got), std::get<I>(expected), tolerance, where), ...);
    }
    (std::make_index_sequence<std::tuple_size_v<decltype(got)>>{});
}

inline constexpr DType kTypes[] = {DType::fp32, DType::bf16, DType::fp16, DType::fp64};
std::string named(DType t, const Shape& s);

/// fp64 that takes exp or sums in parallel agrees in value only.
double exp_tolerance(DType t);
/// A GPU has an exp and a log of its own; kernels on the host have the CPU's.
double library_tolerance(DType t);

/// Random ones from [least, below).
Tensor ints(std::int64_t n, std::uint64_t seed, std::int32_t below, std::int32_t least = 0);
/// Any bits at all: subnormals, Inf and NaN too.
Tensor any_bits(Shape shape, DType dtype, std::uint64_t seed);

std::vector<std::int64_t> lengths(const Checker& c);
std::vector<Shape> row_shapes(const Checker& c);

// Each in the file of its group.
void check_elementwise(Checker& c);
void check_rows(Checker& c);
void check_quantize(Checker& c);
void check_training(Checker& c);
void check_attention(Checker& c);
void check_selected_keys(Checker& c);
void check_caches(Checker& c);
void check_matmul(Checker& c);
void check_library_attention(Checker& c);

}  // namespace stoa::test
