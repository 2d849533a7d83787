#pragma once
#include "configs/run_config.h"
#include "kernels/core/exec.h"
#include "parallel/communicator.h"
#include "trainer/model/params.h"

namespace stoa {

/// Sum of squared gradients of the logical model: shards add up over tp, weights that every tp rank
/// holds count once. `chunks`: of the axis that tp cuts, on this rank. NaN where a gradient is not
/// finite.     comm: one ExactSum all_reduce(tp): the same bits on every mesh
double grad_sum_of_squares(const ModelState& state, std::int64_t chunks, const Communicator& tp,
                           const Exec& exec);

/// min(1, max_norm / norm); 1 when max_norm is 0. [Pascanu et al. 2013, global norm]
double clip_coefficient(double norm, double max_norm);

/// AdamW over every parameter, 128 rows at a time: unscale and clip (grad_scale), moments, master,
/// and at once the working copy of these rows, while they are in cache. Each dp rank updates its
/// rows and gets the others' working copy from their owners. `step` counts from 1. comm: as
/// refresh_work (trainer/model/params.h)
void adamw_step(ModelState& state, const RunConfig& config, double lr, double grad_scale,
                std::int64_t step, const Communicator& dp, const Exec& exec);

}  // namespace stoa
