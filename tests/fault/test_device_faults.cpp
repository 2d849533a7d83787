// The whole program on described GPUs, whose kernels run on the host: it trains, evaluates, saves
// and goes on as on the CPU, and what is wrong with the GPUs ends all ranks with one error.
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/support/catch.h"
#include "tests/support/tiny_project.h"

using namespace stoa;
using namespace stoa::test;

namespace {

std::string gpu_binary() {
    if (const char* path = std::getenv("STOA_HOST_GPU_BIN")) return path;
    return (fs::read_symlink("/proc/self/exe").parent_path() / "stoa_host_gpu").string();
}

const TempDir& project() {
    static const TempDir dir;
    static const bool made = [] {
        const Outcome built = make_tiny_project(dir.path, 3);
        INFO(built.output);
        REQUIRE(built.code == 0);
        return true;
    }();
    (void)made;
    return dir;
}

// A run of four small steps (kernels on the host are slow); `binary` with `gpus` described.
Outcome train(const std::string& binary, const std::string& gpus, int ranks,
              const std::string& name, const std::string& overrides) {
    const std::string mpirun =
        ranks == 1 ? "" : "mpirun -q -n " + std::to_string(ranks) + " --oversubscribe ";
    return run_shell(
        "STOA_HOST_GPUS='" + gpus + "' STOA_PREFLIGHT=off " + mpirun + binary + " train " +
        project().path + "/run.yaml run.name=" + name +
        " parallel.determinism=fast batch.global_batch=2 batch.micro_batch=1"
        " stages.0.seq_len=96 stages.1.seq_len=96 'stages.0.tokens=384 tokens'"
        " 'stages.1.tokens=384 tokens' eval.sequences=1 'eval.problems=1 of 4 tokens' " +
        overrides);
}

std::vector<double> values(const std::string& name, const std::string& file,
                           const std::string& key) {
    std::vector<double> all;
    std::istringstream in(read_text(project() / ("runs/" + name + "/" + file)));
    for (std::string line; std::getline(in, line);)
        if (const auto row = nlohmann::json::parse(line); row.contains(key))
            all.push_back(row[key].get<double>());
    return all;
}

std::string evaluations(const std::string& name) {
    std::string all;
    std::istringstream in(read_text(project() / ("runs/" + name + "/eval.jsonl")));
    for (std::string line; std::getline(in, line);) {
        auto row = nlohmann::json::parse(line);
        row.erase("time");
        all += row.dump() + "\n";
    }
    return all;
}

constexpr const char* kOneGpu = "NVIDIA H100/90/80";

void check_one_error(const Outcome& o, int code, const std::vector<std::string>& parts) {
    INFO(o.output);
    CHECK(o.code == code);
    const std::size_t at = o.output.find("error: ");
    REQUIRE(at != std::string::npos);
    CHECK(o.output.find("error: ", at + 1) == std::string::npos);
    for (const std::string& part : parts) {
        CAPTURE(part);
        CHECK(o.output.find(part) != std::string::npos);
    }
}

}  // namespace

TEST_CASE("a run on a GPU has the CPU's losses and answers, and so have ranks that share it",
          "[fault]") {
    const Outcome cpu = train(stoa_binary(), "", 1, "cpu", "");
    INFO(cpu.output);
    REQUIRE(cpu.code == 0);
    const std::vector<double> losses = values("cpu", "metrics.jsonl", "loss");
    REQUIRE(losses.size() == 4);

    const Outcome gpu = train(gpu_binary(), kOneGpu, 1, "gpu", "");
    INFO(gpu.output);
    REQUIRE(gpu.code == 0);
    CHECK(gpu.output.find("on the CPU") == std::string::npos);
    CHECK(values("gpu", "metrics.jsonl", "loss") == losses);
    CHECK(evaluations("gpu") == evaluations("cpu"));
    // The peak in steps is the plan, to the byte; evaluations come on top.
    const std::vector<double> plan = values("gpu", "metrics.jsonl", "gpu_plan_b"),
                              steps = values("gpu", "metrics.jsonl", "gpu_step_b"),
                              peak = values("gpu", "metrics.jsonl", "gpu_peak_b");
    REQUIRE(plan.size() > 0);
    CHECK(plan.back() > 32 << 20);
    CHECK(steps.back() == plan.back());
    CHECK(peak.back() >= steps.back());
    CHECK(gpu.output.find("GPU memory of rank 0: steps ") != std::string::npos);
    CHECK(gpu.output.find("(+0.0 %)") != std::string::npos);
    CHECK(values("cpu", "metrics.jsonl", "gpu_plan_b").empty());

    const Outcome both = train(gpu_binary(), kOneGpu, 2, "both", "'parallel.device=cuda shared'");
    INFO(both.output);
    CHECK(both.code == 0);
    const Outcome two = train(stoa_binary(), "", 2, "two", "");
    CHECK(two.code == 0);
    CHECK(values("both", "metrics.jsonl", "loss") == values("two", "metrics.jsonl", "loss"));
}

