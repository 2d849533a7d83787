// Training over two hosts (network namespaces with addresses and names of their own, joined by a
// switch): tp inside a host, dp across. The bits are those of one host; a network that is gone for
// ten seconds costs nothing. A host whose cable is cut, or whose frames vanish, in the middle of a
// step: a verdict with its name, its ranks gone before the next start, which is on the host that is
// left or, once it is back, on both.
//   two_hosts [--quick]      quick: without the flap under the supervisor's defaults
//   two_hosts --only flap|mpirun    only that, or a host that mpirun gives up first
// Needs root, iproute2, and two-hosts below $STOA_SHARED (or ../shared): else skipped.
#include <atomic>
#include <cstring>
#include <ctime>

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
    std::string hostfile() const { return dir_ + "/hostfile"; }
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
            "run.yaml run.name={} parallel.tp=2 'parallel.determinism=elastic 4x4' "
            "model.n_kv_heads=4 stages.0.seq_len=96 stages.1.seq_len=96 batch.global_batch=4 "
            "batch.micro_batch=1 stages.0.tokens={} stages.1.tokens={} 'checkpoint.every=20 steps' "
            "eval.sequences=1 'eval.problems=1 of 8 tokens' log.every=50",
            name, steps / 2 * 384, (steps - steps / 2) * 384);
    }
    std::string run_dir(const std::string& name) const { return dir + "/runs/" + name; }

    const std::map<std::string, std::string>& reference(std::int64_t steps) {
        auto& state = one_host[steps];
        if (!state.empty()) return state;
        const std::string name = fmt::format("one-host-{}", steps);
        const Outcome o = run_shell("cd " + dir + " && mpirun -q -n 4 " + stoa_binary() +
                                    " train " + overrides(name, steps));
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
    std::atomic<bool> over{false};
    run = std::thread([&] {
        outcome = run_shell("cd " + p.dir +
                            " && export OMPI_MCA_mpi_yield_when_idle=1 STOA_FAULT=slow@0:0 && " +
                            hosts.mpirun(4) + stoa_binary() + " train " + p.overrides(name, steps));
        over = true;
    });
    const auto done = [&] { return steps_done(p.run_dir(name)); };
    wait_until(120, [&] { return done() >= 20 || over; });
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
    wait_until(120, [&] { return done() > after + 1 || over; });
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

/// `stoa launch` on h0 with ranks on both hosts, in a thread.
class Launch {
public:
    Launch(const Program& p, const std::string& name, std::int64_t steps,
           const std::string& options)
        : thread_([this,
                   command = fmt::format(
                       "cd {} && export OMPI_MCA_mpi_yield_when_idle=1 STOA_FAULT=slow@0:0 && "
                       "{} h0 {} launch --hostfile {} --rsh-agent {} {} {} >{}.out 2>&1",
                       p.dir, p.hosts->tool("on-host"), stoa_binary(), p.hosts->hostfile(),
                       p.hosts->tool("rsh-agent"), options, p.overrides(name, steps), name),
                   printed = p.dir + "/" + name + ".out"] {
              // Into a file: mpirun's daemon on a host that is cut off outlives mpirun.
              outcome_ = run_shell(command);
              outcome_.output = read_text(printed);
              over_ = true;
          }) {}
    ~Launch() {
        if (thread_.joinable()) thread_.join();
    }
    const Outcome& join() {
        if (thread_.joinable()) thread_.join();
        return outcome_;
    }
    bool over() const { return over_; }

private:
    Outcome outcome_;
    std::atomic<bool> over_{false};
    std::thread thread_;
};

/// Seconds since 1970 of an event's time; 0: none.
double time_of(const nlohmann::json& event) {
    std::tm utc{};
    const std::string text = event.value("time", "");
    if (strptime(text.c_str(), "%Y-%m-%dT%H:%M:%S", &utc) == nullptr) return 0.0;
    const auto dot = text.find('.');
    return static_cast<double>(timegm(&utc)) +
           (dot == std::string::npos ? 0.0 : std::atof(("0" + text.substr(dot)).c_str()));
}
double unix_now() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
        .count();
}

