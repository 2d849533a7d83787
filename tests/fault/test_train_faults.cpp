// What a training run does with bad input and bad luck, through the real binary on two ranks: one
// typed error, the right exit code on all ranks, no hang (CTest's time limit), no lost checkpoint.
#include <sys/mount.h>

#include <nlohmann/json.hpp>

#include "checkpoints/checkpoint.h"
#include "tests/support/catch.h"
#include "tests/support/tiny_project.h"

using namespace stoa;
using namespace stoa::test;

namespace {

constexpr std::int64_t kStageSteps = 10;

// Corpus and tokenizer are made once; every test case trains under its own run.name.
const std::string& project() {
    static const TempDir dir;
    static const bool made = [] {
        const Outcome o = make_tiny_project(dir.path, kStageSteps);
        INFO(o.output);
        REQUIRE(o.code == 0);
        return true;
    }();
    (void)made;
    return dir.path;
}

std::string run_dir(const std::string& name) { return project() + "/runs/" + name; }

Outcome train(const std::string& name, const std::string& overrides = "", int ranks = 2,
              const std::string& before = "") {
    return run_shell(before + " " +
                     train_command(project(), ranks, "run.name=" + name + " " + overrides));
}

std::map<std::string, std::string> final_weights(const std::string& name) {
    std::map<std::string, std::string> hashes;
    for (const CheckpointTensor& t :
         read_checkpoint_info(list_checkpoints(run_dir(name)).back()).tensors)
        hashes[t.name] = t.xxh3;
    return hashes;
}

int count(const std::string& text, const std::string& what) {
    int n = 0;
    for (auto at = text.find(what); at != std::string::npos; at = text.find(what, at + 1))
        ++n;
    return n;
}

void check_one_error(const Outcome& o, int code, const std::vector<std::string>& parts) {
    INFO(o.output);
    CHECK(o.code == code);
    CHECK(count(o.output, "error: ") == 1);
    for (const std::string& p : parts)
        CHECK(o.output.find(p) != std::string::npos);
    CHECK(o.output.find("terminate called") == std::string::npos);
    CHECK(o.output.find("Signal:") == std::string::npos);
}

}  // namespace

TEST_CASE("more ranks than the mesh are refused on all ranks", "[fault]") {
    check_one_error(train("mesh", "parallel.dp=1"), 2, {"parallel.dp", "2 ranks"});
}

TEST_CASE("a configuration missing on one rank only stops all", "[fault]") {
    const std::string stoa = stoa_binary() + " train " + project();
    check_one_error(
        run_shell("mpirun -q -n 1 " + stoa + "/run.yaml : -n 1 " + stoa + "/absent.yaml"), 2,
        {"absent.yaml", "rank 1"});
}

TEST_CASE("different configurations on the ranks are refused", "[fault]") {
    const std::string stoa = stoa_binary() + " train " + project() + "/run.yaml";
    check_one_error(run_shell("mpirun -q -n 1 " + stoa + " : -n 1 " + stoa + " optimizer.lr=1e-4"),
                    2, {"different configurations"});
}

TEST_CASE("data missing on one rank only stops all", "[fault]") {
    const TempDir here, there;  // the same relative path, present in one of two working directories
    fs::create_directory_symlink(project() + "/web", here / "web");
    const std::string stoa = stoa_binary() + " train " + project() +
                             "/run.yaml run.name=elsewhere data.sources.web.path=web";
    check_one_error(run_shell("mpirun -q -n 1 -wdir " + here.path + " " + stoa + " : -n 1 -wdir " +
                              there.path + " " + stoa),
                    3, {"web", "rank 1"});
}

TEST_CASE("a run directory that cannot be made is a data error", "[fault]") {
    write_text(project() + "/a-file", "not a folder");
    check_one_error(train("x", "run.dir=" + project() + "/a-file/runs"), 3, {"a-file", "run.dir"});
}

TEST_CASE("a tokenizer that is no tokenizer is a data error", "[fault]") {
    write_text(project() + "/broken.json", "{\"version\": \"1.0\"");
    check_one_error(train("tok", "data.tokenizer=" + project() + "/broken.json"), 3,
                    {"broken.json"});
}

TEST_CASE("a damaged shard is refused by name", "[fault]") {
    fs::copy(project() + "/web", project() + "/damaged", fs::copy_options::recursive);
    std::string shard = read_text(project() + "/damaged/train-00000.h5");
    shard[shard.size() / 2] = static_cast<char>(shard[shard.size() / 2] ^ 1);
    write_text(project() + "/damaged/train-00000.h5", shard);
    check_one_error(train("shard", "data.sources.web.path=" + project() + "/damaged"), 3,
                    {"train-00000.h5"});
}

