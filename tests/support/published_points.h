#pragma once
// Training speeds that others have published for H100 and H200 clusters, with what they ran. Models
// are described by their shapes; an MLP of 4 d_model is a SwiGLU of 8/3 d_model here, which has its
// parameters. Sources: docs/cost_model.md.
#include <vector>

#include "trainer/cost_model/cost_model.h"

namespace stoa::test {

struct PublishedPoint {
    const char *stack, *name;
    const char* model;                                       // 7b, 8b, 70b
    std::int64_t seq_len, devices, tp, micro_batch, passes;  // passes: micro-batches of a rank
    Recipe recipe;       // bf16; r30 stands for 8-bit products in the feed-forward layers
    bool fp8_attention;  // 8-bit products around attention, too
    Recompute recompute;
    std::int64_t zero;
    double tokens_per_s_device;
    bool calibrates;  // its stack's share of the peak that products reach
};

/// Three stacks publish 8B-class or 70B speeds with their settings; the first point of each
/// calibrates one number, the others are predictions.
inline const std::vector<PublishedPoint>& published_points() {
    constexpr auto kNone = Recompute::none, kSome = Recompute::selective, kFull = Recompute::full;
    constexpr auto kBf16 = Recipe::bf16, kFp8 = Recipe::r30;
    static const std::vector<PublishedPoint> points = {
        {"nemo", "8B BF16, 8", "8b", 8192, 8, 1, 1, 16, kBf16, false, kNone, 1, 10682, true},
        {"nemo", "8B BF16, 128", "8b", 8192, 128, 1, 1, 16, kBf16, false, kNone, 1, 10630, false},
        {"nemo", "8B FP8, 8", "8b", 8192, 8, 1, 1, 16, kFp8, true, kNone, 1, 14048, false},
        {"nemo", "8B FP8, 128", "8b", 8192, 128, 1, 1, 16, kFp8, true, kNone, 1, 13739, false},
        {"nemo", "70B BF16, 64", "70b", 8192, 64, 4, 1, 8, kBf16, false, kNone, 1, 1118, false},
        {"nemo", "70B BF16, 2048", "70b", 8192, 2048, 4, 1, 8, kBf16, false, kNone, 1, 1118, false},
        {"nemo", "70B FP8, 64", "70b", 8192, 64, 4, 1, 8, kFp8, true, kNone, 1, 1662, false},
        {"nemo", "70B FP8, 2048", "70b", 8192, 2048, 4, 1, 8, kFp8, true, kNone, 1, 1614, false},
        {"torchtitan", "8B BF16, 8", "8b", 8192, 8, 1, 2, 1, kBf16, false, kSome, 3, 6667, true},
        {"torchtitan", "8B BF16, 128", "8b", 8192, 128, 1, 2, 1, kBf16, false, kSome, 3, 6514,
         false},
        {"torchtitan", "8B FP8, 8", "8b", 8192, 8, 1, 2, 1, kFp8, true, kSome, 3, 8532, false},
        {"torchtitan", "8B FP8, 128", "8b", 8192, 128, 1, 2, 1, kFp8, true, kSome, 3, 8380, false},
        {"torchtitan", "70B FP8 TP 8, 256", "70b", 8192, 256, 8, 16, 1, kFp8, true, kFull, 3, 829,
         false},
        {"torchtitan h200", "8B FP8, 32", "8b", 8192, 32, 1, 2, 1, kFp8, true, kSome, 3, 10938,
         true},
        {"torchtitan h200", "8B FP8, 64", "8b", 8192, 64, 1, 2, 1, kFp8, true, kSome, 3, 10753,
         false},
        {"llm-foundry", "7B BF16, 8", "7b", 2048, 8, 1, 6, 1, kBf16, false, kNone, 3, 10643, true},
        {"llm-foundry", "7B BF16, 128", "7b", 2048, 128, 1, 6, 1, kBf16, false, kNone, 3, 10475,
         false},
        {"llm-foundry", "7B BF16, 512", "7b", 2048, 512, 1, 6, 1, kBf16, false, kNone, 3, 9670,
         false},
        {"llm-foundry", "7B BF16 4k, 8", "7b", 4096, 8, 1, 16, 2, kBf16, false, kFull, 3, 8611,
         false},
        {"llm-foundry", "7B BF16 8k, 8", "7b", 8192, 8, 1, 8, 2, kBf16, false, kFull, 3, 6935,
         false},
        {"llm-foundry", "7B BF16 32k, 8", "7b", 32768, 8, 1, 2, 2, kBf16, false, kFull, 3, 3318,
         false},
        {"llm-foundry", "70B BF16, 32", "70b mpt", 2048, 32, 1, 2, 16, kBf16, false, kFull, 3, 882,
         false},
        {"llm-foundry", "70B BF16, 64", "70b mpt", 2048, 64, 1, 8, 4, kBf16, false, kFull, 3, 1039,
         false},
        {"llm-foundry", "70B BF16, 128", "70b mpt", 2048, 128, 1, 8, 1, kBf16, false, kFull, 3,
         1058, false},
        {"llm-foundry", "70B BF16, 512", "70b mpt", 2048, 512, 1, 8, 1, kBf16, false, kFull, 3,
         1007, false},
    };
    return points;
}

inline RunConfig config_of(const PublishedPoint& p) {
    RunConfig c;
    const std::string model = p.model;
    if (model == "8b")  // Llama 3.1
        c.model = {.vocab_size = 128256,
                   .d_model = 4096,
                   .n_layers = 32,
                   .n_heads = 32,
                   .n_kv_heads = 8,
                   .head_dim = 128,
                   .d_ff = 14336,
                   .tie_embeddings = false};
    else if (model == "70b")
        c.model = {.vocab_size = 128256,
                   .d_model = 8192,
                   .n_layers = 80,
                   .n_heads = 64,
                   .n_kv_heads = 8,
                   .head_dim = 128,
                   .d_ff = 28672,
                   .tie_embeddings = false};
    else if (model == "7b")  // MPT
        c.model = {.vocab_size = 50432,
                   .d_model = 4096,
                   .n_layers = 32,
                   .n_heads = 32,
                   .n_kv_heads = 32,
                   .head_dim = 128,
                   .d_ff = 10923};
    else
        c.model = {.vocab_size = 50432,
                   .d_model = 8192,
                   .n_layers = 80,
                   .n_heads = 64,
                   .n_kv_heads = 64,
                   .head_dim = 128,
                   .d_ff = 21845};
    c.parallel = {.dp = p.devices / p.tp,
                  .tp = p.tp,
                  .sequence = p.tp > 1,
                  .recompute = p.recompute,
                  .zero = p.zero,
                  .determinism = Determinism::fast};
    c.precision.recipe = p.recipe;
    c.precision.edge_blocks = 0;
    if (p.fp8_attention) c.precision.attention = Format::fp8;
    c.batch = {.global_batch = p.passes * p.micro_batch * c.parallel.dp,
               .micro_batch = p.micro_batch};
    StageConfig stage;
    stage.seq_len = p.seq_len;
    c.stages.push_back(stage);
    return c;
}

/// The cluster with the share of the bf16 peak that makes it predict `p` exactly; that of fp8 keeps
/// its ratio.
inline Cluster calibrated(Cluster cluster, const PublishedPoint& p) {
    const double ratio = cluster.gemm_fp8 / cluster.gemm;
    double low = 0.05, high = 2.0;
    for (int i = 0; i < 60; ++i) {
        cluster.gemm = (low + high) / 2;
        cluster.gemm_fp8 = ratio * cluster.gemm;
        const double predicted = predict_step(config_of(p), cluster).tokens_per_s_device;
        (predicted < p.tokens_per_s_device ? low : high) = cluster.gemm;
    }
    return cluster;
}

}  // namespace stoa::test
