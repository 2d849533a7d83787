#pragma once
#include "kernels/core/exec.h"
#include "kernels/core/rounding.h"

namespace stoa {

/// y[r] = table[tokens[r] - vocab_begin], or 0 where the token lies outside this shard's rows
/// (vocabulary-parallel: the sum over tp is the embedding).
/// shapes: y (rows, d_model); table (vocab_local, d_model); tokens (rows) int32
/// dtype:  y, table alike: fp32 | bf16 | fp64     errors: ShapeError
struct EmbeddingArgs {
    TensorView y;
    ConstTensorView table, tokens;
    std::int64_t vocab_begin = 0;
};
void embedding_forward(const EmbeddingArgs& args, const Exec& exec);

/// d_table[tokens[r] - vocab_begin] += d_y[r], rows in ascending order.
/// dtype: d_table Wide or bf16 (each sum rounded, row r as call + r); d_y fp32 | bf16 | fp16 | fp64
struct EmbeddingBackwardArgs {
    TensorView d_table;
    ConstTensorView d_y, tokens;
    std::int64_t vocab_begin = 0;
    StochasticRounding rounding;  // of a bf16 d_table
};
void embedding_backward(const EmbeddingBackwardArgs& args, const Exec& exec);

}  // namespace stoa
