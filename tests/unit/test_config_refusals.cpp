// What a configuration is refused for: keys, values and what does not go together.
#include "configs/recipe.h"
#include "tests/support/config_texts.h"

using namespace stoa;
using namespace stoa::test;

TEST_CASE("wrong keys are refused with place and suggestion") {
    check_refusals({
        {"lr: 1e-3",
         "learnig_rate: 1e-3",
         {"c.yaml:6:3: error: unknown key 'optimizer.learnig_rate'"}},
        {"lr: 1e-3", "learning_rate: 1e-3", {"c.yaml:6:3", "did you mean 'optimizer.lr'?"}},
        {"d_model",
         "d_modle",
         {"c.yaml:4:3", "'model.d_model'?", "    4 |   d_modle: 64\n      |   ^^^^^^^ "}},
        {"d_model: 64", "lr: 1e-3", {"unknown key 'model.lr'", "did you mean 'optimizer.lr'"}},
        {"optimizer:", "optimiser:", {"c.yaml:5:1", "'optimizer'?"}},
        {"run:", "runs: 1\nrun:", {"unknown key 'runs'", "'run'?"}},
        {"seq_len", "seq-len", {"c.yaml:14:5", "'stages.0.seq_len'?"}},
        {"seq_len", "max_seq_len", {"'stages.0.seq_len'?"}},
        {"tokens: 1M", "epochs: 1M", {"c.yaml:13:5", "'stages.0.tokens'?"}},
        {"kind: shards, path", "kind: shards, pth", {"c.yaml:19", "'data.sources.web.path'?"}},
        {"  lr: 1e-3\n",
         "  lr: 1e-3\n  lr: 2e-3\n",
         {"c.yaml:7:3: error: duplicate key 'lr'", "line 6"}},
        {"batch:\n", "model: {}\nbatch:\n", {"duplicate key 'model'", "line 3"}},
        {"{web: 0.25, sums: 0.75}", "{web: 0.25, web: 0.75}", {"duplicate key 'web'"}},
        {"lr: 1e-3",
         "zzzzzzzz: 1",
         {"unknown key 'optimizer.zzzzzzzz'", "keys here: lr, betas, weight_decay"}},
        {"lr: 1e-3", "<<: 1", {"merge keys"}},
        {"    web: {kind", "    we b: {kind", {"source name 'we b'"}},
    });
}

TEST_CASE("wrong values are refused with the rule and what was found") {
    check_refusals({
        {"d_model: 64",
         "d_model: sixty",
         {"c.yaml:4:12", "model.d_model: expected a whole number", "got 'sixty'"}},
        {"d_model: 64", "d_model: 64.5", {"expected a whole number", "'64.5'"}},
        {"d_model: 64", "d_model: 0", {"expected [1, 131072], got '0'"}},
        {"d_model: 64", "d_model: -64", {"got '-64'"}},
        {"d_model: 64", "d_model: 99999999999999999999", {"too large"}},
        {"d_model: 64", "d_model: [64]", {"got a list"}},
        {"d_model: 64", "d_model: 64 tokens", {"expected a whole number"}},
        {"d_model: 64", "d_model:", {"model.d_model has no value", "default"}},
        {"d_model: 64", "tie_embeddings: yes", {"expected true or false, got 'yes'"}},
        {"lr: 1e-3", "lr: .nan", {"c.yaml:6:7", "finite"}},
        {"lr: 1e-3", "lr: -inf", {"finite"}},
        {"lr: 1e-3", "lr: 1e999", {"finite"}},
        {"lr: 1e-3", "lr: 0", {"expected (0, 1], got '0'"}},
        {"lr: 1e-3", "lr: 3", {"expected (0, 1], got '3'"}},
        {"lr: 1e-3", "lr: 0x10", {"expected a number"}},
        {"betas: [0.9, 0.99]", "betas: [0.9]", {"list of two numbers"}},
        {"betas: [0.9, 0.99]", "betas: [0.9, 1]", {"expected [0, 1), got '1'"}},
        {"tokens: 1M tokens", "tokens: 1m tokens", {"M for millions"}},
        {"tokens: 1M tokens", "tokens: 5 steps", {"whole number of tokens"}},
        {"tokens: 1M tokens", "tokens: 1.0000005M", {"whole number of tokens"}},
        {"seq_len: 64", "seq_len: 4", {"expected [8, 1048576], got '4'"}},
        {"kind: shards", "kind: shard", {"expected shards | reasoning", "did you mean 'shards'?"}},
        {"name: test", "name: a/b", {"run.name: expected letters"}},
        {"name: test", "name: ..", {"run.name: expected letters"}},
        {"name: test", "name: \"a\\x01\"", {"control characters"}},
        {"name: test", "name: ''", {"not empty"}},
        {"families: [chain_sum]", "families: [a, a]", {"each name once"}},
        {"families: [chain_sum]", "families: []", {"at least one name"}},
        {"mix: {web: 0.25, sums: 0.75}", "mix: web", {"share of each source"}},
        {"mix: {web: 0.25, sums: 0.75}",
         "mix: {web: x, sums: 0.75}",
         {"stages.0.mix.web: expected a fraction"}},
        {"model:\n  d_model: 64", "model: 5", {"model: expected a section with keys"}},
        {"optimizer:\n", "schedule: {warmup: 100}\noptimizer:\n", {"at most 100%"}},
        {"optimizer:\n", "schedule: {warmup: 200 steps}\noptimizer:\n", {"tokens (2M tokens)"}},
        {"optimizer:\n", "checkpoint: {every: 5m}\noptimizer:\n", {"30min"}},
        {"optimizer:\n", "run_x: 1\noptimizer:\n", {"unknown key 'run_x'"}},
    });
}

