#include "kernels/embedding.h"

#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"

namespace stoa {

void embedding_forward(const EmbeddingArgs& args, const Exec& exec) {
    require_dtype(args.tokens, DType::int32, "embedding: tokens");
    require_numel(args.tokens, args.y.rows(), "embedding: tokens");
    require(args.y.cols() == args.table.cols(), "embedding: columns of y", "those of the table",
            args.y.shape.str() + " for table " + args.table.shape.str());
    require_dtype(args.y, args.table.dtype, "embedding: y");
    exec.device.is_cuda() ? cuda::embedding_forward(args, exec.stream)
                          : cpu::embedding_forward(args);
}

void embedding_backward(const EmbeddingBackwardArgs& args, const Exec& exec) {
    require_dtype(args.tokens, DType::int32, "embedding: tokens");
    require_numel(args.tokens, args.d_y.rows(), "embedding: tokens");
    require(args.d_y.cols() == args.d_table.cols(), "embedding: columns of d_y",
            "those of the table",
            args.d_y.shape.str() + " for d_table " + args.d_table.shape.str());
    const DType wide = wide_dtype(args.d_y.dtype);
    require(
        args.d_table.dtype == wide || (args.d_table.dtype == DType::bf16 && wide == DType::fp32),
        "embedding: dtype of d_table", "fp32 or bf16; fp64 with fp64",
        dtype_name(args.d_table.dtype));
    exec.device.is_cuda() ? cuda::embedding_backward(args, exec.stream)
                          : cpu::embedding_backward(args);
}

}  // namespace stoa
