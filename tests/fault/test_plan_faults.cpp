// `stoa plan` as a user meets it: what it lists, and what it refuses.
#include <nlohmann/json.hpp>

#include "tests/support/catch.h"
#include "tests/support/programs.h"

using namespace stoa::test;
using nlohmann::json;

namespace {

Outcome plan(const std::string& arguments) {
    return run_shell(stoa_binary() + " plan " + source_dir() +
                     "/configs/tiny.yaml model.vocab_size=512 " + arguments + " 2>&1");
}

}  // namespace

TEST_CASE("stoa plan lists every tensor of every rank, and the disk") {
    const Outcome o = plan(
        "parallel.tp=2 model.d_ff=512 model.head_dim=64 precision.recipe=r45 --ranks 4 --json");
    CAPTURE(o.output);
    REQUIRE(o.code == 0);
    const json j = json::parse(o.output);
    CHECK(j["dp"] == 2);
    CHECK(j["tp"] == 2);
    CHECK(j["recipe"] == "r45");
    CHECK(j["disk_bytes"] > j["checkpoint_bytes"]);
    REQUIRE(j["ranks"].size() == 4);
    int world_rank = 0;
    for (const json& rank : j["ranks"]) {
        CHECK(rank["dp_rank"] == world_rank / 2);
        CHECK(rank["tp_rank"] == world_rank++ % 2);
        std::int64_t end = 0, codes = 0;
        for (const json& t : rank["tensors"]) {
            end = std::max(end, t["offset"].get<std::int64_t>() + t["bytes"].get<std::int64_t>());
            codes += t["dtype"] == "e4m3";
        }
        CHECK(codes > 0);
        CHECK(end <= rank["bytes"]);
        CHECK(end + 4096 > rank["bytes"]);
        CHECK(rank["bytes"] == rank["state_bytes"].get<std::int64_t>() +
                                   rank["activation_bytes"].get<std::int64_t>());
    }
    // Masters and moments are shared out over dp, and kept whole without.
    const auto state = [](const std::string& arguments) {
        return json::parse(plan(arguments + " --json").output)["ranks"][0]["state_bytes"]
            .get<std::int64_t>();
    };
    CHECK(state("--ranks 2") < state("--ranks 2 parallel.zero=0"));
    CHECK(state("--ranks 1") == state("--ranks 1 parallel.zero=0"));
    const Outcome large = plan("--ranks 2048 batch.global_batch=8192 --json");
    REQUIRE(large.code == 0);
    CHECK(json::parse(large.output)["ranks"].size() == 2);  // the first and the last
}

TEST_CASE("stoa plan refuses what does not fit, with at most three changes that would") {
    const Outcome o = plan("precision.recipe=fp32 parallel.recompute=none --memory 0.07");
    CAPTURE(o.output);
    CHECK(o.code == 4);
    CHECK(o.output.find("fit") != std::string::npos);
    CHECK(o.output.find("precision.recipe=") != std::string::npos);
    int changes = 0;
    for (std::size_t at = 0; (at = o.output.find(" GiB with ", at)) != std::string::npos; ++at)
        ++changes;
    CHECK(changes >= 1);
    CHECK(changes <= 3);
    CHECK(plan("--memory 100").code == 0);
}

TEST_CASE("stoa plan refuses wrong numbers") {
    for (const char* memory : {"-1", "0", "nan", "inf"}) {
        const Outcome o = plan(std::string("--memory ") + memory);
        CAPTURE(memory, o.output);
        CHECK(o.code == 2);
        CHECK(o.output.find("--memory") != std::string::npos);
    }
    for (const char* bad :
         {"--ranks 0", "--ranks -4", "--ranks 3 parallel.tp=2", "--ranks many",
          "precision.recipe=r35", "model.d_ff=200 precision.recipe=r30", "--memroy 3"}) {
        const Outcome o = plan(bad);
        CAPTURE(bad, o.output);
        CHECK(o.code == 2);
        CHECK(o.output.find("error: ") != std::string::npos);
    }
}

