// What a rank needs of a GPU and what it has of one, in numbers; and GPUs that are described.
#include "launcher/gpu_memory.h"
#include "tests/support/catch.h"
#include "tests/support/tiny_run.h"
#include "trainer/model/gpu_plan.h"

using namespace stoa;
using namespace stoa::test;

namespace {

constexpr std::int64_t kGiB = std::int64_t{1} << 30, kMiB = std::int64_t{1} << 20;
constexpr Device kGpu{DeviceKind::cuda, 0};

void check_says(const std::string& text, const std::vector<const char*>& parts) {
    for (const char* part : parts) {
        CAPTURE(text, part);
        CHECK(text.find(part) != std::string::npos);
    }
}

std::string refusal(const std::string& description) {
    try {
        (void)parse_gpu("--gpu", description);
    } catch (const ConfigError& e) {
        CHECK(e.code() == ExitCode::config);
        return e.what();
    }
    return "";
}

// Of 8 B width: 32 heads, 8 of them for keys, of 128.
ConstTensorView rows(std::int64_t batch, std::int64_t len, std::int64_t heads, DType dtype) {
    return {reinterpret_cast<const std::byte*>(64), dtype, {batch, len, heads, 128}, kGpu};
}
std::int64_t attention_backward(std::int64_t batch, std::int64_t len, DType dtype,
                                const GpuLibraries& has) {
    AttentionBackwardArgs a;
    a.q = rows(batch, len, 32, dtype);
    a.k = rows(batch, len, 8, dtype);
    a.causal = true;
    return scratch_bytes(a, has);
}

}  // namespace

TEST_CASE("a described GPU is its name, capability and memory") {
    const cuda::DeviceInfo gpu = parse_gpu("--gpu", "NVIDIA H200/90/141");
    CHECK(gpu.name == "NVIDIA H200");
    CHECK(gpu.capability == 90);
    CHECK(gpu.memory_bytes == 141 * kGiB);
    CHECK(parse_gpu("--gpu", "A / B/80/79.5").name == "A / B");
    CHECK(parse_gpu("--gpu", "A/80/79.5").memory_bytes == 79 * kGiB + kGiB / 2);
}

TEST_CASE("a description that is none is refused, with the form") {
    for (const char* bad : {"", "H200", "H200/90", "/90/141", "  /90/141", "//"})
        check_says(refusal(bad), {"--gpu", "NAME/CAPABILITY/GIB", "NVIDIA H200/90/141"});
    for (const char* bad :
         {"H200//141", "H200/sm_90/141", "H200/9.0/141", "H200/90 /141", "H200/9000/141"})
        check_says(refusal(bad), {"capability is not a number", bad});
    check_says(refusal("Tesla T4/75/16"), {"too old", "80 or more", "Tesla T4/75/16"});
    for (const char* bad :
         {"H/90/", "H/90/x", "H/90/0", "H/90/-1", "H/90/nan", "H/90/inf", "H/90/141G", "H/90/1e9"})
        check_says(refusal(bad), {"not a number of GiB", bad});
}

TEST_CASE("a plan that does not fit the GPU is refused with every number") {
    const RunConfig config = tiny_config({}, 1, 1);
    const MemoryPlan plan{.state_bytes = 30 * kGiB,
                          .activation_bytes = 20 * kGiB,
                          .kernel_bytes = 2 * kGiB,
                          .scratch = {{"attention_backward", 2 * kGiB}},
                          .graph_bytes = kGiB};
    const cuda::DeviceInfo h100{"NVIDIA H100", 90, 80 * kGiB, "a"};
    CHECK(gpu_need_bytes(plan) == 53 * kGiB + kGpuLibraryBytes);
    CHECK_NOTHROW(require_fits_gpu(config, plan, room_at_hand(h100, 3, 1, 79 * kGiB), {}));
    CHECK_NOTHROW(
        require_fits_gpu(config, plan, room_at_hand(h100, 3, 1, gpu_need_bytes(plan)), {}));
    std::string text;
    try {
        require_fits_gpu(config, plan, room_at_hand(h100, 3, 2, 79 * kGiB), {});
    } catch (const MemoryError& e) {
        CHECK(e.code() == ExitCode::memory);
        text = e.what();
    }
    check_says(text, {"GPU 3 (NVIDIA H100, 80.0 GiB)", "39.50 GiB for each of 2 ranks",
                      "79.00 GiB are free", "53.25 GiB planned", "50.00 of arena", "state 30.00",
                      "activations 20.00", "2.00 of scratch (attention_backward)",
                      "an estimated 1.00 of scratch in graphs and 0.25"});
    CHECK_THROWS_AS(
        require_fits_gpu(config, plan, room_at_hand(h100, 0, 1, gpu_need_bytes(plan) - 1), {}),
        MemoryError);
}

