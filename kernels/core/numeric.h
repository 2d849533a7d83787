#pragma once
// Element types. `bf16` rounds to nearest even; NaN stays NaN.
#include <bit>
#include <cstdint>
#include <type_traits>

namespace stoa {

enum class DType : std::uint8_t { fp32, bf16, fp64, int32 };

struct bf16 {
    std::uint16_t bits;
};

inline float to_float(bf16 x) { return std::bit_cast<float>(std::uint32_t{x.bits} << 16); }
inline bf16 to_bf16(float x) {
    const auto u = std::bit_cast<std::uint32_t>(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((u >> 16) | 0x40u)};
    return {static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

template <class T>
concept Element = std::is_same_v<T, float> || std::is_same_v<T, bf16> || std::is_same_v<T, double>;

/// The type in which sums over elements of T are held, and in which masters, gradients and row
/// statistics of a T-valued model are stored: float, and double for the float64 reference mode.
template <Element T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline float widen(float x) { return x; }
inline float widen(bf16 x) { return to_float(x); }
inline double widen(double x) { return x; }
template <Element T>
T narrow_to(Wide<T> x) {
    if constexpr (std::is_same_v<T, bf16>)
        return to_bf16(x);
    else
        return x;
}

template <class T>
constexpr DType dtype_of() {
    if constexpr (std::is_same_v<T, float>) return DType::fp32;
    if constexpr (std::is_same_v<T, bf16>) return DType::bf16;
    if constexpr (std::is_same_v<T, double>) return DType::fp64;
    if constexpr (std::is_same_v<T, std::int32_t>) return DType::int32;
}
constexpr std::int64_t size_of(DType t) { return t == DType::bf16 ? 2 : t == DType::fp64 ? 8 : 4; }
constexpr DType wide_dtype(DType t) { return t == DType::fp64 ? DType::fp64 : DType::fp32; }
constexpr const char* dtype_name(DType t) {
    switch (t) {
        case DType::fp32:
            return "fp32";
        case DType::bf16:
            return "bf16";
        case DType::fp64:
            return "fp64";
        case DType::int32:
            return "int32";
    }
    return "?";
}

}  // namespace stoa
