#pragma once
// What a run says to people: the step line, evaluations, the table at the end.
#include <string>
#include <vector>

#include "configs/run_config.h"
#include "trainer/evaluate.h"
#include "trainer/metrics.h"

namespace stoa {

/// " 120/732  16% ▕██▌             ▏ web      loss 4.812  gn 0.71  lr 2.9e-04  31.2k tok/s  mem
/// 0.31G  eta 5m02s" The width of every field is fixed: numbers never jump. 's' marks a skipped
/// step.
std::string progress_line(const StepRecord& r, std::int64_t total_steps, double seconds_per_step);

/// "GPU memory of rank 0: steps 58.60 GiB, planned 58.60 (+0.0 %); with evaluations 59.10; in use
/// on the device 60.20 of 79.20"
std::string gpu_memory_line(const GpuMemory& m);

/// Prints the line: in place on a terminal, as a line of its own elsewhere. Rank 0 only.
void show_progress(const std::string& line, bool finish_line);

/// "held-out  web 4.213  problems 0.412  |  chain_sum 97/100 verified ..."
std::string eval_line(const EvalReport& r);

/// Problems with their generated solutions, verified or refuted one by one.
std::string solutions_text(const EvalReport& r);

/// Accuracy per family at each stage switch and at the end, with how many answers were verified.
std::string accuracy_table(const std::vector<EvalReport>& evals);

std::string human_duration(double seconds);  // 5m02s
std::string human_count(double n);           // 31.2k

}  // namespace stoa