TEST_CASE("what a GPU does not multiply in 8 bits is in 16 from the start", "[fault]") {
    const std::string wide =
        "precision.recipe=r30 model.d_model=128 model.d_ff=128 model.head_dim=64 "
        "precision.edge_blocks=0 checkpoint.every=1000 ";
    const auto losses = [&](const std::string& name, const std::string& gpu,
                            const std::string& more) {
        const Outcome o =
            train(gpu.empty() ? stoa_binary() : gpu_binary(), gpu, 1, name, wide + more);
        INFO(o.output);
        REQUIRE(o.code == 0);
        CHECK((o.output.find("multiplies no 8 bits") != std::string::npos) ==
              (gpu.find("A100") != std::string::npos));
        return values(name, "metrics.jsonl", "loss");
    };
    const auto cpu = losses("r30", "", "");
    CHECK(losses("r30-h100", kOneGpu, "") == cpu);
    const auto a100 = losses("r30-a100", "NVIDIA A100/80/40", "");
    CHECK(a100 != cpu);
    CHECK(a100 == losses("16", "", "precision.ffn=bf16 precision.attention=bf16"));
}

namespace {

Outcome generate(const std::string& binary, const std::string& gpus, int ranks,
                 const std::string& name, const std::string& arguments) {
    const std::string mpirun =
        ranks == 1 ? "" : "mpirun -q -n " + std::to_string(ranks) + " --oversubscribe ";
    return run_shell("STOA_HOST_GPUS='" + gpus + "' " + mpirun + binary + " generate " +
                     project().path + "/runs/" + name + " " + arguments);
}

constexpr const char* kEvery =
    "'model.attention={kind: dynamic, layers: DWTP, window: 8, leaf: 4, beam: 2, keep: 4}' "
    "model.n_layers=4";
constexpr const char* kPrompt =
    "--max-new-tokens 12 --prompt 'The old sailor repairs the engine of the ship before'";

}  // namespace

TEST_CASE("a run of every attention evaluates on a GPU and generates there what the CPU generates",
          "[fault]") {
    const Outcome cpu = train(stoa_binary(), "", 1, "every_cpu", kEvery);
    INFO(cpu.output);
    REQUIRE(cpu.code == 0);
    const Outcome gpu = train(gpu_binary(), kOneGpu, 1, "every", kEvery);
    INFO(gpu.output);
    REQUIRE(gpu.code == 0);
    CHECK(evaluations("every") == evaluations("every_cpu"));

    const Outcome text = generate(stoa_binary(), "", 1, "every", kPrompt);
    CHECK(text.code == 0);
    CHECK(text.output.size() > 60);
    const auto check_text = [&](const Outcome& o) {
        INFO(o.output);
        CHECK(o.code == 0);
        CHECK(o.output == text.output);
    };
    check_text(generate(gpu_binary(), kOneGpu, 1, "every", kPrompt));
    check_text(generate(gpu_binary(), "NVIDIA H100/90/80,NVIDIA H100/90/80", 2, "every", kPrompt));
    const std::string shared = std::string("'parallel.device=cuda shared' ") + kPrompt;
    check_text(generate(gpu_binary(), kOneGpu, 2, "every", shared));
    check_text(
        generate(gpu_binary(), "", 1, "every", std::string("parallel.device=cpu ") + kPrompt));
    const Outcome without = generate(gpu_binary(), "", 1, "every", kPrompt);
    CHECK(without.output.find("computing on the CPU: this program runs") != std::string::npos);
    CHECK(without.output.find(text.output) != std::string::npos);
    const std::string problems = "--family chain_sum --n 2 --max-new-tokens 6";
    CHECK(generate(gpu_binary(), kOneGpu, 1, "every", problems).output ==
          generate(stoa_binary(), "", 1, "every", problems).output);

    check_one_error(generate(gpu_binary(), "", 2, "every", "parallel.device=cuda --prompt a"), 5,
                    {"there is no GPU", "rank 0 on"});
    check_one_error(generate(gpu_binary(), kOneGpu, 2, "every", kPrompt), 5,
                    {"more ranks than GPUs", "cuda shared"});
    check_one_error(generate(gpu_binary(), "NVIDIA H100/90/0.25", 1, "every", kPrompt), 4,
                    {"weights and optimizer state do not fit the GPU", "parallel.device=cpu"});
    check_one_error(generate(gpu_binary(), kOneGpu, 1, "every", "model.d_ff=8 --prompt a"), 2,
                    {"only where a run computes"});
    // The smallest GPU that takes the weights has no room for the caches.
    Outcome tight;
    for (int i = 1; i < 40; ++i) {
        const std::string gib = std::to_string(0.25 + 0.0001 * i);
        tight = generate(gpu_binary(), "NVIDIA H100/90/" + gib, 1, "every", kPrompt);
        if (tight.output.find("weights and optimizer state") == std::string::npos) break;
    }
    check_one_error(tight, 4, {"the prompt's caches do not fit the GPU", "--max-new-tokens"});
}

