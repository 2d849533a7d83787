// The cost model: counts that can be made by hand, what must not get faster, and cluster files.
#include <chrono>

#include "kernels/core/error.h"
#include "tests/support/catch.h"
#include "tests/support/programs.h"
#include "tests/support/published_points.h"

using namespace stoa;
using namespace stoa::test;

namespace {

Cluster h100() { return load_cluster(source_dir() + "/configs/clusters/h100.yaml"); }

RunConfig small(std::int64_t dp, std::int64_t tp) {
    RunConfig c;
    c.model = {.vocab_size = 1000,
               .d_model = 64,
               .n_layers = 2,
               .n_heads = 8,
               .n_kv_heads = 4,
               .head_dim = 16,
               .d_ff = 256};
    c.precision.recipe = Recipe::bf16;
    c.parallel = {.dp = dp, .tp = tp, .determinism = Determinism::fast};
    c.batch = {.global_batch = 8 * dp, .micro_batch = 8};
    StageConfig stage;
    stage.seq_len = 32;
    c.stages.push_back(stage);
    return c;
}

// One cost at a time: rates of 1e12 and 1e9, nothing else.
Cluster plain() {
    Cluster c;
    c.memory_gb = c.bandwidth_gb_s = c.link_gb_s = c.network_gb_s = 1;
    c.fp32_tflops = c.bf16_tflops = c.fp8_tflops = 1;
    c.node_devices = 8;
    c.gemm = c.gemm_fp8 = c.attention = c.memory = c.link = c.network = 1;
    c.sum_bytes = 4;
    return c;
}

std::string refusal(const std::string& text) {
    try {
        (void)parse_cluster(text, "c.yaml");
    } catch (const ConfigError& e) {
        return e.what();
    }
    return "";
}

}  // namespace

TEST_CASE("a step's work and bytes are those of a count by hand", "[unit]") {
    // per layer: q 64 x 128, k and v 64 x 64 each, out 128 x 64, and 3 x 64 x 256
    constexpr double kWeights = 2.0 * (8192 + 2 * 4096 + 8192 + 3 * 16384) + 64000;
    constexpr double kTokens = 8 * 32, kScores = 2.0 * 128 * 32 * kTokens;  // a layer's, forward
    const StepCost s = predict_step(small(1, 1), plain());
    CHECK(s.gemm == Approx(6.0 * kWeights * kTokens / 1e12));
    CHECK(s.attention == Approx(2.0 * 3.5 * kScores / 1e12));
    CHECK(model_flops_per_token(small(1, 1), true) ==
          Approx(6.0 * kWeights + 2.0 * 3.0 * kScores / kTokens));
    CHECK(s.tp_comm == 0.0);
    CHECK(s.dp_comm == 0.0);
    CHECK(s.seconds == Approx(s.compute() + s.optimizer));

    // four sums a block and two at the ends, each two halves of 3/4 of (256, 64) in fp32
    const StepCost four = predict_step(small(1, 4), plain());
    CHECK(four.tp_comm == Approx((4 * 2 + 2) * 2 * 0.75 * kTokens * 64 * 4 / 1e9));
    CHECK(four.gemm == Approx(s.gemm / 4));
    // fp32 gradients to their owners, bf16 weights back; zero: 3 fetches them twice
    const StepCost two = predict_step(small(2, 1), plain());
    CHECK(two.dp_comm == Approx(0.5 * kWeights * (4 + 2) / 1e9));
    RunConfig fsdp = small(2, 1);
    fsdp.parallel.zero = 3;
    CHECK(predict_step(fsdp, plain()).dp_comm == Approx(0.5 * kWeights * (4 + 2 * 2) / 1e9));
    // full recompute: every product of the blocks again, but the last
    RunConfig full = small(1, 1);
    full.parallel.recompute = Recompute::full;
    CHECK(predict_step(full, plain()).gemm ==
          Approx(s.gemm + 2.0 * (kWeights - 64000 - 2.0 * 16384) * kTokens / 1e12));
    // ... which is told from attention's output where both have the same shape: d_ff = 8 x 16
    RunConfig narrow = small(1, 1);
    narrow.model.d_ff = 128;
    const double once = predict_step(narrow, plain()).gemm;
    narrow.parallel.recompute = Recompute::full;
    CHECK(predict_step(narrow, plain()).gemm ==
          Approx(once + 2.0 * 2.0 * (8192 + 2 * 4096 + 8192 + 2 * 8192) * kTokens / 1e12));
}

