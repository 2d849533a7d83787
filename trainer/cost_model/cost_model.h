#pragma once
// Time, communication and memory of a training step on a mesh that need not exist: from the shapes
// of the model, which are those of trainer/model, and the figures of a cluster. docs/cost_model.md
// has the formulas, their sources, and how far off they were.
#include <string>
#include <vector>

#include "configs/run_config.h"
#include "trainer/cost_model/cluster.h"

namespace stoa {

/// One step of one rank, in seconds. config.parallel.dp and the vocabulary are set.
struct StepCost {
    double gemm = 0, attention = 0, elementwise = 0, optimizer = 0;  // computation
    double tp_comm = 0, dp_comm = 0;                                 // on the wires
    double exposed_tp = 0, exposed_dp = 0;                           // of it, not hidden
    double fixed = 0, jitter = 0;
    double seconds = 0;  // the sum of what does not overlap
    double tokens_per_s = 0, tokens_per_s_device = 0;
    double tflops_device = 0, mfu = 0;  // model FLOPs, causal attention; of the bf16 peak
    double compute() const { return gemm + attention + elementwise; }
    /// "compute", "memory bandwidth", "tp communication", "dp communication", "waiting": the
    /// largest part of the step.
    std::string limit;
};
StepCost predict_step(const RunConfig& config, const Cluster& cluster);

/// Floating-point operations of a token, forward and backward, without recomputing: 6 per weight
/// that multiplies, and attention's scores, causal (half of the square) or full.
double model_flops_per_token(const RunConfig& config, bool causal);

/// A mesh for `devices` devices, with what it needs.
struct RankedMesh {
    RunConfig config;
    StepCost cost;
    double memory_bytes = 0;
    bool fits = false;
};
/// Every legal (dp, tp, micro-batch, recompute, zero) for `devices` devices, the fastest that fits
/// first; those that do not fit last. Empty: no mesh of that size can train this configuration.
std::vector<RankedMesh> rank_meshes(const RunConfig& config, const Cluster& cluster,
                                    std::int64_t devices);

}  // namespace stoa