TEST_CASE("a described GPU keeps room for its context, and for NCCL's groups") {
    const cuda::DeviceInfo gpu = parse_gpu("--gpu", "H/90/10");
    CHECK(room_of_described(gpu, tiny_config({}, 1, 1)).free_bytes == 10 * kGiB - kGpuContextBytes);
    const GpuRoom four = room_of_described(gpu, tiny_config({}, 2, 2));
    CHECK(four.free_bytes == 10 * kGiB - kGpuContextBytes - 3 * kNcclGroupBytes);
    check_says(four.less, {"10.00 GiB", "0.50 for the context", "1.12 for NCCL (3 groups)"});
    CHECK(room_of_described(parse_gpu("--gpu", "H/90/0.1"), tiny_config({}, 1, 1)).free_bytes == 0);
}

TEST_CASE("a GPU's run keeps snapshot and staging in host memory, scratch beside the arena") {
    RunConfig config = tiny_config({}, 1, 1);
    const MemoryPlan cpu = plan_memory(config, 0, 1), gpu = plan_memory(config, 0, 1, 0, kGpu);
    CHECK(gpu.host_bytes > 0);
    CHECK(cpu.host_bytes == 0);
    CHECK(gpu.state_bytes < cpu.state_bytes);
    CHECK(gpu.activation_bytes == cpu.activation_bytes);
    CHECK(gpu.kernel_bytes == gpu.scratch.front().bytes);
    CHECK(gpu.graph_bytes == gpu.kernel_bytes);
    CHECK(cpu.graph_bytes == 0);
    CHECK(gpu.kernel_bytes >= kGemmWorkspaceBytes);
    CHECK(gpu.staging_bytes == 0);
    CHECK(cpu.scratch.empty());
    const std::string text = describe_plan(gpu);
    check_says(text, {"scratch of the largest op", "matmul", "embedding_backward",
                      "pinned host memory: the snapshot", "pinned host memory: collectives"});
    const MemoryPlan two = plan_memory(tiny_config({}, 2, 1), 0, 1, 0, kGpu),
                     nccl = plan_memory(tiny_config({.determinism = Determinism::fast}, 2, 1), 0, 1,
                                        0, kGpu, {.nccl = true});
    CHECK(two.staging_bytes > nccl.staging_bytes);
    // The largest of all stages, whichever it is.
    config.stages.push_back(config.stages[0]);
    config.stages[1].attention = tiny_attention(AttentionKind::dynamic, KeySelector::importance);
    const MemoryPlan both = plan_memory(config, 0, 1, 0, kGpu);
    CHECK(std::ranges::find(both.scratch, "select_keys", &PlannedScratch::op) !=
          both.scratch.end());
    std::swap(config.stages[0], config.stages[1]);
    CHECK(plan_memory(config, 0, 1, 0, kGpu).kernel_bytes == both.kernel_bytes);
}

TEST_CASE("dense attention's scratch is cuDNN's where that has a kernel, else ours") {
    const GpuLibraries h100 = gpu_libraries(90), a100 = gpu_libraries(80);
    // Figures of cuDNN's plans for a described H200, and delta beside it.
    CHECK(attention_backward(4, 4096, DType::bf16, h100) ==
          scratch_room(1140850944) + 32 * 4096 * 4);
    CHECK(attention_backward(1, 131072, DType::bf16, h100) ==
          scratch_room(2415919360) + 4 * 2048 * 4 + 12 * 131072 * 128);
    const std::int64_t own = 32 * 4096 * 4;
    CHECK(attention_backward(1, 4096, DType::bf16, a100) == own);
    CHECK(attention_backward(1, 4096, DType::fp32, h100) == own);
    CHECK(attention_backward(1, 4096, DType::bf16, gpu_libraries(90, false)) == own);
    CHECK(attention_backward(1, 4096, DType::bf16, h100) > 1000 * kMiB);
}
