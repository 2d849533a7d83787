// `stoa slurm`, `stoa status` and `stoa launch` in a job, with stand-ins for SLURM's programs on
// the PATH: wrong input, a SLURM that refuses, that is not there, that does not answer.
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "launcher/slurm_requeue.h"
#include "tests/support/catch.h"
#include "tests/support/tiny_project.h"

using namespace stoa;
using namespace stoa::test;

namespace {

const std::string& project() {
    static const TempDir dir;
    static const bool made = [] {
        const Outcome o = make_tiny_project(dir.path, 30);
        INFO(o.output);
        REQUIRE(o.code == 0);
        return true;
    }();
    (void)made;
    return dir.path;
}

/// A folder of stand-ins: programs that print and leave as told, and note how they were called.
struct StandIns {
    TempDir dir;
    void add(const std::string& name, const std::string& script) const {
        write_text(dir / name, "#!/bin/bash\necho \"" + name + " $*\" >>" + (dir / "calls") + "\n" +
                                   script + "\n");
        fs::permissions(dir / name, fs::perms::owner_all);
    }
    std::string calls() const { return read_text(dir / "calls"); }
    std::string path() const { return "export PATH=" + dir.path + ":$PATH; "; }
};

Outcome slurm(const std::string& options, const std::string& before = "") {
    return run_shell(before + "cd " + project() + " && " + stoa_binary() + " slurm run.yaml " +
                     options);
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
}

const std::string kJob =
    "export SLURM_JOB_ID=41 SLURM_JOB_NODELIST=$(hostname) SLURM_TASKS_PER_NODE=2; ";

}  // namespace

TEST_CASE("stoa slurm refuses what cannot run, before anything is written", "[fault]") {
    const std::string two = "--nodes 2 --ranks-per-node 2 ";
    check_one_error(slurm("--nodes 0 --ranks-per-node 2"), 2, {"--nodes", "at least 1"});
    check_one_error(slurm("--nodes 2"), 2, {"--ranks-per-node R or --gpus-per-node G"});
    check_one_error(slurm("--ranks-per-node 2"), 2, {"--nodes"});
    check_one_error(slurm(two + "--time 24h"), 2, {"--time", "24h", "24:00:00"});
    check_one_error(slurm(two + "--time 2 --signal-seconds 180"), 2, {"--signal-seconds", "save"});
    check_one_error(slurm(two + "--array-seeds 3-1"), 2, {"--array-seeds", "3-1"});
    check_one_error(slurm(two + "--array-seeds 0-3%"), 2, {"--array-seeds"});
    check_one_error(slurm(two + "--array-seeds 0-3 --singleton"), 2, {"--singleton"});
    check_one_error(slurm(two + "--requeue --no-requeue"), 2, {"--no-requeue"});
    check_one_error(slurm(two + "--partition 'a b'"), 2, {"--partition", "a b"});
    check_one_error(slurm(two + "--partitoin gpu"), 2, {"did you mean --partition?"});
    check_one_error(slurm(two + "optimizer.lrr=1"), 2, {"optimizer.lr"});
    check_one_error(slurm("--nodes 3 --ranks-per-node 1"), 2, {"batch.global_batch"});
    check_one_error(slurm("--nodes 2 --ranks-per-node 1 parallel.tp=2"), 2,
                    {"parallel.tp", "two nodes", "--ranks-per-node 2"});
    check_one_error(slurm(two + "data.tokenizer=absent.json"), 2,
                    {"data.tokenizer", "absent.json"});
    check_one_error(slurm(two + "--out /nowhere/x.sbatch"), 2, {"/nowhere/x.sbatch", "--out"});
    CHECK_FALSE(fs::exists(project() + "/tiny.sbatch"));
}

