#pragma once
// Products of operands that a kernel packs itself and keeps in cache, by the register tiles of
// gemm_micro.h. An element of c is one fma chain over ascending k, so nothing that lies around it,
// and no choice of where panels begin, enters its bits.
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemm_micro.h"

namespace stoa::cpu {

/// A multiple of every instruction set's columns; widths of c are padded to it.
constexpr std::int64_t kPanelWidth = 32;
constexpr std::int64_t pad_width(std::int64_t n) {
    return (n + kPanelWidth - 1) / kPanelWidth * kPanelWidth;
}

/// Rows and columns of the register tile; W is float or double.
struct PanelShape {
    std::int64_t rows = 0, columns = 0;
};
template <class W>
PanelShape panel_shape();

/// The left operand of a product: packed in panels of PanelShape::rows, or rows of steps in place.
template <class W>
struct Left {
    const W* data = nullptr;
    std::int64_t panel = 0;  // from one panel to the next
    std::int64_t ld = 0;     // from one row to the next; 0: packed
};
/// From a packed operand of `depth` steps: rows from `row`, a multiple of the panel's rows, and
/// steps from `step`.
template <class W>
Left<W> packed_left(const W* data, std::int64_t depth, std::int64_t row = 0,
                    std::int64_t step = 0) {
    const std::int64_t mr = panel_shape<W>().rows;
    return {data + row * depth + step * mr, depth * mr, 0};
}
/// Values of a packed left operand.
template <class W>
std::int64_t left_values(std::int64_t rows, std::int64_t depth) {
    const std::int64_t mr = panel_shape<W>().rows;
    return (rows + mr - 1) / mr * mr * depth;
}
template <class W>
Left<W> stored_left(const W* data, std::int64_t ld) {
    return {data, ld * panel_shape<W>().rows, ld};
}

/// The right operand: packed in panels of PanelShape::columns, or rows of columns in place.
template <class W>
struct Right {
    const W* data = nullptr;
    std::int64_t panel = 0, step = 0;
};
template <class W>
Right<W> packed_right(const W* data, std::int64_t depth, std::int64_t column = 0) {
    const std::int64_t nr = panel_shape<W>().columns;
    return {data + column * depth, depth * nr, nr};
}
template <class W>
Right<W> stored_right(const W* data, std::int64_t ld) {
    return {data, panel_shape<W>().columns, ld};
}

/// c (m, n), rows ldc apart, gets a b over k steps. n is a multiple of kPanelWidth.
template <class W>
void multiply(std::int64_t m, std::int64_t n, std::int64_t k, const Left<W>& a, const Right<W>& b,
              W* c, std::int64_t ldc, Into into);

/// Rows [0, count) of op(a) over the steps [0, k), from x's first element on. along_k: x's stored
/// rows run along the steps. `packed` holds whole panels.
template <class W>
void pack_left(W* packed, const Operand& x, bool along_k, std::int64_t count, std::int64_t k);
/// Columns [0, count) of op(b); those up to the next multiple of kPanelWidth become 0.
template <class W>
void pack_right(W* packed, const Operand& x, bool along_k, std::int64_t count, std::int64_t k);

/// to (columns, rows) = from (rows, columns), whose rows are ld apart, transposed.
template <class W>
void transpose(W* to, const W* from, std::int64_t ld, std::int64_t rows, std::int64_t columns);

/// Whether none of n values is infinite or NaN.
template <class W>
bool all_finite(const W* x, std::int64_t n);

}  // namespace stoa::cpu
