// The supervisor's decisions: what an end means, and what follows from it.
#include <csignal>
#include <cstdlib>

#include "launcher/fault_policy.h"
#include "launcher/process.h"
#include "launcher/run_journal.h"
#include "launcher/run_lock.h"
#include "tests/support/catch.h"
#include "tests/support/programs.h"

using namespace stoa;
using namespace stoa::test;

namespace {

GenerationEnd ended(int code) { return {.exit_code = code, .ranks_came = true}; }

Fault fault_at(std::int64_t step, const std::string& kind = "SIGSEGV", int rank = 1) {
    return {.kind = kind, .code = 139, .rank = rank, .phase = "step", .step = step};
}

using Action = RestartDecision::Action;

}  // namespace

TEST_CASE("an end that was asked for, or is the end, is no fault") {
    CHECK_FALSE(classify(ended(0)));
    CHECK_FALSE(classify(ended(75)));
    CHECK_FALSE(classify(ended(130)));
}

TEST_CASE("each end is classed by its first cause") {
    SECTION("a signal, and whom it hit") {
        GenerationEnd end = ended(137);
        end.first_dead = DeadRank{.rank = 3, .pid = 77, .host = "h1", .phase = "step", .step = 12};
        const Fault f = classify(end).value();
        CHECK(f.cause == Cause::crash);
        CHECK(f.kind == "SIGKILL");
        CHECK(f.rank == 3);
        CHECK(f.step == 12);
        CHECK(f.text == "rank 3 on h1 (pid 77) was ended by SIGKILL in step 12");
        end.oom_kills = 1;
        CHECK(classify(end)->cause == Cause::memory);
        CHECK(classify(ended(139))->kind == "SIGSEGV");
        CHECK(classify(ended(134))->kind == "SIGABRT");
    }
    SECTION("exit(0) without closing MPI, which mpirun calls 1") {
        GenerationEnd end = ended(1);
        end.first_dead = DeadRank{.rank = 2, .phase = "step", .step = 4};
        CHECK(classify(end)->kind == "exit without closing MPI");
        CHECK(classify(end)->cause == Cause::crash);
    }
    SECTION("the first record that is no consequence") {
        GenerationEnd end = ended(80);
        end.records = {{.time = 1.0, .rank = 0, .code = 80, .kind = "peer_lost"},
                       {.time = 2.0,
                        .rank = 1,
                        .code = 4,
                        .kind = "bad_alloc",
                        .what = "out of memory",
                        .phase = "step",
                        .step = 9},
                       {.time = 3.0, .rank = 2, .code = 5, .kind = "error"}};
        const Fault f = classify(end).value();
        CHECK(f.cause == Cause::memory);
        CHECK(f.rank == 1);
        CHECK(f.step == 9);
    }
    SECTION("a rank that died before another one complained") {
        GenerationEnd end = ended(139);
        end.first_dead = DeadRank{.rank = 3, .time = 1.0};
        end.records = {{.time = 2.0, .rank = 0, .code = 5, .kind = "error", .what = "lost peer"}};
        CHECK(classify(end)->rank == 3);
        end.first_dead->time = 3.0;
        CHECK(classify(end)->rank == 0);
        CHECK(classify(end)->cause == Cause::communication);
    }
    SECTION("a verdict, whatever came of it") {
        GenerationEnd end = ended(137);
        end.verdict = Verdict{.kind = Verdict::Kind::lost_host, .rank = -1, .host = "h1"};
        CHECK(classify(end)->cause == Cause::lost_host);
        end.verdict->kind = Verdict::Kind::hang;
        CHECK(classify(end)->cause == Cause::hang);
        end.verdict->kind = Verdict::Kind::mismatched_collective;
        CHECK(classify(end)->cause == Cause::hang);
        end.verdict->kind = Verdict::Kind::communication;
        CHECK(classify(end)->cause == Cause::communication);
    }
    SECTION("a host that mpirun gave up before the monitor did") {
        GenerationEnd end = ended(205);
        end.first_dead = DeadRank{.rank = 0, .host = "h0", .time = 1.0};
        end.records = {{.time = 2.0, .rank = 1, .code = 5, .kind = "error"}};
        end.silent_host = "h1";
        CHECK(classify(end)->cause == Cause::lost_host);
        CHECK(classify(end)->host == "h1");
        end.runner_killed = true;  // has another reason
        CHECK(classify(end)->cause != Cause::lost_host);
    }
    SECTION("codes") {
        const std::pair<int, Cause> codes[] = {{2, Cause::config},     {3, Cause::data},
                                               {4, Cause::memory},     {5, Cause::communication},
                                               {6, Cause::checkpoint}, {7, Cause::diverged},
                                               {70, Cause::crash},     {205, Cause::lost_host}};
        for (const auto& [code, cause] : codes) {
            CAPTURE(code);
            CHECK(classify(ended(code))->cause == cause);
        }
    }
    SECTION("mpirun itself, and a start that failed") {
        GenerationEnd end = ended(137);
        end.runner_killed = true;
        CHECK(classify(end)->text.find("mpirun was ended by SIGKILL") == 0);
        CHECK(classify(GenerationEnd{.exit_code = 1})->kind == "start");
    }
}

