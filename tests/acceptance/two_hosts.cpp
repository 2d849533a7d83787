// Training over two hosts (network namespaces with addresses and names of their own, joined by a
// switch): tp inside a host, dp across. The bits are those of one host; a network that is gone for
// ten seconds costs nothing.
//   two_hosts [--quick]
// Needs root, iproute2, and two-hosts below $STOA_SHARED (or ../shared): else skipped.
#include <cstring>

#include "tests/support/clusters.h"
#include "tests/support/tiny_project.h"

using namespace stoa;
using namespace stoa::test;

namespace {

class Hosts {
public:
    Hosts(const std::string& scripts, const std::string& dir, int instance)
        : dir_(dir),
          tag_(fmt::format("stoa{}", instance)),
          down_(fmt::format("TAG={} DIR={} {}/down.sh", tag_, dir, scripts),
                "rm -rf " + fs::path(dir).parent_path().string()) {
        const Outcome up = run_shell(fmt::format("TAG={} SUBNET=10.{}.1 DIR={} SLOTS=2 {}/up.sh 2",
                                                 tag_, 100 + instance, dir, scripts));
        fmt::print("{}", up.output);
        std::fflush(stdout);
        up_ = up.code == 0;
    }
    bool up() const { return up_; }
    const std::string& tag() const { return tag_; }
    std::string tool(const std::string& name) const { return dir_ + "/bin/" + name; }
    std::string host_namespace(int n) const { return fmt::format("{}-h{}", tag_, n); }
    /// mpirun as host h0, two ranks on each: neighbours, which tp ranks are, together.
    std::string mpirun(int ranks) const {
        return fmt::format("{} -q -n {} --map-by slot ", tool("mpirun"), ranks);
    }

private:
    std::string dir_, tag_;
    AtEnd down_;
    bool up_ = false;
};

struct Program {
    std::string dir;
    const Hosts* hosts = nullptr;
    nlohmann::json results = nlohmann::json::object();
    bool holds = true;
    std::map<std::int64_t, std::map<std::string, std::string>> one_host;  // by steps

    static std::string overrides(const std::string& name, std::int64_t steps) {
        return fmt::format(
            "train run.yaml run.name={} parallel.tp=2 'parallel.determinism=elastic 4x4' "
            "model.n_kv_heads=4 stages.0.seq_len=96 stages.1.seq_len=96 batch.global_batch=4 "
            "batch.micro_batch=1 stages.0.tokens={} stages.1.tokens={} 'checkpoint.every=20 steps' "
            "eval.sequences=1 eval.problems=1 eval.max_new_tokens=8 log.every=50",
            name, steps / 2 * 384, (steps - steps / 2) * 384);
    }
    std::string run_dir(const std::string& name) const { return dir + "/runs/" + name; }

