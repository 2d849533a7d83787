#pragma once
// The files a run leaves for machines: metrics.jsonl (one object per step, units in the names),
// events.jsonl (resume, stage, skip, checkpoint, stop), eval.jsonl (one object per evaluation).
// Rank 0 writes; a torn last line is ignored by every reader.
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/core/tensor_view.h"
#include "trainer/evaluate.h"
#include "trainer/selection.h"

namespace stoa {

/// A rank's memory of its GPU; all 0 on the CPU.
struct GpuMemory {
    std::int64_t plan_bytes = 0;  // arena and scratch
    std::int64_t step_bytes = 0;  // the arena, and the most that ops have held beside it
    std::int64_t peak_bytes = 0;  // with what initialisation and evaluations held for a while
    std::int64_t used_bytes = 0;  // of the device, whoever holds it: context and libraries, too
    std::int64_t device_bytes = 0;
};
/// Between steps.     comm: none     errors: DeviceError
GpuMemory measure_gpu(Device device, std::int64_t plan_bytes);

struct StepRecord {
    std::int64_t step = 0, tokens = 0;  // after the step
    std::string stage;
    double loss = 0.0, grad_norm = 0.0, lr = 0.0;
    double step_ms = 0.0, data_ms = 0.0, comm_ms = 0.0;
    double hidden_comm_ms = 0.0;  // beside the computation; comm_ms: exposed
    double tokens_per_s = 0.0;
    std::int64_t valid_tokens = 0, mem_peak_bytes = 0;
    GpuMemory gpu;  // where the run is on one
    bool skipped = false;
    std::vector<LayerSelection> selection;  // of logged steps
};

class MetricsFiles {
public:
    MetricsFiles() = default;  // writes nothing: ranks other than 0
    /// Appends to the files in `run_dir`, after cutting what lies at or past `step` (a resumed run
    /// writes those steps again).     errors: DataError
    MetricsFiles(std::string run_dir, std::int64_t step);
    void write_step(const StepRecord& r);
    void write_event(const std::string& event, std::int64_t step,
                     const std::map<std::string, std::string>& fields = {});
    void write_eval(const EvalReport& r);
    /// All evaluations of the run so far, oldest first (accuracies and losses, no solutions).
    std::vector<EvalReport> read_evals() const;

private:
    std::string run_dir_;
};

/// Peak resident set of this process.
std::int64_t peak_memory_bytes();

}  // namespace stoa