TEST_CASE("stoa slurm overwrites its own scripts and nobody else's", "[fault]") {
    const std::string two = "--nodes 2 --ranks-per-node 2 --out ours.sbatch ";
    CHECK(slurm(two).code == 0);
    CHECK(slurm(two + "--time 90").code == 0);
    CHECK(read_text(project() + "/ours.sbatch").find("--time=90") != std::string::npos);
    write_text(project() + "/mine.sbatch", "#!/bin/bash\n");
    check_one_error(slurm("--nodes 2 --ranks-per-node 2 --out mine.sbatch"), 2,
                    {"mine.sbatch", "--out"});
    CHECK(read_text(project() + "/mine.sbatch") == "#!/bin/bash\n");
    CHECK(run_shell("bash -n " + project() + "/ours.sbatch").code == 0);
}

TEST_CASE("--submit hands the script to sbatch and says how to watch the job", "[fault]") {
    const StandIns tools;
    tools.add("sbatch", "echo 4711");
    tools.add("squeue", "echo 'PENDING PartitionNodeLimit'");
    const Outcome o = slurm("--nodes 2 --ranks-per-node 2 --submit --out s.sbatch", tools.path());
    INFO(o.output);
    CHECK(o.code == 0);
    for (const char* part : {"submitted job 4711", "squeue -j 4711", "stoa status",
                             "tail -F tiny-4711.out", "holds job 4711 back: PartitionNodeLimit"})
        CHECK(o.output.find(part) != std::string::npos);
    CHECK(tools.calls().find("sbatch --parsable s.sbatch") != std::string::npos);
}

TEST_CASE("a dry run writes and submits nothing", "[fault]") {
    const StandIns tools;
    tools.add("sbatch", "exit 0");
    const Outcome o =
        slurm("--nodes 2 --ranks-per-node 2 --dry-run --out dry.sbatch", tools.path());
    CHECK(o.code == 0);
    CHECK(o.output.find("#SBATCH --nodes=2") != std::string::npos);
    CHECK(tools.calls().empty());
    CHECK_FALSE(fs::exists(project() + "/dry.sbatch"));
    CHECK(slurm("--nodes 2 --ranks-per-node 2 --dry-run --submit", tools.path()).code == 0);
    CHECK(tools.calls().find("sbatch --test-only ") != std::string::npos);
    CHECK(tools.calls().find("--parsable") == std::string::npos);
}

TEST_CASE("what sbatch says reaches the user, with what to do", "[fault]") {
    const StandIns tools;
    const std::string two = "--nodes 2 --ranks-per-node 2 --submit --out s.sbatch ";
    tools.add("sinfo", "printf 'short\\nlong\\n'");
    tools.add("sbatch",
              "echo 'sbatch: error: invalid partition specified: gpu' >&2; echo 'sbatch: error: "
              "Batch job "
              "submission failed: Invalid partition name specified' >&2; exit 1");
    check_one_error(slurm(two + "--partition gpu", tools.path()), 2,
                    {"invalid partition specified: gpu", "short, long", "--partition"});
    tools.add("sbatch",
              "echo 'sbatch: error: Batch job submission failed: Invalid qos specification' >&2; "
              "exit 1");
    check_one_error(slurm(two, tools.path()), 2, {"Invalid qos specification", "--qos"});
    tools.add(
        "sbatch",
        "echo 'sbatch: error: Batch job submission failed: Unable to contact slurm controller "
        "(connect failure)' >&2; exit 1");
    check_one_error(slurm(two, tools.path()), 5, {"Unable to contact", "scontrol ping"});
    const TempDir empty;
    const Outcome o = run_shell("cd " + project() + " && PATH=" + empty.path + " " + stoa_binary() +
                                " slurm run.yaml " + two);
    check_one_error(o, 5, {"there is no sbatch here", "sbatch s.sbatch"});
}

TEST_CASE("stoa status names what is wrong with a directory, and the runs nearby", "[fault]") {
    check_one_error(run_shell("cd " + project() + " && " + stoa_binary() + " status absent"), 2,
                    {"there is no such run", "absent"});
    fs::create_directories(project() + "/runs/other/ckpt");
    check_one_error(run_shell("cd " + project() + " && " + stoa_binary() + " status runs"), 2,
                    {"not a run directory", "runs/other"});
}

