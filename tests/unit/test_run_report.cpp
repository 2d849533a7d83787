#include <fmt/format.h>
#include <unistd.h>

#include "kernels/core/error.h"
#include "launcher/run_report.h"
#include "parallel/mpi_session.h"
#include "tests/support/catch.h"
#include "tests/support/programs.h"

using namespace stoa;
using namespace stoa::test;

namespace {

constexpr double kNow = 1767323045.0;  // 2026-01-02T03:04:05Z

std::string step_line(int step, const std::string& time) {
    return fmt::format(
        "{{\"step\":{0},\"tokens\":{1},\"stage\":\"web\",\"loss\":4.5,\"tok_s\":{2},\"step_ms\":{3}"
        ","
        "\"time\":\"{4}\"}}\n",
        step, step * 1000, 1000 + step, 100 + step, time);
}

/// 30 steps, the last one two seconds ago.
std::string thirty_steps() {
    std::string text;
    for (int s = 1; s <= 30; ++s)
        text += step_line(s, s == 30 ? "2026-01-02T03:04:03Z" : "2026-01-02T03:03:00Z");
    return text;
}

const std::string kStart =
    "{\"event\":\"start\",\"step\":0,\"ranks\":\"4\",\"time\":\"2026-01-02T03:00:00Z\"}\n";

}  // namespace

TEST_CASE("a folder is a run's by what is in it") {
    const TempDir dir;
    CHECK_FALSE(is_run_dir(dir.path));
    CHECK_FALSE(is_run_dir(dir / "absent"));
    write_text(dir / "metrics.jsonl", "");
    CHECK(is_run_dir(dir.path));
    CHECK_THROWS_AS(read_run_report(dir / "absent", kNow), DataError);
}

TEST_CASE("a run without a supervisor is judged by its records") {
    const TempDir dir;
    write_text(dir / "events.jsonl", kStart);
    CHECK(read_run_report(dir.path, kNow).state == "silent");                  // begun, no step
    write_text(dir / "metrics.jsonl", thirty_steps() + "{\"step\":31,\"tok");  // a torn line
    RunReport r = read_run_report(dir.path, kNow);
    CHECK(r.state == "running");
    CHECK(r.step == 30);
    CHECK(r.tokens == 30000);
    CHECK(r.stage == "web");
    CHECK(r.ranks == 4);
    CHECK(r.last_step_age_s == 2.0);
    CHECK(r.tokens_per_s == 1021.0);  // median of steps 11 to 30
    CHECK(r.step_ms == 121.0);
    CHECK(r.checkpoint_step == -1);

    CHECK(read_run_report(dir.path, kNow + 3600).state == "silent");
    write_text(dir / "events.jsonl",
               kStart + "{\"event\":\"stop\",\"step\":30,\"reason\":\"preempted\"}\n");
    CHECK(read_run_report(dir.path, kNow).state == "preempted");
    write_text(dir / "events.jsonl",
               kStart + "{\"event\":\"stop\",\"step\":30,\"reason\":\"preempted\"}\n" +
                   "{\"event\":\"resume\",\"step\":30,\"ranks\":\"2\"}\n");
    r = read_run_report(dir.path, kNow);
    CHECK(r.state == "running");
    CHECK(r.restarts == 1);
    CHECK(r.ranks == 2);
}

TEST_CASE("the supervisor's word counts, while it lives") {
    const TempDir dir;
    write_text(dir / "metrics.jsonl", thirty_steps());
    const auto state = [&](const std::string& name, int code, long pid) {
        write_text(
            dir / "state.json",
            fmt::format("{{\"state\":\"{}\",\"generation\":2,\"ranks\":4,\"restarts\":1,"
                        "\"exit_code\":{},\"hosts\":[{{\"name\":\"a\",\"ranks\":2}},{{\"name\":"
                        "\"b\",\"ranks\":2}}],\"supervisor\":{{\"host\":\"{}\",\"pid\":{}}}}}",
                        name, code < 0 ? "null" : std::to_string(code), host_name(), pid));
        return read_run_report(dir.path, kNow);
    };
    const RunReport running = state("RUN", -1, getpid());
    CHECK(running.state == "running");
    CHECK(running.generation == 2);
    CHECK(running.restarts == 1);
    CHECK(running.hosts == std::vector<std::string>{"a", "b"});
    CHECK(state("RUN", -1, 4'000'000).state == "dead");  // no such process
    CHECK(state("WAIT_HOSTS", -1, getpid()).state == "waiting for hosts");
    CHECK(state("DONE", 0, 4'000'000).state == "finished");
    CHECK(state("PREEMPTED", 75, 4'000'000).state == "preempted");
    CHECK(state("PREEMPTED", 130, 4'000'000).state == "interrupted");
    const RunReport gave_up = state("GAVE_UP", 69, 4'000'000);
    CHECK(gave_up.state == "gave up");
    CHECK(gave_up.why == "exit code 69");
    CHECK(state("FAILED", 3, 4'000'000).state == "failed");
    write_text(dir / "state.json", "{\"state\":");  // torn: as if it were not there
    CHECK(read_run_report(dir.path, kNow).generation == -1);
}

TEST_CASE("the last fault and the job come from the events") {
    const TempDir dir;
    write_text(dir / "events.jsonl",
               kStart +
                   "{\"event\":\"slurm_job\",\"job\":\"41\",\"restart\":0,\"nodes\":\"n[0-1]\"}\n"
                   "{\"event\":\"fault\",\"step\":7,\"cause\":\"crash\",\"text\":\"rank 1 "
                   "ended\",\"time\":\"t\"}\n"
                   "{\"event\":\"slurm_job\",\"job\":\"41\",\"restart\":1,\"nodes\":\"n[1-2]\"}\n");
    const RunReport r = read_run_report(dir.path, kNow);
    CHECK(r.fault == "rank 1 ended");
    CHECK(r.fault_cause == "crash");
    CHECK(r.fault_step == 7);
    CHECK(r.job == "41");
    CHECK(r.requeues == 1);
    CHECK(r.job_nodes == "n[1-2]");
}
