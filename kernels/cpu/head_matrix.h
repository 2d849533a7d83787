#pragma once
// One head of a (batch, len, heads, dim) tensor as a matrix.
#include "kernels/core/tensor_view.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/isa.h"

namespace stoa::cpu {

/// One head of a (batch, len, heads, dim) tensor as a matrix of rows ld apart.
template <class T>
struct HeadMatrix {
    const T* data = nullptr;
    std::int64_t ld = 0;
    const T* row(std::int64_t r) const { return data + r * ld; }
    Operand from_row(std::int64_t r, bool transpose = false) const {
        return operand(row(r), ld, transpose);
    }
};
template <class T>
HeadMatrix<T> head_matrix(const ConstTensorView& t, std::int64_t batch, std::int64_t head) {
    const std::int64_t len = t.shape[1], heads = t.shape[2], dim = t.shape[3];
    return {t.as<T>().data() + (batch * len * heads + head) * dim, heads * dim};
}

/// Writes rows (len, dim) as rows [begin, begin + len) of one head.
template <class T, class W = Wide<T>>
void store_head(const TensorView& t, std::int64_t batch, std::int64_t head, std::int64_t begin,
                std::int64_t len, const W* rows) {
    const std::int64_t heads = t.shape[2], dim = t.shape[3];
    T* const first = t.as<T>().data() + ((batch * t.shape[1] + begin) * heads + head) * dim;
    vectorised([&] {
        for (std::int64_t r = 0; r < len; ++r) {
            T* const out = first + r * heads * dim;
            for (std::int64_t c = 0; c < dim; ++c)
                out[c] = narrow_to<T>(rows[r * dim + c]);
        }
    });
}

}  // namespace stoa::cpu
