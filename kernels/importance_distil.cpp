#include "kernels/importance_distil.h"

#include "kernels/attention_checks.h"
#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"

namespace stoa {

void importance_distil(const ImportanceDistilArgs& args, const Exec& exec) {
    require_rule(args.rule);
    require(args.importance.shape.rank == 3, "importance_distil: importance",
            "(batch, len, n_kv_heads)", args.importance.shape.str());
    const std::int64_t batch = args.importance.shape[0], len = args.importance.shape[1];
    require_shape(args.d_importance, args.importance.shape, "importance_distil: d_importance");
    require_dtype(args.d_importance, args.importance.dtype, "importance_distil: d_importance");
    require_dtype(args.importance, wide_dtype(args.importance.dtype),
                  "importance_distil: importance");
    require_documents(args.key_begin, batch, len, "importance_distil: key_begin");
    require_numel(args.targets, batch * len, "importance_distil: targets");
    require_dtype(args.targets, DType::int32, "importance_distil: targets");
    exec.device.is_cuda() ? cuda::importance_distil(args, exec.stream)
                          : cpu::importance_distil(args);
}

}  // namespace stoa