TEST_CASE("stoa plan plans for the GPU that is here, or says that there is none", "[fault]") {
    const auto plan = [&](const std::string& gpus, const std::string& overrides) {
        return run_shell("STOA_HOST_GPUS='" + gpus + "' " + gpu_binary() + " plan " +
                         project().path + "/run.yaml " + overrides);
    };
    const Outcome here = plan(kOneGpu, "");
    INFO(here.output);
    CHECK(here.code == 0);
    CHECK(here.output.find("NVIDIA H100, sm_90") != std::string::npos);
    CHECK(here.output.find("fits") != std::string::npos);
    CHECK(plan(kOneGpu, "parallel.device=cpu").output.find("H100") == std::string::npos);
    CHECK(plan("", "").output.find("GPU") == std::string::npos);
    const Outcome none = plan("", "parallel.device=cuda");
    CHECK(none.code == 0);
    CHECK(none.output.find("GPU: none here, planned for sm_90") != std::string::npos);
    check_one_error(plan("NVIDIA H100/90/0.25", ""), 4, {"does not fit the GPU", "of scratch"});
    check_one_error(plan(kOneGpu, "--memory 0.3"), 4, {"does not fit the GPU", "0.3 GiB"});
}

TEST_CASE("without a GPU the run is on the CPU and says so", "[fault]") {
    const Outcome o = train(gpu_binary(), "", 1, "none", "");
    INFO(o.output);
    CHECK(o.code == 0);
    CHECK(o.output.find("computing on the CPU: this program runs its kernels on the host") !=
          std::string::npos);
}

TEST_CASE("a GPU that fails in a step ends all ranks, and is named", "[fault]") {
    const std::string gpus = "STOA_HOST_GPUS='NVIDIA H100/90/80,NVIDIA H100/90/80' ",
                      train_it = gpu_binary() + " train " + project().path +
                                 "/run.yaml run.name=ecc batch.global_batch=2 batch.micro_batch=1 "
                                 "stages.0.seq_len=96 stages.1.seq_len=96";
    const Outcome o = run_shell(
        gpus + "STOA_PREFLIGHT=off timeout 100 mpirun -q --oversubscribe -n 1 " + train_it +
        " : -n 1 -x STOA_HOST_GPU_FAULT='cudaErrorECCUncorrectable 12' " + train_it);
    check_one_error(o, 5,
                    {"rank 1 on", "GPU 1", "cudaErrorECCUncorrectable", "nvidia-smi -q -d ECC",
                     "goes on from its last checkpoint"});
}

TEST_CASE("what is wrong with the GPUs is one error of all ranks", "[fault]") {
    check_one_error(train(gpu_binary(), "", 2, "a", "parallel.device=cuda"), 5,
                    {"there is no GPU", "rank 0 on"});
    check_one_error(train(stoa_binary(), "", 1, "a", "parallel.device=cuda"), 5,
                    {"there is no GPU"});
    check_one_error(train(gpu_binary(), kOneGpu, 2, "b", ""), 5,
                    {"more ranks than GPUs", "rank 1 on", "cuda shared"});
    check_one_error(train(gpu_binary(), "NVIDIA H100/90/80,NVIDIA A100/80/40", 2, "c", ""), 5,
                    {"several architectures", "rank 1 on"});
    check_one_error(train(gpu_binary(), "NVIDIA H100/90/0.25", 1, "d", ""), 4,
                    {"does not fit the GPU", "NVIDIA H100", "planned", "of arena (state",
                     "of scratch (matmul)", "scratch in graphs and 0.25 of code", "free beside context and NCCL"});
}
