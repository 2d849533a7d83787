#include "kernels/embedding.h"

#include "kernels/cpu/ops.h"

namespace stoa {

void embedding_forward(const EmbeddingArgs& args, const Exec& exec) {
    require_dtype(args.tokens, DType::int32, "embedding: tokens");
    require_numel(args.tokens, args.y.rows(), "embedding: tokens");
    require(args.y.cols() == args.table.cols(), "embedding: columns of y", "those of the table",
            args.y.shape.str() + " for table " + args.table.shape.str());
    require_dtype(args.y, args.table.dtype, "embedding: y");
    require_cpu(exec, "embedding");
    cpu::embedding_forward(args);
}

void embedding_backward(const EmbeddingBackwardArgs& args, const Exec& exec) {
    require_dtype(args.tokens, DType::int32, "embedding: tokens");
    require_numel(args.tokens, args.d_y.rows(), "embedding: tokens");
    require(args.d_y.cols() == args.d_table.cols(), "embedding: columns of d_y",
            "those of the table",
            args.d_y.shape.str() + " for d_table " + args.d_table.shape.str());
    require_dtype(args.d_table, wide_dtype(args.d_y.dtype), "embedding: d_table");
    require_cpu(exec, "embedding");
    cpu::embedding_backward(args);
}

}  // namespace stoa