TEST_CASE("back-off is 0, 1, 2, 4 .. 60 seconds") {
    const double expected[] = {0, 1, 2, 4, 8, 16, 32, 60, 60, 60};
    for (int n = 0; n < 10; ++n)
        CHECK(backoff_seconds(n) == expected[n]);
    CHECK(backoff_seconds(2000) == 60);
}

TEST_CASE("what comes again by itself is not restarted") {
    const auto fault = [](Cause cause, const char* phase, const char* kind = "error") {
        return Fault{.cause = cause, .kind = kind, .phase = phase};
    };
    for (const Cause c : {Cause::config, Cause::data, Cause::diverged})
        CHECK_FALSE(worth_restarting(fault(c, "step")));
    CHECK_FALSE(worth_restarting(fault(Cause::memory, "start")));
    CHECK(worth_restarting(fault(Cause::memory, "start", "bad_alloc")));
    CHECK(worth_restarting(fault(Cause::memory, "step", "bad_alloc")));
    CHECK_FALSE(worth_restarting(fault(Cause::checkpoint, "restore")));
    CHECK(worth_restarting(fault(Cause::checkpoint, "save")));
    for (const Cause c : {Cause::crash, Cause::hang, Cause::lost_host, Cause::communication})
        CHECK(worth_restarting(fault(c, "start")));
    RestartHistory h;
    const auto d = decide_restart(h, {.cause = Cause::data, .code = 3}, {}, {});
    CHECK(d.action == Action::stop);
    CHECK(d.exit_code == 3);
}

TEST_CASE("restarts without progress are counted, and a newer checkpoint clears the count") {
    RestartHistory h;
    const RestartPolicy policy{.max_restarts = 3};
    const Fault at_start{.kind = "SIGSEGV", .code = 139, .phase = "start"};
    for (const double delay : {0.0, 1.0, 2.0}) {
        const auto d = decide_restart(h, at_start, {10}, policy);
        CHECK(d.action == Action::restart);
        CHECK(d.delay_s == delay);
        CHECK_FALSE(d.resume_at_most);
    }
    SECTION("used up") {
        const auto d = decide_restart(h, at_start, {10}, policy);
        CHECK(d.action == Action::give_up);
        CHECK(d.exit_code == 69);
        CHECK(d.why.find("3 restarts") != std::string::npos);
    }
    SECTION("a newer checkpoint") {
        const auto d = decide_restart(h, at_start, {10, 20}, policy);
        CHECK(d.action == Action::restart);
        CHECK(d.delay_s == 0.0);
    }
    SECTION("an older one, after a damaged newest, is none") {
        CHECK(decide_restart(h, at_start, {5}, policy).action == Action::give_up);
    }
}

TEST_CASE("the same fault at the same step: an older checkpoint, then the end") {
    RestartHistory h;
    const RestartPolicy policy;
    CHECK_FALSE(decide_restart(h, fault_at(13), {5, 10}, policy).resume_at_most);
    SECTION("again and again") {
        const auto second = decide_restart(h, fault_at(13), {5, 10}, policy);
        CHECK(second.action == Action::restart);
        CHECK(second.resume_at_most == 9);
        CHECK(second.why.find("step 13 twice") != std::string::npos);
        const auto third = decide_restart(h, fault_at(13), {5, 10}, policy);
        CHECK(third.action == Action::give_up);
        CHECK(third.exit_code == 69);
    }
    SECTION("another step, kind or rank is another fault") {
        CHECK_FALSE(decide_restart(h, fault_at(14), {5, 10}, policy).resume_at_most);
        CHECK_FALSE(decide_restart(h, fault_at(14, "SIGABRT"), {5, 10}, policy).resume_at_most);
        CHECK_FALSE(decide_restart(h, fault_at(14, "SIGABRT", 0), {5, 10}, policy).resume_at_most);
    }
    SECTION("no checkpoint at all") {
        RestartHistory fresh;
        decide_restart(fresh, fault_at(2), {}, policy);
        CHECK(decide_restart(fresh, fault_at(2), {}, policy).resume_at_most == 0);
    }
}

TEST_CASE("--max-restarts 0 keeps the code of the fault") {
    RestartHistory h;
    const auto d = decide_restart(h, fault_at(1), {}, {.max_restarts = 0});
    CHECK(d.action == Action::stop);
    CHECK(d.exit_code == 139);
}

