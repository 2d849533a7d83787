// The narrow types against their definition in float64: every code, and a walk over every exponent
// and sign of fp32. All 2^32 inputs are the business of tests/acceptance/quantizer_exhaustive.cpp.
#include <cmath>
#include <limits>
#include <string>

#include "kernels/core/numeric.h"
#include "tests/support/catch.h"
#include "tests/support/narrow_formats.h"

using namespace stoa;
using namespace stoa::test;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

template <class T>
T narrow(float x) {
    if constexpr (std::is_same_v<T, fp16>)
        return to_fp16(x);
    else if constexpr (std::is_same_v<T, bf16>)
        return to_bf16(x);
    else if constexpr (std::is_same_v<T, e4m3>)
        return to_e4m3(x);
    else
        return to_e5m2(x);
}

template <class T>
T code(std::uint32_t bits) {
    return {static_cast<decltype(T::bits)>(bits)};
}
template <class T>
constexpr std::uint32_t kCodes = 1u << 8 * sizeof(T);

/// Whether ours is the code of the definition.
template <class T>
bool rounds_as_defined(float x) {
    const Format f = format_of(dtype_of<T>());
    const T ours = narrow<T>(x);
    if (sizeof(T) == 2 && std::isnan(x)) return std::isnan(to_float(ours));  // with its payload
    return ours.bits == code_of_value(double{x}, f);
}

}  // namespace

TEMPLATE_TEST_CASE("every code stands for the value of its fields", "", fp16, bf16, e4m3, e5m2) {
    const Format f = format_of(dtype_of<TestType>());
    std::int64_t wrong = 0;
    for (std::uint32_t c = 0; c < kCodes<TestType>; ++c) {
        const double expected = value_of_code(c, f);
        const float x = to_float(code<TestType>(c));
        wrong += std::isnan(expected)
                     ? !std::isnan(x)
                     : double{x} != expected || std::signbit(x) != std::signbit(expected);
    }
    CHECK(wrong == 0);
    CHECK(value_of_code(f.nan, f) != value_of_code(f.nan, f));
}

