#pragma once
// Element types and their exact conversions: branchless integer code, so that one text serves the
// host, the device and the vectoriser. All roundings are to nearest even.
//   fp16  1-5-10   overflow becomes Inf                 bf16  1-8-7
//   e4m3  1-4-3    max 448, no Inf, NaN 0x7F            e5m2  1-5-2  max 57344, Inf 0x7C, NaN 0x7F
//   fp24  1-8-15   fp32 without its last byte: masters that are rounded stochastically
//   e8m0  a power of two, 2^(bits - 127); 0xFF is NaN   [OCP 8-bit floating point, MX 1.0]
// e4m3 and e5m2 saturate: what lies above the maximum, and Inf, becomes the maximum. Every NaN
// becomes 0x7F, without its sign, as in the CUDA toolkit's conversion.
#include <bit>
#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__)
#define STOA_HD __host__ __device__
#else
#define STOA_HD
#endif

namespace stoa {

enum class DType : std::uint8_t { fp32, bf16, fp64, int32, fp16, e4m3, e5m2, e8m0, fp24 };

struct bf16 {
    std::uint16_t bits;
};
struct fp16 {
    std::uint16_t bits;
};
struct e4m3 {
    std::uint8_t bits;
};
struct e5m2 {
    std::uint8_t bits;
};
struct e8m0 {
    std::uint8_t bits;
};
struct fp24 {
    std::uint8_t bytes[3];  // little endian
};

STOA_HD inline std::uint32_t float_bits(float x) { return std::bit_cast<std::uint32_t>(x); }
STOA_HD inline float bits_float(std::uint32_t u) { return std::bit_cast<float>(u); }

STOA_HD inline float to_float(bf16 x) { return bits_float(std::uint32_t{x.bits} << 16); }
STOA_HD inline bf16 to_bf16(float x) {
    const std::uint32_t u = float_bits(x);
    const std::uint32_t nan = (u >> 16) | 0x40u, rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return {static_cast<std::uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
}

STOA_HD inline float to_float(fp16 x) {
    const std::uint32_t magnitude = (x.bits & 0x7fffu) << 13, sign = (x.bits & 0x8000u) << 16;
    // The exponent's bias differs by 112; the product also normalises subnormals.
    const std::uint32_t finite = float_bits(bits_float(magnitude) * 0x1p112f);
    return bits_float(sign | (magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite));
}
STOA_HD inline fp16 to_fp16(float x) {
    const std::uint32_t u = float_bits(x), a = u & 0x7fffffffu, sign = (u >> 16) & 0x8000u;
    const std::uint32_t normal = (a - (112u << 23) + 0xfffu + ((a >> 13) & 1u)) >> 13;
    // Below 2^-14 the addition rounds at the subnormal's last place; the low bits are the code.
    const std::uint32_t subnormal = float_bits(bits_float(a) + 0.5f) - 0x3f000000u;
    std::uint32_t h = a < 0x38800000u ? subnormal : normal;
    h = a >= 0x477ff000u ? 0x7c00u : h;                        // 65520 and above
    h = a > 0x7f800000u ? 0x7e00u | ((a >> 13) & 0x1ffu) : h;  // NaN stays NaN
    return {static_cast<std::uint16_t>(sign | h)};
}

STOA_HD inline float to_float(e4m3 x) {
    const std::uint32_t magnitude = (x.bits & 0x7fu) << 20, sign = (x.bits & 0x80u) << 24;
    const std::uint32_t finite = float_bits(bits_float(magnitude) * 0x1p120f);
    return bits_float(sign | (magnitude == 0x07f00000u ? 0x7fc00000u : finite));
}
STOA_HD inline e4m3 to_e4m3(float x) {
    const std::uint32_t u = float_bits(x), a = u & 0x7fffffffu, sign = (u >> 24) & 0x80u;
    const std::uint32_t c = a < 0x43e00000u ? a : 0x43e00000u;  // 448
    const std::uint32_t normal = ((c + 0x7ffffu + ((c >> 20) & 1u)) >> 20) - (120u << 3);
    const std::uint32_t subnormal = float_bits(bits_float(c) + 0x1p14f) & 0xffu;  // below 2^-6
    const std::uint32_t code = sign | (c < 0x3c800000u ? subnormal : normal);
    return {static_cast<std::uint8_t>(a > 0x7f800000u ? 0x7fu : code)};
}

STOA_HD inline float to_float(e5m2 x) {
    return to_float(fp16{static_cast<std::uint16_t>(x.bits << 8)});
}
STOA_HD inline e5m2 to_e5m2(float x) {
    const std::uint32_t u = float_bits(x), a = u & 0x7fffffffu, sign = (u >> 24) & 0x80u;
    const std::uint32_t c = a < 0x47600000u ? a : 0x47600000u;  // 57344
    const std::uint32_t normal = ((c + 0xfffffu + ((c >> 21) & 1u)) >> 21) - (112u << 2);
    const std::uint32_t subnormal = float_bits(bits_float(c) + 128.0f) & 0xffu;  // below 2^-14
    const std::uint32_t code = sign | (c < 0x38800000u ? subnormal : normal);
    return {static_cast<std::uint8_t>(a > 0x7f800000u ? 0x7fu : code)};
}

/// Exact for 2^-126 and above, which is all that the quantiser writes.
STOA_HD inline float to_float(e8m0 x) { return bits_float(std::uint32_t{x.bits} << 23); }

STOA_HD inline float to_float(fp24 x) {
    return bits_float(std::uint32_t{x.bytes[0]} << 8 | std::uint32_t{x.bytes[1]} << 16 |
                      std::uint32_t{x.bytes[2]} << 24);
}
STOA_HD inline fp24 truncate_to_fp24(float x) {
    const std::uint32_t u = float_bits(x);
    return {{static_cast<std::uint8_t>(u >> 8), static_cast<std::uint8_t>(u >> 16),
             static_cast<std::uint8_t>(u >> 24)}};
}
STOA_HD inline fp24 to_fp24(float x) {
    const std::uint32_t u = float_bits(x), rounded = u + 0x7fu + ((u >> 8) & 1u);
    return truncate_to_fp24((u & 0x7f800000u) == 0x7f800000u ? x : bits_float(rounded));
}
STOA_HD inline bf16 truncate_to_bf16(float x) {
    return {static_cast<std::uint16_t>(float_bits(x) >> 16)};
}
/// Stochastic rounding: adding random low bits and truncating rounds up with the probability of the
/// fraction. `keep` bits of the word remain (bf16 16, fp24 24). Inf and NaN stay as they are.
STOA_HD inline float add_random_bits(float x, std::uint32_t random, int keep) {
    const std::uint32_t u = float_bits(x);
    return bits_float((u & 0x7f800000u) == 0x7f800000u ? u : u + (random >> keep));
}

/// The same to bf16 with the low 16 bits of `random`.
STOA_HD inline bf16 to_bf16_stochastic(float x, std::uint32_t random) {
    return truncate_to_bf16(add_random_bits(x, random << 16, 16));
}

/// Types that ops read and write one by one; the 8-bit ones come in blocks with a scale each and
/// are read through kernels/quantize.h and matmul.
template <class T>
concept Element = std::is_same_v<T, float> || std::is_same_v<T, bf16> || std::is_same_v<T, fp16> ||
    std::is_same_v<T, double>;

/// The type in which sums over elements of T are held, and in which masters, gradients and row
/// statistics of a T-valued model are stored: float, and double for the float64 reference mode.
template <Element T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

STOA_HD inline float widen(float x) { return x; }
STOA_HD inline float widen(bf16 x) { return to_float(x); }
STOA_HD inline float widen(fp16 x) { return to_float(x); }
STOA_HD inline double widen(double x) { return x; }
template <Element T>
STOA_HD T narrow_to(Wide<T> x) {
    if constexpr (std::is_same_v<T, bf16>)
        return to_bf16(x);
    else if constexpr (std::is_same_v<T, fp16>)
        return to_fp16(x);
    else
        return x;
}

template <class T>
constexpr DType dtype_of() {
    if constexpr (std::is_same_v<T, float>) return DType::fp32;
    if constexpr (std::is_same_v<T, bf16>) return DType::bf16;
    if constexpr (std::is_same_v<T, double>) return DType::fp64;
    if constexpr (std::is_same_v<T, std::int32_t>) return DType::int32;
    if constexpr (std::is_same_v<T, fp16>) return DType::fp16;
    if constexpr (std::is_same_v<T, e4m3>) return DType::e4m3;
    if constexpr (std::is_same_v<T, e5m2>) return DType::e5m2;
    if constexpr (std::is_same_v<T, e8m0>) return DType::e8m0;
    if constexpr (std::is_same_v<T, fp24>) return DType::fp24;
}
constexpr std::int64_t size_of(DType t) {
    switch (t) {
        case DType::e4m3:
        case DType::e5m2:
        case DType::e8m0:
            return 1;
        case DType::bf16:
        case DType::fp16:
            return 2;
        case DType::fp24:
            return 3;
        case DType::fp64:
            return 8;
        case DType::fp32:
        case DType::int32:
            return 4;
    }
    return 0;
}
constexpr int kDTypes = 9;
constexpr DType wide_dtype(DType t) { return t == DType::fp64 ? DType::fp64 : DType::fp32; }
constexpr const char* dtype_name(DType t) {
    constexpr const char* names[kDTypes] = {"fp32", "bf16", "fp64", "int32", "fp16",
                                            "e4m3", "e5m2", "e8m0", "fp24"};
    return names[static_cast<int>(t)];
}

}  // namespace stoa
