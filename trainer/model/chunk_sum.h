#pragma once
// Sums over the features that tensor parallel cuts (heads, d_ff, vocabulary): products of fixed
// chunks, added as one tree, of which each tp rank holds a branch; so tp does not show in the bits.
#include "kernels/core/exec.h"
#include "kernels/core/tree.h"
#include "kernels/elementwise.h"
#include "trainer/model/activations.h"

namespace stoa {

/// y = the tree of product(chunk, out) over chunks [first, first + count); the right branches lie
/// in `tree` (from `level` on). The rest of the tree is the all-reduce over tp.
template <class Product>
void sum_chunks(TensorView y, std::int64_t first, std::int64_t count, const BlockScratch& scratch,
                const Product& product, const Exec& exec, std::size_t level = 0) {
    if (count == 1) return product(first, y);
    const std::int64_t half = tree_half(count);
    const TensorView right = scratch.tree[level].slice_rows(0, y.rows());
    sum_chunks(y, first, half, scratch, product, exec, level);
    sum_chunks(right, first + half, count - half, scratch, product, exec, level + 1);
    add(y, y, right, exec);
}

/// Chunk i of `size` features in `chunks` equal ones, as matmul takes it.
struct ChunkSpan {
    std::int64_t begin, count;
};
inline ChunkSpan chunk_span(std::int64_t size, std::int64_t chunks, std::int64_t i) {
    return {i * (size / chunks), size / chunks};
}

}  // namespace stoa