    const std::map<std::string, std::string>& reference(std::int64_t steps) {
        auto& state = one_host[steps];
        if (!state.empty()) return state;
        const std::string name = fmt::format("one-host-{}", steps);
        const Outcome o = run_shell("cd " + dir + " && mpirun -q -n 4 " + stoa_binary() + " " +
                                    overrides(name, steps));
        if (o.code != 0) fmt::print("{}\n", o.output);
        return state = state_at_end(run_dir(name));
    }
    bool whole(const std::string& name, std::int64_t steps, nlohmann::json& details) {
        const auto state = state_at_end(run_dir(name));
        const bool same = !state.empty() && state == reference(steps);
        const bool once = each_step_once(run_dir(name), steps);
        details["same_bits"] = same;
        details["each_step_once"] = once;
        return same && once;
    }
    void record(const std::string& name, bool did, nlohmann::json details) {
        details["holds"] = did;
        results[name] = details;
        holds = holds && did;
        fmt::print("{}: {} {}\n", name, did ? "holds" : "DOES NOT HOLD", details.dump());
        std::fflush(stdout);
    }
};

/// A run over both hosts with the network of h1 silent for `seconds` in its middle.
void span_and_flap(Program& p, double seconds) {
    const std::int64_t steps = 200;  // 50 ms each
    const std::string name = "flap";
    const Hosts& hosts = *p.hosts;
    std::thread run;
    Outcome outcome;
    run = std::thread([&] {
        outcome = run_shell("cd " + p.dir +
                            " && export OMPI_MCA_mpi_yield_when_idle=1 STOA_FAULT=slow@0:0 && " +
                            hosts.mpirun(4) + stoa_binary() + " " + p.overrides(name, steps));
    });
    const auto done = [&] { return steps_done(p.run_dir(name)); };
    wait_until(120, [&] { return done() >= 20; });
    const int on_h0 = processes_in(hosts.host_namespace(0), "/stoa train run.yaml run.name=flap ",
                                   "mpirun"),
              on_h1 = processes_in(hosts.host_namespace(1), "/stoa train run.yaml run.name=flap ",
                                   "mpirun");
    run_shell(hosts.tool("mute") + " h1");
    std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    const std::int64_t before = done();
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds - 1.5));
    const std::int64_t after = done();
    run_shell(hosts.tool("unmute") + " h1");
    const double unmuted = seconds_now();
    wait_until(120, [&] { return done() > after + 1; });
    const double resumed = seconds_now() - unmuted;
    run.join();
    if (outcome.code != 0) fmt::print("{}\n", outcome.output);
    nlohmann::json details{{"seconds", seconds},
                           {"steps_while_silent", after - before},
                           {"goes_on_after_s", resumed},
                           {"exit_code", outcome.code},
                           {"faults", count_events(p.run_dir(name), "fault")}};
    const bool fine = p.whole(name, steps, details) && outcome.code == 0;
    p.record("spans_two_hosts", on_h0 == 2 && on_h1 == 2,
             {{"ranks_h0", on_h0}, {"ranks_h1", on_h1}});
    p.record("flap", fine && after - before <= 1 && count_events(p.run_dir(name), "resume") == 0,
             details);
}

}  // namespace

int main(int argc, char** argv) {
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    const std::string scripts = shared_folder("two-hosts");
    if (geteuid() != 0) return skip("not root: network namespaces need it");
    if (scripts.empty()) return skip("no two-hosts in $STOA_SHARED or ../shared");
    for (const char* program : {"ip", "bridge", "nsenter", "unshare", "mpirun"})
        if (!on_path(program))
            return skip(std::string(program) + " is missing: ./setup.sh --tests installs it");
    if (!may_make_namespaces()) return skip("no network namespaces may be made here");
    const double begin = seconds_now();
    const TempDir dir;
    const Instance instance;
    const Outcome built = make_tiny_project(dir / "project", 10);
    if (built.code != 0) {
        fmt::print(stderr, "{}\n", built.output);
        return 1;
    }
    Program p{.dir = dir / "project"};
    std::string tag;
    {
        const Hosts hosts(scripts, dir / "hosts", instance.number());
        if (!hosts.up()) return 1;
        p.hosts = &hosts;
        tag = hosts.tag();
        span_and_flap(p, 10.0);
    }
    const int namespaces =
        std::atoi(run_shell("ip netns list | grep -c '^" + tag + "-'").output.c_str());
    const int processes =
        std::atoi(run_shell("ls -d /proc/[0-9]*/cwd 2>/dev/null | xargs -r readlink | grep -c '^" +
                            p.dir + "'")
                      .output.c_str());
    p.record("nothing_left", namespaces == 0 && processes == 0,
             {{"namespaces", namespaces}, {"processes", processes}});
    fmt::print("{}\n", nlohmann::json{{"quick", quick},
                                      {"seconds", seconds_now() - begin},
                                      {"scenarios", p.results},
                                      {"holds", p.holds}}
                           .dump());
    return p.holds ? 0 : 1;
}
