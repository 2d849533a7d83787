#pragma once
// Contiguous, non-owning, row-major views of rank <= 4. The owner is a Buffer or an arena.
#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "kernels/core/error.h"
#include "kernels/core/numeric.h"

namespace stoa {

enum class DeviceKind : std::uint8_t { cpu, cuda };
struct Device {
    DeviceKind kind = DeviceKind::cpu;
    int index = 0;
    bool is_cuda() const { return kind == DeviceKind::cuda; }
    bool operator==(const Device&) const = default;
};

struct Shape {
    std::array<std::int64_t, 4> dims{};
    int rank = 0;
    Shape() = default;
    Shape(std::initializer_list<std::int64_t> d) : rank(static_cast<int>(d.size())) {
        if (d.size() > 4) throw ShapeError({.what = "tensor rank", .expected = "<= 4"});
        int i = 0;
        for (const std::int64_t n : d)
            dims[static_cast<std::size_t>(i++)] = n;
    }
    std::int64_t operator[](int i) const { return dims[static_cast<std::size_t>(i)]; }
    std::int64_t numel() const {
        std::int64_t n = 1;
        for (int i = 0; i < rank; ++i)
            n *= (*this)[i];
        return n;
    }
    bool operator==(const Shape&) const = default;
    std::string str() const {
        std::string s = "(";
        for (int i = 0; i < rank; ++i)
            s += (i ? ", " : "") + std::to_string((*this)[i]);
        return s + ")";
    }
};

/// A view of read-only elements. Rank 0 with no data is "absent" (an optional argument).
struct ConstTensorView {
    const std::byte* data = nullptr;
    DType dtype = DType::fp32;
    Shape shape;
    Device device{};

    std::int64_t numel() const { return data == nullptr ? 0 : shape.numel(); }
    std::int64_t bytes() const { return numel() * size_of(dtype); }
    bool empty() const { return data == nullptr; }
    std::int64_t cols() const { return shape.rank == 0 ? 1 : shape[shape.rank - 1]; }  // last axis
    std::int64_t rows() const { return cols() == 0 ? 0 : shape.numel() / cols(); }     // the others
    /// All elements as T; throws ShapeError when the dtype is another one.
    template <class T>
    std::span<const T> as() const {
        if (dtype != dtype_of<T>())
            throw ShapeError({.what = "dtype",
                              .expected = dtype_name(dtype_of<T>()),
                              .actual = dtype_name(dtype)});
        return {reinterpret_cast<const T*>(data), static_cast<std::size_t>(numel())};
    }
    template <class T>
    std::span<const T> row(std::int64_t r) const {
        return as<T>().subspan(static_cast<std::size_t>(r * cols()),
                               static_cast<std::size_t>(cols()));
    }
    ConstTensorView reshaped(Shape s) const {
        if (s.numel() != shape.numel())
            throw ShapeError({.what = "reshape", .expected = shape.str(), .actual = s.str()});
        return {data, dtype, s, device};
    }
    /// Rows [begin, begin + count) of the first axis.
    ConstTensorView slice_rows(std::int64_t begin, std::int64_t count) const;
};

struct TensorView {
    std::byte* data = nullptr;
    DType dtype = DType::fp32;
    Shape shape;
    Device device{};

    operator ConstTensorView() const {
        return {data, dtype, shape, device};
    }  // NOLINT: a view of const
    ConstTensorView view() const { return *this; }
    std::int64_t numel() const { return view().numel(); }
    std::int64_t bytes() const { return view().bytes(); }
    bool empty() const { return data == nullptr; }
    std::int64_t cols() const { return view().cols(); }
    std::int64_t rows() const { return view().rows(); }
    template <class T>
    std::span<T> as() const {
        const auto s = view().as<T>();
        return {const_cast<T*>(s.data()), s.size()};
    }
    template <class T>
    std::span<T> row(std::int64_t r) const {
        const auto s = view().row<T>(r);
        return {const_cast<T*>(s.data()), s.size()};
    }
    TensorView reshaped(Shape s) const {
        (void)view().reshaped(s);
        return {data, dtype, s, device};
    }
    TensorView slice_rows(std::int64_t begin, std::int64_t count) const {
        const ConstTensorView v = view().slice_rows(begin, count);
        return {const_cast<std::byte*>(v.data), v.dtype, v.shape, v.device};
    }
};

inline ConstTensorView ConstTensorView::slice_rows(std::int64_t begin, std::int64_t count) const {
    if (begin < 0 || count < 0 || begin + count > shape[0])
        throw ShapeError({.what = "row slice",
                          .expected = "within " + shape.str(),
                          .actual = std::to_string(begin) + "+" + std::to_string(count)});
    Shape s = shape;
    s.dims[0] = count;
    const std::int64_t stride = shape[0] == 0 ? 0 : shape.numel() / shape[0];
    const std::byte* at = data == nullptr ? nullptr : data + begin * stride * size_of(dtype);
    return {at, dtype, s, device};
}

/// fn(T{}) for the element type T that `t` names.
template <class Fn>
decltype(auto) dispatch_dtype(DType t, Fn&& fn) {
    switch (t) {
        case DType::fp32:
            return fn(float{});
        case DType::bf16:
            return fn(bf16{});
        case DType::fp16:
            return fn(fp16{});
        case DType::fp64:
            return fn(double{});
        default:
            break;
    }
    throw ShapeError(
        {.what = "dtype", .expected = "fp32, bf16, fp16 or fp64", .actual = dtype_name(t)});
}

// Checks that ops make once, before any work.
inline void require(bool ok, const char* op, const char* rule, const std::string& actual) {
    if (!ok) throw ShapeError({.what = op, .expected = rule, .actual = actual});
}
inline void require_shape(const ConstTensorView& t, const Shape& s, const char* name) {
    if (t.shape != s)
        throw ShapeError({.what = name, .expected = s.str(), .actual = t.shape.str()});
}
inline void require_numel(const ConstTensorView& t, std::int64_t n, const char* name) {
    if (t.numel() != n)
        throw ShapeError(
            {.what = name, .expected = std::to_string(n) + " elements", .actual = t.shape.str()});
}
inline void require_dtype(const ConstTensorView& t, DType d, const char* name) {
    if (t.dtype != d)
        throw ShapeError({.what = name, .expected = dtype_name(d), .actual = dtype_name(t.dtype)});
}

}  // namespace stoa