TEST_CASE("impossible combinations are refused with a way out") {
    check_refusals({
        {"global_batch: 8",
         "global_batch: 7",
         {"c.yaml:9:3", "multiple of micro_batch (2), got 7", "nearest: 6 or 8"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {dp: 3}",
         {"micro_batch x dp = 2 x 3", "nearest: 6"}},
        {"micro_batch: 2",
         "micro_batch: 2\n  grad_accum: 3",
         {"unknown key 'batch.grad_accum'", "batch.global_batch"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {dp: 4, determinism: elastic 2x1}",
         {"elastic 2x1 needs a dp that divides 2, got 4"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {tp: 4, determinism: elastic 1x2}",
         {"elastic 1x2 needs a tp that divides 2, got 4"}},
        {"micro_batch: 2", "micro_batch: 2\nparallel: {zero: 4}", {"[0, 3]"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {device: gpu}",
         {"parallel.device", "cpu 4, auto, cpu, cuda, cuda shared"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {zero: 2 overlap}",
         {"parallel.zero", "2 beside, 2 blocking"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {tp: 2 sequences}",
         {"parallel.tp", "2 sequence"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {zero: 2, determinism: elastic 2x1}",
         {"zero: 2 needs one micro-batch in each of the 2 dp shards", "elastic 4x1"}},
        {"precision: {recipe: fp32}",
         "precision: {recipe: fp32, grads: bf16}\nparallel: {zero: 3, dp: 2}",
         {"zero: 3 adds up the gradients of 2 micro-batches a rank", "precision.grads=fp32"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {determinism: elastic 8x1}",
         {"micro_batch x 8 = 16 as batch.global_batch, got 8", "nearest: 16"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {determinism: elastic 1x3}",
         {"needs a multiple of 3 as model.n_heads, got 4"}},
        {"precision: {recipe: fp32}",
         "precision: {recipe: fp32, grads: bf16}\nparallel: {determinism: elastic}",
         {"elastic needs fp32 gradients", "parallel.determinism=fast"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {determinism: elastic 4}",
         {"expected DPxTP behind elastic", "got 'elastic 4'"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {determinism: elastic 0x2}",
         {"two whole numbers DPxTP"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {determinism: fast 2x2}",
         {"expected auto, elastic, elastic DPxTP or fast"}},
        {"micro_batch: 2",
         "micro_batch: 2\nparallel: {determinism: elasti}",
         {"did you mean 'elastic'?"}},
        {"d_model: 64", "head_dim: 33", {"even number, got 33"}},
        {"d_model: 64", "n_kv_heads: 3", {"divisor of n_heads (4), got 3"}},
        {"model:\n",
         "parallel: {tp: 2}\nmodel:\n  d_ff: 3\n",
         {"divisor of d_ff (3), got 2", "model.d_ff=4"}},
        {"model:\n",
         "parallel: {tp: 2}\nmodel:\n  n_kv_heads: 1\n",
         {"divisor of n_kv_heads (1), got 2"}},
        {"sums: 0.75}", "sums: 0.5}", {"c.yaml:15:5", "the shares sum to 0.75, not to 1"}},
        {"{web: 0.25, sums",
         "{wbe: 0.25, sums",
         {"c.yaml:15:11", "no source 'wbe'", "did you mean 'web'?"}},
        {"path: shards/web",
         "loss_on: all, path: shards/web",
         {"loss_on is for reasoning sources only"}},
        {", families: [chain_sum]", "", {"c.yaml:20", "needs families"}},
        {", path: shards/web", "", {"c.yaml:19", "needs path"}},
        {"optimizer:\n",
         "schedule: {warmup: 60%, decay: 50%}\noptimizer:\n",
         {"take 110% of the run"}},
        {"optimizer:\n", "schedule: {warmup: 950k tokens}\noptimizer:\n", {"take 105% of the run"}},
        {"seq_len: 64", "lr_warmup: 2M", {"at most the stage's 1000000 tokens, got 2000000"}},
        {"  tokenizer: tokenizer.json\n", "", {"data.tokenizer is missing"}},
        {"    tokens: 1M tokens\n", "", {"stages.0.tokens is missing"}},
        {"kind: shards, ", "", {"data.sources.web.kind is missing"}},
    });
    CHECK(report("data: {tokenizer: t, sources: {a: {kind: shards, path: p}}}").find("no stages") !=
          std::string::npos);
    CHECK(report(replaced("stages:\n  - name: web", "stages:\n  - 5\n  - name: web"))
              .find("stages.0: expected keys") != std::string::npos);
}

TEST_CASE("fp8 needs whole blocks of 128, and says what fits", "[unit]") {
    const std::string r30 = replaced("recipe: fp32", "recipe: r30");
    const std::string text = report(r30);
    CHECK(text.find("model.d_model: expected a multiple of 128 (fp8 blocks of") !=
          std::string::npos);
    CHECK(text.find("precision.recipe=bf16") != std::string::npos);
    CHECK(report(r30, {"model.d_model=256", "model.d_ff=384", "parallel.tp=2"})
              .find("model.d_ff: expected a multiple of 256") != std::string::npos);
    CHECK(report(r30, {"model.d_model=256", "model.n_heads=4", "model.head_dim=48"})
              .find("model.n_heads x model.head_dim: expected a multiple of 128") !=
          std::string::npos);
    CHECK(load(r30, {"model.d_model=256", "model.d_ff=512", "parallel.tp=2"}).precision.recipe ==
          Recipe::r30);
    CHECK(load(r30, {"precision.ffn=bf16", "precision.moments=bf16"}).model.d_model == 64);
}

TEST_CASE("formats that a tensor cannot have and unknown recipes are refused", "[unit]") {
    CHECK(report(kValid, {"precision.attention=fp8"}).find("use auto, fp32, bf16 or fp16") !=
          std::string::npos);
    CHECK(report(kValid, {"precision.master=bf16"}).find("use auto, fp32 or fp24") !=
          std::string::npos);
    CHECK(report(kValid, {"precision.recipe=r31"}).find("did you mean 'r30'") != std::string::npos);
    CHECK(report(kValid, {"precision.recipe=fp64", "precision.ffn=bf16"})
              .find("fp64 is fp64 throughout") != std::string::npos);
    CHECK(report(kValid, {"parallel.recompute=full 0-9"}).find("expected blocks within 0-3") !=
          std::string::npos);
    const RunConfig c = load(kValid, {"parallel.recompute=full 0-1 3"});
    CHECK(recompute_of(c, 1) == Recompute::full);
    CHECK(recompute_of(c, 2) == Recompute::none);
    CHECK(recompute_of(c, 3) == Recompute::full);
    for (const char* bad : {"full x", "none 0-1", "full 3-1", "full -1"})
        CHECK(report(kValid, {"parallel.recompute=" + std::string(bad)})
                  .find("expected ranges of blocks behind selective or full") != std::string::npos);
    CHECK(report(kValid, {"parallel.recompute=ful 1"}).find("did you mean 'full'") !=
          std::string::npos);
}