TEST_CASE("a stop in a job puts it into the queue again, exactly once", "[fault]") {
    const StandIns tools;
    tools.add("squeue", "case \"$*\" in *%L*) echo 0:05 ;; *) echo RUNNING ;; esac");
    tools.add("scontrol", "exit 0");
    // squeue says that the job ends in 5 s: saved without any signal.
    const std::string launch = "cd " + project() + " && " + stoa_binary() +
                               " launch --ranks 2 run.yaml 'checkpoint.every=1000 steps' "
                               "stages.0.tokens=10M --requeue --stop-before 60 run.name=";
    const Outcome o = run_shell(tools.path() + kJob + launch + "deadline");
    INFO(o.output);
    CHECK(o.code == 75);
    CHECK(count(tools.calls(), "scontrol requeue 41") == 1);
    const std::string events = read_text(project() + "/runs/deadline/events.jsonl");
    CHECK(count(events, "\"event\":\"slurm_job\"") == 1);
    CHECK(count(events, "\"event\":\"requeue\"") == 1);

    // A job that SLURM is ending by itself (scancel, scontrol requeue) is left alone.
    tools.add("squeue", "case \"$*\" in *%L*) echo 0:05 ;; *) echo COMPLETING ;; esac");
    const Outcome cancelled = run_shell(tools.path() + kJob + launch + "cancelled");
    INFO(cancelled.output);
    CHECK(cancelled.code == 75);
    CHECK(count(tools.calls(), "scontrol requeue 41") == 1);
    CHECK(cancelled.output.find("left to SLURM") != std::string::npos);
}

TEST_CASE("a requeue that fails says why and what to do", "[fault]") {
    const StandIns tools;
    tools.add("squeue", "echo RUNNING");
    tools.add("scontrol", "echo 'Access/permission denied for job 41' >&2; exit 1");
    const std::string old = std::getenv("PATH");
    setenv("PATH", (tools.dir.path + ":" + old).c_str(), 1);
    const RequeueResult r = requeue_slurm_job({.id = "41"});
    CHECK_FALSE(r.requeued);
    CHECK(r.text.find("Access/permission denied") != std::string::npos);
    CHECK(r.text.find("submit its script again") != std::string::npos);
    CHECK(count(tools.calls(), "scontrol requeue 41") == 3);
    setenv("PATH", old.c_str(), 1);
}

TEST_CASE("SlurmDeadline believes squeue, then the environment, and else never ends", "[fault]") {
    const StandIns tools;
    const std::string old = std::getenv("PATH");
    setenv("PATH", (tools.dir.path + ":" + old).c_str(), 1);
    const auto reached_within = [](SlurmDeadline& d, int tenths) {
        for (int i = 0; i < tenths; ++i) {
            if (d.reached()) return true;
            std::this_thread::sleep_for(std::chrono::milliseconds(100));
        }
        return false;
    };
    unsetenv("SLURM_JOB_END_TIME");
    tools.add("squeue", "echo 0:40");
    SlurmDeadline near({.id = "41"}, 60.0), far({.id = "41"}, 20.0), none({.id = "41"}, 0.0);
    CHECK(reached_within(near, 100));
    CHECK(near.seconds_left() < 60.0);
    CHECK_FALSE(reached_within(far, 10));
    CHECK_FALSE(reached_within(none, 3));
    tools.add("squeue", "echo UNLIMITED");
    SlurmDeadline unlimited({.id = "41"}, 60.0);
    CHECK_FALSE(reached_within(unlimited, 10));

    // The limit has been raised since the job began: squeue knows better.
    setenv("SLURM_JOB_END_TIME", std::to_string(std::time(nullptr) + 30).c_str(), 1);
    tools.add("squeue", "echo 1-00:00:00");
    SlurmDeadline raised({.id = "41"}, 60.0);
    CHECK_FALSE(reached_within(raised, 10));
    tools.add("squeue", "echo 'slurm_load_jobs error' >&2; exit 1");
    SlurmDeadline mute({.id = "41"}, 60.0);
    CHECK(reached_within(mute, 100));
    unsetenv("SLURM_JOB_END_TIME");
    SlurmDeadline unknown({.id = "41"}, 60.0);
    CHECK_FALSE(reached_within(unknown, 10));
    setenv("PATH", old.c_str(), 1);
}