TEST_CASE("more of anything is never slower, and tp across nodes costs what it costs", "[unit]") {
    for (const PublishedPoint& p : published_points()) {
        const RunConfig c = config_of(p);
        const double base = predict_step(c, h100()).seconds;
        CAPTURE(p.stack, p.name);
        for (double Cluster::*field :
             {&Cluster::bandwidth_gb_s, &Cluster::bf16_tflops, &Cluster::fp8_tflops,
              &Cluster::link_gb_s, &Cluster::network_gb_s}) {
            Cluster better = h100();
            better.*field *= 2;
            CHECK(predict_step(c, better).seconds <= base);
        }
        Cluster none = h100();
        none.overlap = 0;
        CHECK(predict_step(c, none).seconds >= base);
    }
    RunConfig c = config_of(published_points().front());
    c.parallel.dp = 1;
    c.batch.global_batch = 16;
    c.parallel.tp = 8;
    const StepCost near = predict_step(c, h100());
    c.parallel.tp = 16;
    const StepCost far = predict_step(c, h100());
    CHECK(far.tp_comm > near.tp_comm);
    CHECK(far.exposed_tp / far.seconds > 1.5 * near.exposed_tp / near.seconds);
    CHECK(far.tokens_per_s_device < near.tokens_per_s_device);
    CHECK(near.limit == "compute");
    Cluster slow = h100();
    slow.network_gb_s = 1;
    CHECK(predict_step(c, slow).limit == "tp communication");
}

TEST_CASE("meshes are ranked: what fits first, the fastest first, up to 16k devices", "[unit]") {
    RunConfig c = config_of(published_points().front());
    c.batch = {.global_batch = 2048, .micro_batch = 1};
    c.stages[0].name = "only";
    c.stages[0].tokens = 1 << 30;
    c.stages[0].mix["text"] = 1.0;
    c.data.tokenizer = "tokenizer.json";
    c.data.sources.push_back({.name = "text", .path = "shards"});
    const auto begin = std::chrono::steady_clock::now();
    const auto many = rank_meshes(c, h100(), 16384);
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(60));
    REQUIRE(!many.empty());
    for (const std::int64_t devices : {1, 8, 64, 16384}) {
        const auto meshes = rank_meshes(c, h100(), devices);
        REQUIRE(!meshes.empty());
        for (std::size_t i = 0; i < meshes.size(); ++i) {
            const RankedMesh& m = meshes[i];
            CHECK(m.config.parallel.dp * m.config.parallel.tp == devices);
            CHECK(c.batch.global_batch % (m.config.parallel.dp * m.config.batch.micro_batch) == 0);
            CHECK(m.fits == (m.memory_bytes <= 0.92 * 80e9));
            if (i == 0) continue;
            CHECK(meshes[i - 1].fits >= m.fits);
            if (meshes[i - 1].fits == m.fits)
                CHECK(meshes[i - 1].cost.tokens_per_s >= m.cost.tokens_per_s);
        }
    }
    CHECK(!rank_meshes(c, h100(), 1).front().fits);  // 8B with Adam on one device
    CHECK(rank_meshes(c, h100(), 7).empty());
}

TEST_CASE("a cluster file that is not right is refused with the key", "[unit]") {
    const std::string good = read_text(source_dir() + "/configs/clusters/h100.yaml");
    const auto with = [&](const std::string& from, const std::string& to) {
        std::string text = good;
        const std::size_t at = text.find(from);
        REQUIRE(at != std::string::npos);
        return text.replace(at, from.size(), to);
    };
    const auto has = [](const std::string& text, const std::string& part) {
        return text.find(part) != std::string::npos;
    };
    CHECK(refusal(good).empty());
    CHECK(has(refusal(with("memory_gb", "memory_bg")), "did you mean 'device.memory_gb'?"));
    CHECK(has(refusal(with("  jitter: 0.005\n", "")), "missing key 'reached.jitter'"));
    CHECK(has(refusal(with("overlap: 0.8", "overlap: 1.2")),
              "reached.overlap: expected a number in [0, 1], got '1.2'"));
    CHECK(has(refusal(with("overlap: 0.8", "overlap: much")), "got 'much'"));
    CHECK(has(refusal(with("\nnetwork:", "\nnetwrok:")), "netwrok"));
    CHECK(has(refusal("name: [x"), "c.yaml"));
    CHECK_THROWS_AS(load_cluster("nowhere.yaml"), ConfigError);
}
