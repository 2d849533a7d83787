#include "trainer/optimizer.h"

#include <algorithm>

#include "kernels/adamw.h"
#include "kernels/elementwise.h"
#include "kernels/quantize.h"
#include "parallel/collectives.h"
#include "trainer/model/dp_traffic.h"

namespace stoa {

void add_grad_squares(TensorView out, const ModelState& state, std::int64_t chunks,
                      const Mesh& mesh, const Exec& exec) {
    for (const Param& p : state.params) {
        if (p.cut == TpCut::replicated && mesh.tp_rank() > 0) continue;
        if (p.owners.empty() && mesh.dp_rank() > 0) continue;
        const std::int64_t piece = p.cut == TpCut::cols ? p.grad.cols() / chunks : 0;
        sum_of_squares(out, p.grad, piece, exec);
    }
}

double clip_coefficient(double norm, double max_norm) {
    return max_norm > 0.0 && norm > max_norm ? max_norm / norm : 1.0;
}

namespace {

struct Update {
    const RunConfig& config;
    double lr, grad_scale;
    std::int64_t step;
};

void update_param(const Param& p, const Update& u, const Exec& exec) {
    const OptimizerConfig& o = u.config.optimizer;
    const bool matrix = p.master.shape.rank == 2;
    const std::int64_t rows = matrix ? p.master.shape[0] : 1;
    const std::int64_t most =
        exec.device.is_cuda() ? rows : kQuantBlock;  // a GPU has no such cache
    for (std::int64_t begin = 0; begin < rows; begin += most) {
        const std::int64_t count = std::min(most, rows - begin);
        const auto part = [&](const TensorView& t) {
            return t.empty() || !matrix ? t : t.slice_rows(begin, count);
        };
        adamw({.param = part(p.master),
               .m = part(p.m.data),
               .v = part(p.v.data),
               .grad = part(p.grad),
               .lr = u.lr,
               .beta1 = o.beta1,
               .beta2 = o.beta2,
               .eps = o.eps,
               .weight_decay = p.decay ? o.weight_decay : 0.0,
               .grad_scale = u.grad_scale,
               .step = u.step,
               .m_scale = part(p.m.scale),
               .v_scale = part(p.v.scale),
               .rounding_key = p.key(u.config.run.seed),
               .row_begin = p.row_begin() + p.mine.begin + begin,
               .col_begin = p.col_begin(),
               .logical_cols = p.global_shape[matrix ? 1 : 0]},
              exec);
        if (matrix) refresh_work_rows(p, begin, count, exec);
    }
}

}  // namespace

void adamw_step(ModelState& state, const RunConfig& config, double lr, double grad_scale,
                std::int64_t step, const Mesh& mesh, const Exec& exec) {
    const Update u{config, lr, grad_scale, step};
    for (const Param& p : state.params)
        if (p.is_norm()) update_param(p, u, exec);
    for (std::size_t unit = 0; unit < state.units.size(); ++unit) {
        const Unit& of = state.units[unit];
        for (std::size_t i = of.first; i < of.first + of.count; ++i)
            update_param(state.params[i], u, exec);
        start_work_gather(state, unit, mesh, exec);  // dp: beside the next unit's update
        board_pulse();
    }
    await_work(state, mesh, exec);
}

}  // namespace stoa