TEMPLATE_TEST_CASE("every code survives fp32 and back", "", fp16, bf16, e4m3, e5m2) {
    const Format f = format_of(dtype_of<TestType>());
    std::int64_t wrong = 0;
    for (std::uint32_t c = 0; c < kCodes<TestType>; ++c) {
        const float x = to_float(code<TestType>(c));
        std::uint32_t expected = c;
        if (std::isnan(x))  // 8 bits: one NaN, without a sign; 16 bits: itself, made quiet
            expected = sizeof(TestType) == 1 ? f.nan : c | 1u << (f.mantissa_bits - 1);
        else if (std::isinf(x) && f.saturates)
            expected = c - 1;  // the code below Inf is the maximum
        wrong += narrow<TestType>(x).bits != expected;
    }
    CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("fp32 rounds to the nearest code, ties to even", "", fp16, bf16, e4m3, e5m2) {
    const Format f = format_of(dtype_of<TestType>());
    // Between each pair of neighbours: the tie, and one fp32 on either side of it.
    std::int64_t wrong = 0, ties = 0;
    for (std::uint32_t c = 0; c < f.sign_bit() - 1; ++c) {
        const double low = value_of_code(c, f), high = value_of_code(c + 1, f);
        if (!std::isfinite(high)) continue;
        const auto tie = static_cast<float>((low + high) / 2);
        if (double{tie} != (low + high) / 2) continue;  // below fp32's own resolution
        ++ties;
        for (const float sign : {1.0f, -1.0f}) {
            const std::uint32_t s = sign < 0 ? f.sign_bit() : 0;
            wrong += narrow<TestType>(sign * tie).bits != (s | (c % 2 == 0 ? c : c + 1));
            wrong += narrow<TestType>(sign * std::nextafter(tie, 0.0f)).bits != (s | c);
            wrong += narrow<TestType>(sign * std::nextafter(tie, kInf)).bits != (s | (c + 1));
        }
    }
    CHECK(wrong == 0);
    CHECK(ties > 100);
}

TEMPLATE_TEST_CASE("fp32 of every size rounds as defined", "", fp16, bf16, e4m3, e5m2) {
    std::int64_t wrong = 0;
    for (std::uint64_t u = 0; u < std::uint64_t{1} << 32; u += 4099)
        wrong += !rounds_as_defined<TestType>(bits_float(static_cast<std::uint32_t>(u)));
    // Every exponent, with the mantissas at which a carry, a tie or nothing happens.
    for (std::uint32_t exponent = 0; exponent < 512; ++exponent)
        for (int bit = 0; bit < 23; ++bit)
            for (const std::uint32_t low : {0u, 1u, ~0u}) {
                const std::uint32_t mantissa = ((1u << bit) + low) & 0x7fffffu;
                for (const std::uint32_t m : {mantissa, ~mantissa & 0x7fffffu})
                    wrong += !rounds_as_defined<TestType>(bits_float(exponent << 23 | m));
            }
    CHECK(wrong == 0);
}

TEST_CASE("what is too large for a narrow type") {
    CHECK(to_fp16(65504.0f).bits == 0x7bff);
    CHECK(to_fp16(65519.996f).bits == 0x7bff);
    CHECK(to_fp16(65520.0f).bits == 0x7c00);  // the tie above the maximum: Inf
    CHECK(to_fp16(-kInf).bits == 0xfc00);
    CHECK(to_bf16(std::numeric_limits<float>::max()).bits == 0x7f80);
    CHECK(to_e4m3(448.0f).bits == 0x7e);
    CHECK(to_e4m3(464.0f).bits == 0x7e);  // would be a tie, were there a code above
    CHECK(to_e4m3(1e30f).bits == 0x7e);
    CHECK(to_e4m3(-kInf).bits == 0xfe);
    CHECK(to_e5m2(57344.0f).bits == 0x7b);
    CHECK(to_e5m2(61440.0f).bits == 0x7b);
    CHECK(to_e5m2(-kInf).bits == 0xfb);
}

TEST_CASE("NaN stays NaN, and in 8 bits loses its sign") {
    for (const std::uint32_t u :
         {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
        const float nan = bits_float(u);
        CHECK(std::isnan(to_float(to_fp16(nan))));
        CHECK(std::isnan(to_float(to_bf16(nan))));
        CHECK((to_fp16(nan).bits >> 15) == (u >> 31));
        CHECK((to_bf16(nan).bits >> 15) == (u >> 31));
        CHECK(to_e4m3(nan).bits == 0x7f);
        CHECK(to_e5m2(nan).bits == 0x7f);
    }
    for (const std::uint8_t bits : {0x7f, 0xff}) {
        CHECK(std::isnan(to_float(e4m3{bits})));
        CHECK(std::isnan(to_float(e5m2{bits})));
    }
}

TEST_CASE("an e8m0 is a power of two") {
    for (int bits = 1; bits < 255; ++bits)
        CHECK(to_float(e8m0{static_cast<std::uint8_t>(bits)}) == std::ldexp(1.0f, bits - 127));
}

TEST_CASE("sizes and names go with the types") {
    CHECK(size_of(dtype_of<fp16>()) == sizeof(fp16));
    CHECK(size_of(dtype_of<bf16>()) == sizeof(bf16));
    CHECK(size_of(dtype_of<e4m3>()) == sizeof(e4m3));
    CHECK(size_of(dtype_of<e5m2>()) == sizeof(e5m2));
    CHECK(size_of(dtype_of<e8m0>()) == sizeof(e8m0));
    CHECK(std::string(dtype_name(dtype_of<e8m0>())) == "e8m0");
    CHECK(std::string(dtype_name(dtype_of<fp16>())) == "fp16");
}