TEST_CASE("SIGTERM saves, leaves with 75, and the resumed run ends with the same bits", "[fault]") {
    REQUIRE(train("whole").code == 0);
    // every step waits for the checkpoint interval of none: the signal decides where it stops
    const std::string launch = stoa_binary() + " launch --ranks 2 " + project() +
                               "/run.yaml run.name=stopped 'checkpoint.every=1000 steps'";
    const Outcome stopped =
        run_shell(launch + " & pid=$!; for i in $(seq 600); do [ $(cat " + run_dir("stopped") +
                  "/metrics.jsonl 2>/dev/null | wc -l) -ge 3 ] && break; sleep 0.02; done; "
                  "kill -TERM $pid; wait $pid");
    INFO(stopped.output);
    REQUIRE((stopped.code == 75 || stopped.code == 0));  // 0: it was faster than the signal
    if (stopped.code == 75) {
        CHECK(stopped.output.find("Resume with") != std::string::npos);
        CHECK(list_checkpoints(run_dir("stopped")).size() == 1);
    }
    REQUIRE(train("stopped", "'checkpoint.every=1000 steps'").code == 0);
    CHECK(final_weights("stopped") == final_weights("whole"));
    // the resumed run's records have every step once
    CHECK(count(read_text(run_dir("stopped") + "/metrics.jsonl"), "\"step\":") == 2 * kStageSteps);
}

TEST_CASE("Ctrl-C to the launcher saves and leaves with 130", "[fault]") {
    // set -m: without job control a shell's background job would ignore SIGINT
    const Outcome o =
        run_shell("bash -c 'set -m; " + stoa_binary() + " launch --ranks 2 " + project() +
                  "/run.yaml run.name=ctrl-c \"stages.0.tokens=2M tokens\" checkpoint.every=1000 & "
                  "pid=$!; for i in $(seq 600); do "
                  "[ $(cat " +
                  run_dir("ctrl-c") +
                  "/metrics.jsonl 2>/dev/null | wc -l) -ge 3 ] && break; sleep 0.02; done; "
                  "kill -INT $pid; wait $pid'");
    INFO(o.output);
    CHECK(o.code == 130);
    CHECK(list_checkpoints(run_dir("ctrl-c")).size() == 1);
}

TEST_CASE("a damaged newest checkpoint is skipped, an older one used, the end is the same",
          "[fault]") {
    REQUIRE(train("undamaged").code == 0);
    REQUIRE(train("damaged", "", 2, "STOA_FAULT=kill@13:1").code == 137);
    const auto all = list_checkpoints(run_dir("damaged"));
    REQUIRE(all.size() == 2);  // steps 5 and 10
    std::string file = read_text(all.back() + "/rank-0000.h5");
    file[file.size() / 3] = static_cast<char>(file[file.size() / 3] ^ 4);
    write_text(all.back() + "/rank-0000.h5", file);
    const Outcome o = train("damaged");
    INFO(o.output);
    CHECK(o.code == 0);
    CHECK(o.output.find("rank-0000.h5") != std::string::npos);  // the warning names it
    CHECK(o.output.find("at step 5") != std::string::npos);
    CHECK(final_weights("damaged") == final_weights("undamaged"));
}

TEST_CASE("no checkpoint that verifies is an error, not a silent fresh start", "[fault]") {
    REQUIRE(train("ruined", "", 2, "STOA_FAULT=kill@7:0").code == 137);
    for (const std::string& dir : list_checkpoints(run_dir("ruined")))
        fs::resize_file(dir + "/rank-0000.h5", 100);
    check_one_error(train("ruined"), 6, {"rank-0000.h5"});
}

TEST_CASE("a configuration that does not continue the run is refused by its key", "[fault]") {
    REQUIRE(train("other", "", 1, "STOA_FAULT=kill@6:0").code == 137);
    check_one_error(train("other", "model.d_ff=128", 1), 2,
                    {"model.d_ff", "expected 64", "got 128"});
    check_one_error(train("other", "--fresh", 1), 2, {"--fresh"});
}

