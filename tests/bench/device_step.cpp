// The speed and memory of training steps of one rank on a GPU, for the sizes that GPU trainers
// publish: recipes one after the other, in rounds that take turns. Peer:
// tests/bench/peers/torch_device_step.py, with the same sizes. Without a GPU it computes on the CPU
// and says so: that tries the program, no more.
//   device_step --model tiny|124m|1b|3b|8b-proxy [--seq 4096] [--batch 1] [--recipes bf16,r30]
//               [--steps 10] [--rounds 2] [--recompute none|selective|full] [--peak TFLOPS]
// MFU = (6 weights + 6 layers seq q_cols) tokens / seconds / peak: weights without the embedding's
// look-up, attention causal, nothing for recompute. `peak`: of the GPU in bf16, dense.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/cuda/device.h"
#include "tests/bench/step_costs.h"
#include "tests/support/tiny_run.h"

using namespace stoa;
using namespace stoa::bench;
using nlohmann::json;

namespace {

using Clock = std::chrono::steady_clock;

struct Options {
    std::string model = "124m", recipes = "bf16,r30", recompute = "none";
    std::int64_t seq = 4096, batch = 1;
    int steps = 10, rounds = 2;
    double peak_tflops = 989.0;  // H100 SXM and H200
};

ModelConfig model_of(const std::string& name) {
    if (name == "tiny")
        return {.vocab_size = 512,
                .d_model = 128,
                .n_layers = 3,
                .n_heads = 2,
                .n_kv_heads = 2,
                .head_dim = 64,
                .d_ff = 256};
    if (name == "124m")
        return {.vocab_size = 50304,
                .d_model = 768,
                .n_layers = 12,
                .n_heads = 12,
                .n_kv_heads = 12,
                .head_dim = 64,
                .d_ff = 2048};
    if (name == "1b")
        return {.vocab_size = 128256,
                .d_model = 2048,
                .n_layers = 16,
                .n_heads = 32,
                .n_kv_heads = 8,
                .head_dim = 64,
                .d_ff = 8192};
    if (name == "3b")
        return {.vocab_size = 128256,
                .d_model = 3072,
                .n_layers = 28,
                .n_heads = 24,
                .n_kv_heads = 8,
                .head_dim = 128,
                .d_ff = 8192};
    if (name == "8b-proxy")
        return {.vocab_size = 128256,
                .d_model = 4096,
                .n_layers = 8,
                .n_heads = 32,
                .n_kv_heads = 8,
                .head_dim = 128,
                .d_ff = 14336,
                .tie_embeddings = false};
    throw ConfigError({.what = "no such model", .where = "--model", .actual = name});
}

RunConfig config_of(const Options& o, const std::string& recipe) {
    const Recompute recompute = o.recompute == "full"        ? Recompute::full
                                : o.recompute == "selective" ? Recompute::selective
                                                             : Recompute::none;
    RunConfig c = test::tiny_config({.recompute = recompute}, 1, 1);
    c.model = model_of(o.model);
    c.precision.recipe = recipe_from_name(recipe);
    c.precision.adaptive = false;  // no layer changes its format while time is taken
    c.parallel.determinism = Determinism::fast;
    c.batch = {.global_batch = o.batch, .micro_batch = o.batch, .grad_accum = 1};
    c.stages[0].seq_len = o.seq;
    c.stages[0].tokens = 1 << 30;
    c.checkpoint.blocking = true;  // no snapshot
    return c;
}

double gib(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

struct Measured {
    std::vector<double> seconds;
    double loss = 0.0;
    std::int64_t planned = 0, used = 0, parameters = 0;
};

/// A state of its own, which is gone on return: two of the large ones do not fit a GPU.
void measure(Measured& m, const Options& o, const RunConfig& c, const Exec& exec) {
    const std::int64_t free_before = exec.device.is_cuda() ? cuda::free_bytes() : 0;
    TrainState s = make_train_state(c, 0, 1, exec);
    for (int step = -2; step < o.steps; ++step) {  // two warm up
        StepInputs in{.lr = 1e-4, .step = step + 2};
        in.micro_batches.push_back(test::tiny_batch(c, step + 2, 0));
        const auto begin = Clock::now();
        m.loss = train_step(s, in, Mesh{}, exec).loss;
        if (step >= 0)
            m.seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    }
    m.parameters = count_parameters(c);
    m.planned = plan_memory(c, 0, 1, 0, exec.device).rank_bytes();
    m.used = exec.device.is_cuda() ? free_before - cuda::free_bytes() : peak_allocated_bytes();
}

Options parse(int argc, char** argv) {
    Options o;
    for (int i = 1; i + 1 < argc; i += 2) {
        const std::string key = argv[i], value = argv[i + 1];
        if (key == "--model")
            o.model = value;
        else if (key == "--seq")
            o.seq = std::stoll(value);
        else if (key == "--batch")
            o.batch = std::stoll(value);
        else if (key == "--recipes")
            o.recipes = value;
        else if (key == "--steps")
            o.steps = std::stoi(value);
        else if (key == "--rounds")
            o.rounds = std::stoi(value);
        else if (key == "--recompute")
            o.recompute = value;
        else if (key == "--peak")
            o.peak_tflops = std::stod(value);
        else
            throw ConfigError({.what = "no such option", .actual = key});
    }
    return o;
}

void run(const Options& o) {
    std::string reason;
    const std::vector<cuda::DeviceInfo> devices = cuda::list_devices(reason);
    std::unique_ptr<cuda::CudaStream> stream;
    Exec exec;
    if (!devices.empty()) {
        exec.device = {DeviceKind::cuda, 0};
        cuda::use_device(0);
        stream = std::make_unique<cuda::CudaStream>();
        exec.stream = stream->stream();
    }
    std::vector<std::string> recipes;
    std::istringstream in(o.recipes);
    for (std::string word; std::getline(in, word, ',');)
        recipes.push_back(word);
    std::vector<Measured> all(recipes.size());
    for (int round = 0; round < o.rounds; ++round)
        for (std::size_t i = 0; i < recipes.size(); ++i)
            measure(all[i], o, config_of(o, recipes[i]), exec);

    const RunConfig c = config_of(o, recipes[0]);
    const double tokens = static_cast<double>(o.batch * o.seq);
    json out{{"bench", "device_step"},
             {"model", o.model},
             {"device", devices.empty() ? "CPU: " + reason : devices[0].name},
             {"parameters", all[0].parameters},
             {"tokens_per_step", tokens},
             {"tflop_per_step", step_flop(c) / 1e12},
             {"recompute", o.recompute}};
    for (std::size_t i = 0; i < recipes.size(); ++i) {
        const Measured& m = all[i];
        const double median = quantile(m.seconds, 0.5);
        out[recipes[i]] = {{"tok_s", tokens / median},
                           {"step_ms_median", 1e3 * median},
                           {"step_ms_p10", 1e3 * quantile(m.seconds, 0.1)},
                           {"step_ms_p90", 1e3 * quantile(m.seconds, 0.9)},
                           {"planned_gib", gib(m.planned)},
                           {"used_gib", gib(m.used)},
                           {"loss", m.loss}};
        if (!devices.empty()) out[recipes[i]]["mfu"] = step_flop(c) / median / 1e12 / o.peak_tflops;
        out[recipes[i] + "_over_" + recipes[0] + "_speed"] = quantile(all[0].seconds, 0.5) / median;
    }
    fmt::print("{}\n", out.dump());
}

}  // namespace

int main(int argc, char** argv) {
    try {
        run(parse(argc, argv));
    } catch (const Error& e) {
        fmt::print(stderr, "error: {}\n", e.what());
        return static_cast<int>(e.code());
    }
    return 0;
}
