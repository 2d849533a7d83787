#include "kernels/cpu/panels.h"

#include <algorithm>

#include "kernels/cpu/gemm_pack.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/lanes.h"

namespace stoa::cpu {
namespace {

constexpr std::int64_t kMr64 = 4, kNr64 = 16;  // the reference mode

void micro_fp64(std::int64_t rows, std::int64_t k, const double* a, std::int64_t a_row,
                std::int64_t a_step, const double* b, std::int64_t b_step, double* c,
                std::int64_t ldc, Into into) {
    vectorised([&] {
        for (std::int64_t r = 0; r < rows; ++r) {
            double sums[kNr64], *const out = c + r * ldc;
            for (std::int64_t j = 0; j < kNr64; ++j)
                sums[j] = into == Into::chain ? out[j] : 0.0;
            for (std::int64_t p = 0; p < k; ++p) {
                const double x = a[r * a_row + p * a_step];
                for (std::int64_t j = 0; j < kNr64; ++j)
                    sums[j] = __builtin_fma(x, b[p * b_step + j], sums[j]);
            }
            for (std::int64_t j = 0; j < kNr64; ++j)
                out[j] = into == Into::add ? out[j] + sums[j] : sums[j];
        }
    });
}

void pack_fp64(double* packed, std::int64_t width, const Operand& x, bool along_k,
               std::int64_t count, std::int64_t k) {
    const auto* const from = reinterpret_cast<const double*>(x.data);
    for (std::int64_t i = 0; i < count; i += width)
        for (std::int64_t p = 0; p < k; ++p)
            for (std::int64_t j = i; j < i + width; ++j)
                *packed++ = j >= count ? 0.0 : along_k ? from[j * x.ld + p] : from[p * x.ld + j];
}

}  // namespace

template <>
PanelShape panel_shape<float>() {
    const MicroKernels& micro = micro_kernels(current_isa());
    return {micro.mr, micro.nr};
}
template <>
PanelShape panel_shape<double>() {
    return {kMr64, kNr64};
}

template <>
void multiply(std::int64_t m, std::int64_t n, std::int64_t k, const Left<float>& a,
              const Right<float>& b, float* c, std::int64_t ldc, Into into) {
    const MicroKernels& micro = micro_kernels(current_isa());
    const float* panel = b.data;
    for (std::int64_t j = 0; j < n; j += micro.nr, panel += b.panel) {
        const float* left = a.data;
        for (std::int64_t i = 0; i < m; i += micro.mr, left += a.panel) {
            const auto rows = static_cast<std::size_t>(std::min<std::int64_t>(micro.mr, m - i));
            float* const to = c + i * ldc + j;
            if (a.ld == 0)
                micro.for_rows[rows - 1](k, left, panel, b.step, to, ldc, into);
            else
                micro.in_place[rows - 1](k, left, a.ld, panel, b.step, to, ldc, into);
        }
    }
}
template <>
void multiply(std::int64_t m, std::int64_t n, std::int64_t k, const Left<double>& a,
              const Right<double>& b, double* c, std::int64_t ldc, Into into) {
    const std::int64_t row = a.ld == 0 ? 1 : a.ld, step = a.ld == 0 ? kMr64 : 1;
    for (std::int64_t j = 0; j < n; j += kNr64)
        for (std::int64_t i = 0; i < m; i += kMr64)
            micro_fp64(std::min(kMr64, m - i), k, a.data + i / kMr64 * a.panel, row, step,
                       b.data + j / kNr64 * b.panel, b.step, c + i * ldc + j, ldc, into);
}

template <>
void pack_left(float* packed, const Operand& x, bool along_k, std::int64_t count, std::int64_t k) {
    pack_panels(packed, panel_shape<float>().rows, k, x, along_k, 0, count, 0, k);
}
template <>
void pack_left(double* packed, const Operand& x, bool along_k, std::int64_t count, std::int64_t k) {
    pack_fp64(packed, kMr64, x, along_k, count, k);
}

template <>
void pack_right(float* packed, const Operand& x, bool along_k, std::int64_t count, std::int64_t k) {
    const std::int64_t nr = panel_shape<float>().columns;
    pack_panels(packed, nr, k, x, along_k, 0, count, 0, k);
    const std::int64_t whole = (count + nr - 1) / nr * nr;
    std::fill(packed + whole * k, packed + pad_width(count) * k, 0.0f);
}
template <>
void pack_right(double* packed, const Operand& x, bool along_k, std::int64_t count,
                std::int64_t k) {
    pack_fp64(packed, kNr64, x, along_k, count, k);
    const std::int64_t whole = (count + kNr64 - 1) / kNr64 * kNr64;
    std::fill(packed + whole * k, packed + pad_width(count) * k, 0.0);
}

template <>
void transpose(float* to, const float* from, std::int64_t ld, std::int64_t rows,
               std::int64_t columns) {
    // As one panel of `rows` values per step.
    pack_panels(to, rows, columns, operand(from, ld), true, 0, rows, 0, columns);
}
template <>
void transpose(double* to, const double* from, std::int64_t ld, std::int64_t rows,
               std::int64_t columns) {
    for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < columns; ++c)
            to[c * rows + r] = from[r * ld + c];
}

template <>
bool all_finite(const float* x, std::int64_t n) {
    bool finite = true;
    vectorised([&] { finite = lane_sum<float>(n, [&](auto i) { return x[i] * 0.0f; }) == 0.0f; });
    return finite;
}
template <>
bool all_finite(const double* x, std::int64_t n) {
    bool finite = true;
    vectorised([&] { finite = lane_sum<double>(n, [&](auto i) { return x[i] * 0.0; }) == 0.0; });
    return finite;
}

}  // namespace stoa::cpu