TEST_CASE("a loss that keeps spiking returns to the checkpoint, three times, then ends the run",
          "[fault]") {
    // So low a limit calls most steps spikes, once there is a history to judge by.
    const Outcome o = train("spikes",
                            "optimizer.spike_z=0.01 stages.0.tokens=100000 "
                            "'checkpoint.every=34 steps'");
    INFO(o.output);
    check_one_error(o, 7, {"keeps spiking", "optimizer.spike_z"});
    const std::string events = read_text(run_dir("spikes") + "/events.jsonl");
    CHECK(count(events, "\"event\":\"rewind\"") == 3);
    CHECK(count(events, "\"weights_of_step\":\"34\"") == 3);
    CHECK(count(events, "standard deviations above the recent ones") >= 9 - 2);
}

TEST_CASE("a full disk stops all ranks with the last good checkpoint intact", "[fault]") {
    const TempDir mount_point;
    if (::mount("tmpfs", mount_point.path.c_str(), "tmpfs", 0, "size=3m") != 0) {
        WARN("skipped: mounting a tmpfs is not permitted here");
        return;
    }
    const Outcome o = train(
        "full", "run.dir=" + mount_point.path + " checkpoint.keep=50 'checkpoint.every=1 steps'");
    INFO(o.output);
    CHECK(o.code == 6);
    CHECK(count(o.output, "error: ") == 1);
    const auto all = list_checkpoints(mount_point.path + "/full");
    CHECK_FALSE(all.empty());
    if (!all.empty()) CHECK_NOTHROW(verify_checkpoint(all.back()));
    ::umount(mount_point.path.c_str());
}

TEST_CASE("a disk that is full for a while costs a checkpoint, not the run", "[fault]") {
    const std::string ckpt = run_dir("tight") + "/ckpt";
    fs::create_directories(ckpt);
    if (::mount("tmpfs", ckpt.c_str(), "tmpfs", 0, "size=2m") != 0) {
        WARN("skipped: mounting a tmpfs is not permitted here");
        return;
    }
    write_text(ckpt + "/eaten", std::string(1900000, 'x'));
    const Outcome o = run_shell(
        "(for i in $(seq 1500); do grep -q checkpoint_failed " + run_dir("tight") +
        "/events.jsonl 2>/dev/null && break; sleep 0.02; done; rm -f " + ckpt + "/eaten) & " +
        train_command(project(), 2,
                      "run.name=tight stages.0.tokens=400000 'checkpoint.every=100 steps' "
                      "checkpoint.keep=1"));
    INFO(o.output);
    CHECK(o.code == 0);
    const std::string events = read_text(run_dir("tight") + "/events.jsonl");
    CHECK(count(events, "\"event\":\"checkpoint_failed\"") >= 1);
    CHECK(count(events, "free space") >= 1);
    CHECK(count(events, "\"event\":\"checkpoint\"") >= 1);
    CHECK(count(o.output, "training goes on") >= 1);
    for (const auto& entry : fs::directory_iterator(ckpt))
        CHECK(entry.path().filename().string().starts_with("step-"));
    ::umount(ckpt.c_str());
}

TEST_CASE("checkpoints of another run and damaged ones step aside, with an event", "[fault]") {
    REQUIRE(train("others", "run.seed=6").code == 0);
    REQUIRE(train("own", "", 2, "STOA_FAULT=kill@13:1").code == 137);
    const std::string ckpt = run_dir("own") + "/ckpt/";
    fs::copy(list_checkpoints(run_dir("others")).back(), ckpt + "step-000000020",
             fs::copy_options::recursive);
    write_text(ckpt + "step-000000010/state.h5", "not HDF5");
    const Outcome o = train("own");
    INFO(o.output);
    CHECK(o.code == 0);
    CHECK(o.output.find("at step 5") != std::string::npos);
    CHECK(fs::exists(ckpt + "step-000000020.foreign/manifest.json"));
    CHECK(fs::exists(ckpt + "step-000000010.bad/manifest.json"));
    const std::string events = read_text(run_dir("own") + "/events.jsonl");
    CHECK(count(events, "\"event\":\"checkpoint_refused\"") == 2);
    CHECK(count(events, "another run") == 1);
    REQUIRE(train("own-whole").code == 0);
    CHECK(final_weights("own") == final_weights("own-whole"));
}

TEST_CASE("an older generation of a run leaves with 82", "[fault]") {
    REQUIRE(train("fenced", "", 2, "STOA_GENERATION=4 STOA_FAULT=kill@7:0*").code == 137);
    write_text(run_dir("fenced") + "/generation", "5\n");
    check_one_error(train("fenced", "", 2, "STOA_GENERATION=4"), 82,
                    {"another generation", "fenced/generation"});
    CHECK(train("fenced", "", 2, "STOA_GENERATION=5").code == 0);
}
