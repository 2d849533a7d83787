// What a GPU's run takes beside its arena is what the plan says: scratch op by op, the largest of
// all ops, and pinned memory of the collectives. Kernels run on the host (kernels/cuda/host); of
// library calls the twins count what the call would have.
#include <mpi.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/host/device_pages.h"
#include "kernels/device_memory.h"
#include "tests/support/catch.h"
#include "tests/support/tiny_run.h"
#include "trainer/metrics.h"
#include "trainer/model/gpu_plan.h"

using namespace stoa;
using namespace stoa::test;

namespace {

int world_size() {
    int started = 0, size = 1;
    MPI_Initialized(&started);
    if (started) MPI_Comm_size(MPI_COMM_WORLD, &size);
    return size;
}
// What one rank alone does is seen once: by the first of two.
bool is_elsewhere() {
    int rank = 0;
    if (world_size() > 1) MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return world_size() > 2 || rank > 0;
}

const Exec& device() {
    static const cuda::CudaStream stream;
    static const Exec exec{{DeviceKind::cuda, 0}, stream.stream()};
    return exec;
}

MemoryPlan plan_of(const RunConfig& c, const Mesh& mesh) {
    return plan_memory(c, mesh.tp_rank(), mesh.tp_size(), mesh.dp_rank(), device().device);
}

// One step of a run whose plan is then held against what was there.
void check_step(const TinyOptions& options, const Mesh& mesh) {
    const RunConfig config = tiny_config(options, mesh.dp_size(), mesh.tp_size());
    const MemoryPlan plan = plan_of(config, mesh);
    TrainState s =
        make_train_state(config, mesh.tp_rank(), mesh.tp_size(), device(), mesh.dp_rank());
    cuda::reserve_scratch(device().stream, plan.kernel_bytes);
    s.sampling = false;
    (void)tiny_steps(s, mesh, 0, 1, device());
    CHECK(s.arena.bytes() == plan.total_bytes());
    CHECK(s.host.bytes() == plan.host_bytes);
    CHECK(cuda::host::scratch_peak() == plan.kernel_bytes);
    const std::set<std::int64_t> peaks = cuda::host::scratch_peaks_of_ops();
    for (const PlannedScratch& op : plan.scratch) {
        if (op.op == "quantization_loss") continue;  // in steps that sample
        CAPTURE(op.op, op.bytes);
        CHECK(peaks.contains(op.bytes));
    }
    const GpuMemory gpu = measure_gpu(device().device, plan.rank_bytes());
    CHECK(gpu.step_bytes == plan.rank_bytes());
    CHECK(gpu.peak_bytes >= gpu.step_bytes);
}

TinyOptions blocks_of(Recipe recipe, std::int64_t seq_len = 128) {
    TinyOptions o{.micro_batch = 1,
                  .recipe = recipe,
                  .global_batch = 2,
                  .whole_blocks = true,
                  .seq_len = seq_len};
    o.determinism = Determinism::fast;
    return o;
}

}  // namespace

TEST_CASE("an op takes the scratch that is planned for it: recipes", "[multirank]") {
    if (is_elsewhere()) return;
    const Recipe recipe =
        GENERATE(Recipe::fp32, Recipe::bf16, Recipe::r30, Recipe::r45, Recipe::r50);
    CAPTURE(recipe_name(recipe));
    check_step(blocks_of(recipe), Mesh{});
}

TEST_CASE("so it does with short rows, recompute and a last chunk that is no whole one",
          "[multirank]") {
    if (is_elsewhere()) return;
    TinyOptions o = blocks_of(GENERATE(Recipe::bf16, Recipe::r30), 296);
    o.recompute = o.recipe == Recipe::r30 ? Recompute::selective : Recompute::full;
    o.tie_embeddings = o.recompute == Recompute::full;
    CAPTURE(recipe_name(o.recipe));
    check_step(o, Mesh{});
}

TEST_CASE("so it does with every kind of attention", "[multirank]") {
    if (is_elsewhere()) return;
    TinyOptions o{.micro_batch = 2, .global_batch = 2, .seq_len = 48};
    o.recipe = Recipe::bf16;
    o.determinism = Determinism::fast;
    o.attention = GENERATE(tiny_attention(AttentionKind::window),
                           tiny_attention(AttentionKind::dynamic, KeySelector::tree, "TPW"),
                           tiny_attention(AttentionKind::dynamic, KeySelector::importance),
                           helped_attention(0.2, 1.0));
    CAPTURE(print_attention(o.attention));
    check_step(o, Mesh{});
}

TEST_CASE("groups keep the pinned memory that is planned for them", "[multirank]") {
    const int size = world_size();
    const bool sequence = GENERATE(false, true);
    const std::int64_t zero = GENERATE(0, 1, 3);
    for (int tp = 1; tp <= size; tp *= 2) {
        if (sequence && tp == 1) continue;
        Mesh mesh = make_mesh(size / tp, tp, Overlap::off);
        TinyOptions o{.micro_batch = 1};
        o.determinism = Determinism::fast;
        o.zero = zero;
        o.sequence = sequence;
        check_step(o, mesh);
        const RunConfig config = tiny_config(o, mesh.dp_size(), tp);
        TrainState s = make_train_state(config, mesh.tp_rank(), tp, device(), mesh.dp_rank());
        (void)tiny_steps(s, mesh, 0, 1, device());
        const PlannedStaging need = plan_staging(config, s.dims, config.stages[0].seq_len,
                                                 mesh.tp_rank(), tp, mesh.dp_rank(), false);
        CAPTURE(size / tp, tp, sequence, zero);
        CHECK(mesh.tp.staging_bytes() == need.tp);
        CHECK(mesh.dp.staging_bytes() == need.dp);
        CHECK(mesh.dp_beside.staging_bytes() == need.dp_beside);
        CHECK(mesh.tp_beside.staging_bytes() == 0);
        CHECK(plan_of(config, mesh).staging_bytes == need.bytes());
        close_mesh(mesh);
    }
}

TEST_CASE("scratch beyond the plan would be seen", "[multirank]") {
    if (is_elsewhere()) return;
    const cuda::host::CountedScratch one(1000);
    cuda::host::reset_scratch_peak();
    { const cuda::Scratch two(device().stream, 513); }
    CHECK(cuda::host::scratch_peak() == 2 * 1024);
}