TEST_CASE("stoa plan --gpu plans for a GPU that need not be here", "[fault]") {
    const Outcome o = plan("--gpu 'NVIDIA H200/90/141' --ranks 2 --json");
    CAPTURE(o.output);
    REQUIRE(o.code == 0);
    const json j = json::parse(o.output), &gpu = j["gpu"], &rank = j["ranks"][0];
    CHECK(gpu["name"] == "NVIDIA H200");
    CHECK(gpu["fits"] == true);
    CHECK(rank["graph_bytes"] == rank["kernel_bytes"]);
    CHECK(gpu["needed_bytes"] == rank["rank_bytes"].get<std::int64_t>() +
                                     rank["graph_bytes"].get<std::int64_t>() +
                                     gpu["estimated_bytes"]["libraries"].get<std::int64_t>());
    std::int64_t most = 0;
    for (const auto& [op, bytes] : rank["scratch"].items())
        most = std::max(most, bytes.get<std::int64_t>());
    CHECK(rank["kernel_bytes"] == most);
    CHECK(most >= 32 << 20);  // cuBLASLt's workspace
    CHECK(rank["snapshot_bytes"] > 0);
    CHECK(rank["staging_bytes"] > 0);
    const json cpu = json::parse(plan("--ranks 2 --json").output);
    CHECK_FALSE(cpu.contains("gpu"));
    CHECK(cpu["ranks"][0]["scratch"].empty());
    const Outcome text = plan("--gpu 'NVIDIA H200/90/141'");
    for (const char* part : {"GPU: NVIDIA H200, sm_90", "fits", "scratch of the largest op",
                             "attention_backward", "pinned host memory: the snapshot"})
        CHECK(text.output.find(part) != std::string::npos);
}

TEST_CASE("stoa plan --gpu refuses what does not fit with advice, and what describes no GPU",
          "[fault]") {
    const Outcome o = plan("precision.recipe=fp32 parallel.recompute=none --gpu 'small/90/0.812'");
    CAPTURE(o.output);
    CHECK(o.code == 4);
    for (const char* part : {"does not fit the GPU", "(small, 0.8 GiB)",
                             "estimated 0.50 for the context", "of scratch (matmul)", " GiB with "})
        CHECK(o.output.find(part) != std::string::npos);
    CHECK(o.output.find("blocking") == std::string::npos);  // the snapshot is not in its memory
    for (const char* bad :
         {"--gpu H200", "--gpu H200/90", "--gpu H200/9.0/141", "--gpu T4/75/16", "--gpu H200/90/0",
          "--gpu H200/90/many", "--gpu H200/90/141 parallel.device=cpu",
          "--gpu H200/90/141 --cluster nowhere.yaml"}) {
        const Outcome refused = plan(bad);
        CAPTURE(bad, refused.output);
        CHECK(refused.code == 2);
        CHECK(refused.output.find("--gpu") != std::string::npos);
    }
}

TEST_CASE("stoa plan --cluster names what is wrong with the cluster, or the number of devices",
          "[fault]") {
    const std::string config = source_dir() + "/configs/1b.yaml model.vocab_size=65536";
    const auto plan = [&](const std::string& rest) {
        return run_shell(stoa_binary() + " plan " + config + " " + rest);
    };
    const std::string h100 = " --cluster " + source_dir() + "/configs/clusters/h100.yaml";
    const Outcome missing = plan("--cluster nowhere.yaml");
    CHECK(missing.code == 2);
    CHECK(missing.output.find("cannot read the cluster file") != std::string::npos);
    CHECK(missing.output.find("nowhere.yaml") != std::string::npos);
    const Outcome odd = plan(h100 + " --ranks 7");
    CHECK(odd.code == 2);
    CHECK(odd.output.find("no mesh of this size") != std::string::npos);
    CHECK(plan(h100 + " --ranks 0").code == 2);
    const Outcome good = plan(h100 + " --ranks 64");
    CHECK(good.code == 0);
    CHECK(good.output.find("64x1") != std::string::npos);
    CHECK(good.output.find("More than ") != std::string::npos);
}