/// h1 vanishes in the middle of a step: `how` is "cut" (no carrier) or "mute" (no frames). It comes
/// back where `back`; else the run goes on with the ranks of h0. First to notice is the monitor, or
/// mpirun, which ends the ranks without a word about the host.
enum class First { monitor, mpirun };
void lose_host(Program& p, const std::string& how, bool back, First first = First::monitor) {
    const std::int64_t steps = 160;
    const std::string name =
        how + (back ? "-back" : "-for-good") + (first == First::mpirun ? "-runner-first" : "");
    const Hosts& hosts = *p.hosts;
    const std::string run_dir = p.run_dir(name);
    Launch launch(p, name, steps,
                  fmt::format("--ranks 4 --fence 4 {}{}",
                              first == First::monitor ? "--limit host=3s"
                                                      : "--limit host=60s --keepalive 2,1,3",
                              back ? "" : " --min-ranks 2"));
    const auto started = [&] { return steps_done(run_dir) >= 40 || launch.over(); };
    wait_until(180, started);
    const std::string ranks = "/stoa train run.yaml run.name=" + name + " ";
    const int before = processes_in(hosts.host_namespace(1), ranks, "mpirun");
    run_shell(hosts.tool(how) + " h1");
    const double lost = unix_now();
    // Watched from outside: when are the ranks of h1 gone, when is the fault known, when does it go
    // on?
    double gone = 0.0, known = 0.0, again = 0.0;
    int restored_to = 0;
    bool healed = false;
    wait_until(240, [&] {
        const double now = unix_now();
        if (gone == 0.0 && processes_in(hosts.host_namespace(1), ranks, "mpirun") == 0) gone = now;
        if (known == 0.0 && count_events(run_dir, "fault") > 0) known = now;
        if (back && !healed && known > 0.0 && now > known + 8.0) {  // back after some seconds
            run_shell(hosts.tool(how == "cut" ? "heal" : "unmute") + " h1");
            healed = true;
        }
        int launches = 0;
        for (const auto& e : json_objects(run_dir + "/events.jsonl"))
            if (e.value("event", "") == "launch" && ++launches == 2) {
                again = time_of(e);
                restored_to = e.value("ranks", 0);
            }
        return (again > 0.0 && gone > 0.0) || launch.over();
    });
    const Outcome& outcome = launch.join();
    if (!healed) run_shell(hosts.tool(how == "cut" ? "heal" : "unmute") + " h1");
    nlohmann::json fault;
    int faults = 0;
    for (const auto& e : json_objects(run_dir + "/events.jsonl"))
        if (e.value("event", "") == "fault" && ++faults == 1) fault = e;
    nlohmann::json details{
        {"ranks_on_h1", before},
        {"exit_code", outcome.code},
        {"faults", faults},
        {"cause", fault.value("cause", "")},
        {"host", fault.value("host", "")},
        {"text", fault.value("text", "")},
        {"noticed_after_s", time_of(fault) - lost},
        {"old_ranks_gone_after_s", gone - lost},
        {"next_start_after_s", again - lost},
        {"ranks_then", restored_to},
        {"daemons_left_there", processes_in(hosts.host_namespace(1), "orted", "bash")}};
    const bool whole = p.whole(name, steps, details);
    const bool fine = outcome.code == 0 && before == 2 && faults == 1 &&
                      fault.value("cause", "") == "lost_host" && fault.value("host", "") == "h1" &&
                      gone > 0.0 && again > 0.0 && gone <= again + 0.2 &&
                      restored_to == (back ? 4 : 2);
    if (!fine || !whole) fmt::print("{}\n", outcome.output);
    p.record(name, fine && whole, details);
}

/// The same ten seconds of silence with the supervisor's defaults: no fault, no new start.
void flap_under_supervisor(Program& p) {
    const std::int64_t steps = 160;
    const std::string name = "flap-launch", run_dir = p.run_dir(name);
    Launch launch(p, name, steps, "--ranks 4");
    wait_until(180, [&] { return steps_done(run_dir) >= 30 || launch.over(); });
    run_shell(p.hosts->tool("mute") + " h1");
    std::this_thread::sleep_for(std::chrono::seconds(10));
    run_shell(p.hosts->tool("unmute") + " h1");
    const Outcome& outcome = launch.join();
    nlohmann::json details{{"exit_code", outcome.code},
                           {"faults", count_events(run_dir, "fault")},
                           {"launches", count_events(run_dir, "launch")}};
    bool fine = p.whole(name, steps, details);
    fine = fine && outcome.code == 0 && count_events(run_dir, "fault") == 0 &&
           count_events(run_dir, "launch") == 1;
    if (!fine) fmt::print("{}\n", outcome.output);
    p.record("flap_under_supervisor", fine, details);
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
        const std::string only = argc > 2 && std::strcmp(argv[1], "--only") == 0 ? argv[2] : "";
        const bool flap_only = only == "flap";
        if (only == "mpirun") lose_host(p, "mute", false, First::mpirun);
        if (only.empty()) {
            span_and_flap(p, 10.0);
            lose_host(p, "mute", true);
            lose_host(p, "cut", false);
        }
        if (flap_only) flap_under_supervisor(p);
        if (!quick && only.empty()) {
            lose_host(p, "cut", true);
            lose_host(p, "mute", false);
            lose_host(p, "mute", false, First::mpirun);
            flap_under_supervisor(p);
        }
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
