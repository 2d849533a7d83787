#include "trainer/optimizer.h"

#include <algorithm>

#include "kernels/adamw.h"
#include "kernels/elementwise.h"
#include "parallel/collectives.h"

namespace stoa {

double grad_sum_of_squares(const ModelState& state, const Communicator& tp, const Exec& exec) {
    double sum = 0.0;
    const TensorView out{reinterpret_cast<std::byte*>(&sum), DType::fp64, {1}, {}};
    for (const Param& p : state.params)
        if (p.cut != TpCut::replicated || tp.rank() == 0) sum_of_squares(out, p.grad, exec);
    return all_reduce_scalar(sum, ReduceOp::sum, tp);
}

double clip_coefficient(double norm, double max_norm) {
    return max_norm > 0.0 && norm > max_norm ? max_norm / norm : 1.0;
}

void adamw_step(ModelState& state, const OptimizerConfig& config, double lr, double grad_scale,
                std::int64_t step, const Exec& exec) {
    for (Param& p : state.params)
        adamw({.param = p.master,
               .m = p.m,
               .v = p.v,
               .grad = p.grad,
               .lr = lr,
               .beta1 = config.beta1,
               .beta2 = config.beta2,
               .eps = config.eps,
               .weight_decay = p.decay ? config.weight_decay : 0.0,
               .grad_scale = grad_scale,
               .step = step},
              exec);
    refresh_work(state, exec);
}

}  // namespace stoa