TEST_CASE("a run directory has one owner") {
    const TempDir dir;
    {
        const RunLock mine(dir.path, "stoa launch");
        CHECK(mine.stale().empty());
        try {
            const RunLock second(dir.path, "stoa launch");
            FAIL("taken twice");
        } catch (const ConfigError& e) {
            const std::string text = e.what();
            CHECK(text.find("in use") != std::string::npos);
            CHECK(text.find("pid " + std::to_string(getpid())) != std::string::npos);
        }
    }
    const RunLock again(dir.path, "stoa launch");  // given back
    CHECK(again.stale().empty());
}

TEST_CASE("what a dead owner left is taken over, a live one on another host is not") {
    const TempDir dir;
    write_text(dir / "run.lock",
               R"({"host":")" + std::string([] {
                   char name[256] = {};
                   gethostname(name, 255);
                   return std::string(name);
               }()) +
                   R"(","pid":999999999,"start_time":1,"what":"stoa launch","since":"then"})");
    {
        const RunLock lock(dir.path, "stoa launch");
        CHECK(lock.stale().find("pid 999999999") != std::string::npos);
    }
    const std::string elsewhere =
        R"({"host":"far-away","pid":1,"start_time":1,"what":"stoa launch","since":"now"})";
    write_text(dir / "run.lock", elsewhere);
    CHECK_THROWS_AS(RunLock(dir.path, "stoa launch"), ConfigError);
    fs::last_write_time(dir / "run.lock",
                        fs::file_time_type::clock::now() - std::chrono::minutes(5));
    CHECK(RunLock(dir.path, "stoa launch").stale().find("far-away") != std::string::npos);
    write_text(dir / "run.lock", "garbage");
    CHECK_NOTHROW(RunLock(dir.path, "stoa launch"));
    CHECK_THROWS_AS(RunLock(dir / "absent", "stoa launch"), DataError);
}

TEST_CASE("state and exit records survive the way to the file and back") {
    const TempDir dir;
    CHECK(read_status(dir.path).generation == -1);
    RunStatus s{.state = "RUN", .generation = 3, .ranks = 4, .restarts = 2, .step = 120};
    s.hosts = {{"a", 2}, {"b", 2}};
    write_status(dir.path, s);
    const RunStatus r = read_status(dir.path);
    CHECK(r.state == "RUN");
    CHECK(r.generation == 3);
    CHECK(r.hosts.size() == 2);
    CHECK(r.exit_code == -1);

    setenv("STOA_EXIT_DIR", (dir / "exit").c_str(), 1);
    setenv("STOA_GENERATION", "3", 1);
    write_exit_record(
        {.rank = 7, .code = 70, .kind = "exception", .what = "first", .phase = "step"});
    write_exit_record({.rank = 7, .code = 71, .kind = "exception", .what = "second"});
    write_text(dir / "exit/g0003-rank0001.json", "{\"torn");
    unsetenv("STOA_EXIT_DIR");
    unsetenv("STOA_GENERATION");
    write_exit_record({.rank = 8, .code = 1});  // no supervisor: nothing
    const auto records = read_exit_records(dir / "exit", 3);
    REQUIRE(records.size() == 1);
    CHECK(records[0].what == "first");
    CHECK(records[0].rank == 7);
    CHECK(read_exit_records(dir / "exit", 2).empty());
}

TEST_CASE("the environment of the ranks holds nothing of an outer job") {
    setenv("OMPI_COMM_WORLD_RANK", "3", 1);
    setenv("PMIX_NAMESPACE", "x", 1);
    setenv("OMPI_MCA_btl", "self,tcp", 1);
    const auto env = clean_environment();
    unsetenv("OMPI_COMM_WORLD_RANK");
    unsetenv("PMIX_NAMESPACE");
    unsetenv("OMPI_MCA_btl");
    CHECK(value_in(env, "OMPI_COMM_WORLD_RANK").empty());
    CHECK(value_in(env, "PMIX_NAMESPACE").empty());
    CHECK(value_in(env, "OMPI_MCA_btl") == "self,tcp");
}

TEST_CASE("commands are run side by side, with a limit") {
    const auto env = clean_environment();
    const auto out =
        run_all({{.command = {"sh", "-c", "echo out; echo err >&2; exit 3"}, .environment = env},
                 {.command = {"sleep", "60"}, .environment = env},
                 {.command = {"/no/such/program"}, .environment = env}},
                0.5);
    CHECK(out[0].code == 3);
    CHECK(out[0].out == "out\n");
    CHECK(out[0].err == "err\n");
    CHECK(out[1].code == -1);
    CHECK(out[2].err.find("cannot start /no/such/program") != std::string::npos);
}
