#pragma once
#include "configs/run_config.h"
#include "kernels/core/exec.h"
#include "parallel/mesh.h"
#include "trainer/model/params.h"

namespace stoa {

/// out (kExactSumWords) += squared gradients of the logical model: each rank adds those that are
/// its own to update, what several ranks hold counts once, and the ranks' sum, which is exact, is
/// the same on every mesh. `chunks`: of the axis that tp cuts, on this rank.     comm: none
void add_grad_squares(TensorView out, const ModelState& state, std::int64_t chunks,
                      const Mesh& mesh, const Exec& exec);

/// min(1, max_norm / norm); 1 when max_norm is 0. [Pascanu et al. 2013, global norm]
double clip_coefficient(double norm, double max_norm);

/// AdamW over every parameter: unscale and clip (grad_scale), moments, master, and at once the
/// working copy of these rows; on the CPU 128 rows at a time, while they are in cache. Each dp rank
/// updates its rows and gets the others' working copies from their owners, unit by unit. `step`
/// counts from 1.
/// comm: per unit one all_gather(dp), beside the next unit's update (trainer/model/dp_traffic.h)
void adamw_step(ModelState& state, const RunConfig& config, double lr, double grad_scale,
                std::int64_t step, const Mesh& mesh, const Exec& exec);

}  // namespace stoa
