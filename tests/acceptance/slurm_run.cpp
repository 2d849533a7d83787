// Training as jobs of a real SLURM (its daemons on this machine, each node a network namespace): a
// job across two nodes; a time limit with its signal, and one without; a preemption; a signal by
// hand; requeue by hand; nodes that are drained and lost; an array of seeds; a chain of jobs. After
// each the last checkpoint is that of the run that nobody disturbed, bit by bit, and every step is
// in the records once.
//   slurm_run [--quick]      quick: without the drained and the lost node, shorter runs
//   slurm_run --only disturb|by-hand|limits|nodes
// Needs root, Debian's slurm-wlm, munge and iproute2 (`./setup.sh --tests`), and slurm-local below
// $STOA_SHARED (or ../shared): else skipped.
#include <cstring>
#include <memory>
#include <set>

#include "tests/support/clusters.h"
#include "tests/support/tiny_project.h"

using namespace stoa;
using namespace stoa::test;

namespace {

constexpr int kStepTokens = 4 * 96;
constexpr double kPatience_s = 420.0;  // of a wait for a whole run; SLURM's clock ticks in minutes

bool wait_for(const std::string& what, double seconds, const std::function<bool()>& happened) {
    const double begin = seconds_now();
    const bool did = wait_until(seconds, happened);
    fmt::print("  {:>5.1f} s  {}{}\n", seconds_now() - begin, what, did ? "" : ": NOT IN TIME");
    std::fflush(stdout);
    return did;
}

class Slurm {
public:
    Slurm(const std::string& scripts, const std::string& dir, int instance, int nodes)
        : dir_(dir),
          stop_(scripts + "/stop.sh " + dir, "rm -rf " + fs::path(dir).parent_path().string()) {
        // Room for several jobs side by side: sizes of nodes are made up.
        const Outcome up = run_shell(fmt::format(
            "NODES={} CPUS=16 GPUS=1 GRACE=25 KILLWAIT=5 NODE_TIMEOUT=6 REQUEUE_DELAY=5 "
            "PORT={} SUBNET=10.{}.0 {}/start.sh {}",
            nodes, 20000 + 1000 * instance, 100 + instance, scripts, dir));
        fmt::print("{}", up.output);
        std::fflush(stdout);
        up_ = up.code == 0;
        tag_ = read_text(dir + "/run/tag");
        while (!tag_.empty() && tag_.back() == '\n')
            tag_.pop_back();
    }
    bool up() const { return up_; }
    std::string node_namespace(int node) const { return fmt::format("{}-n{}", tag_, node); }
    Outcome run(const std::string& command) const {
        return run_shell(". " + dir_ + "/env.sh; " + command);
    }
    std::string say(const std::string& command) const {
        std::string out = run(command).output;
        while (!out.empty() && out.back() == '\n')
            out.pop_back();
        return out;
    }
    /// "RUNNING"; "" once it has left the queue
    std::string state(const std::string& job) const {
        return say("squeue -h -j " + job + " -o %T 2>/dev/null");
    }
    bool gone(const std::string& job) const { return state(job).empty(); }
    /// How jobs ended, as SLURM has written it down: "JobId=3 ... JobState=COMPLETED ..."
    std::string ended(const std::string& job) const {
        std::istringstream lines(read_text(dir_ + "/log/jobcomp.txt"));
        std::string last;
        for (std::string line; std::getline(lines, line);)
            if (line.starts_with("JobId=" + job + " ")) last = line;
        return last;
    }

private:
    std::string dir_, tag_;
    AtEnd stop_;
    bool up_ = false;
};

/// One run with its job, made the way a user makes it: `stoa slurm ... --submit`.
struct Job {
    std::string name, run_dir, job;
    std::int64_t steps = 0;
    int ranks = 4;
    bool submitted() const { return !job.empty(); }
};

struct Program {
    std::string dir;  // of the project; jobs run in it
    const Slurm* slurm = nullptr;
    std::map<std::string, std::map<std::string, std::string>> undisturbed;  // by ranks, steps, seed
    nlohmann::json results = nlohmann::json::object();
    bool holds = true;

    static std::string overrides(std::int64_t steps, int ranks) {
        return fmt::format(
            "parallel.tp={} 'parallel.determinism=elastic 4x4' stages.0.seq_len=96 "
            "stages.1.seq_len=96 batch.global_batch=4 batch.micro_batch=1 stages.0.tokens={} "
            "stages.1.tokens={} 'checkpoint.every=50 steps' "
            "model.n_kv_heads=4 eval.sequences=1 'eval.problems=1 of 8 tokens' "
            "log.every=50",
            ranks == 4 ? 2 : 1, steps / 2 * kStepTokens, (steps - steps / 2) * kStepTokens);
    }

    /// The same run without SLURM and without anything that happens to it; on the same mesh.
    const std::map<std::string, std::string>& reference(std::int64_t steps, int ranks,
                                                        int seed = 5) {
        const std::string name = fmt::format("whole-{}-{}", steps, seed);
        auto& state = undisturbed[name];
        if (!state.empty()) return state;
        const Outcome o =
            run_shell(fmt::format("cd {} && {} launch --ranks {} run.yaml run.name={} "
                                  "run.seed={} {}",
                                  dir, stoa_binary(), ranks, name, seed, overrides(steps, ranks)));
        if (o.code != 0) fmt::print("{}\n", o.output);
        return state = state_at_end(dir + "/runs/" + name);
    }

    /// `edit`: a sed script for the file between writing and submitting, as a user would edit it.
    Job submit(const std::string& name, std::int64_t steps, int ranks, const std::string& options,
               const std::string& edit = "", int nodes = 2) {
        Job job{name, dir + "/runs/" + name, "", steps, ranks};
        const std::string write = fmt::format(
            "cd {} && {} slurm run.yaml run.name={} {} --nodes {} --ranks-per-node {} "
            // 50 ms in each step: runs that last long enough to have something happen to them.
            "--setup 'export STOA_FAULT=slow@0:0 OMPI_MCA_mpi_yield_when_idle=1' {} 2>&1",
            dir, stoa_binary(), name, overrides(steps, ranks), nodes, ranks / nodes, options);
        const Outcome o = edit.empty()
                              ? slurm->run(write + " --submit")
                              : slurm->run(write + fmt::format(" && sed -i '{}' {}.sbatch && "
                                                               "sbatch {}.sbatch",
                                                               edit, name, name));
        for (const char* before : {"submitted job ", "Submitted batch job "})
            if (const auto at = o.output.find(before); at != std::string::npos)
                job.job = std::to_string(std::atol(o.output.c_str() + at + std::strlen(before)));
        if (!job.submitted()) fmt::print("{}\n", o.output);
        return job;
    }

    bool wait_for_steps(const Job& job, std::int64_t steps) {
        wait_for(fmt::format("{}: {} steps", job.name, steps), kPatience_s,
                 [&] { return steps_done(job.run_dir) >= steps || slurm->gone(job.job); });
        if (steps_done(job.run_dir) >= steps) return true;
        fmt::print("{}\n", run_shell("tail -n 20 " + dir + "/" + job.name + "-*.out").output);
        return false;
    }
    bool wait_for_end(const Job& job) {
        return wait_for(fmt::format("{}: job {} is over", job.name, job.job), kPatience_s,
                        [&] { return slurm->gone(job.job); });
    }
    /// Starts of the run under SLURM so far.
    static int starts(const Job& job) { return count_events(job.run_dir, "slurm_job"); }

    void record(const std::string& name, bool did, nlohmann::json details) {
        details["holds"] = did;
        results[name] = details;
        holds = holds && did;
        fmt::print("{}: {} {}\n", name, did ? "holds" : "DOES NOT HOLD", details.dump());
        std::fflush(stdout);
    }

    /// The job has ended well, the run is whole.
    bool whole(const Job& job, nlohmann::json& details, int seed = 5) {
        const auto state = state_at_end(job.run_dir);
        const bool same = !state.empty() && state == reference(job.steps, job.ranks, seed);
        const bool once = each_step_once(job.run_dir, job.steps);
        const std::string end = slurm->ended(job.job);
        const bool completed = end.find("JobState=COMPLETED") != std::string::npos;
        details["same_bits"] = same;
        details["each_step_once"] = once;
        details["job_completed"] = completed;
        details["starts"] = starts(job);
        details["faults"] = count_events(job.run_dir, "fault");
        if (!same || !once || !completed)
            fmt::print("{}\n{}\n", end,
                       run_shell("tail -n 40 " + dir + "/" + job.name + "-*.out").output);
        return same && once && completed;
    }
};

/// A job on two nodes, two tp ranks on each; then a preemption, a signal by hand, a requeue by
/// hand.
void disturb_one_run(Program& p, bool quick) {
    const std::string limit = "--time 20 --signal-seconds 60";
    // Beside it, to save time: an array on one node. The preemption hits all of them.
    const int seeds = quick ? 2 : 4;
    const Job array =
        p.submit("array", 60, 2, fmt::format("{} --array-seeds 0-{}%2", limit, seeds - 1), "", 1);
    const Job job = p.submit("disturbed", quick ? 120 : 400, 4, limit);
    bool fine = job.submitted() && p.wait_for_steps(job, 5);
    int here[2] = {0, 0};
    for (int n = 0; n < 2; ++n)
        here[n] = processes_in(p.slurm->node_namespace(n),
                               "/stoa train run.yaml run.name=disturbed", "mpirun");
    p.record("spans_two_nodes", fine && here[0] == 2 && here[1] == 2,
             {{"ranks_n0", here[0]}, {"ranks_n1", here[1]}});

    // A job of a better partition that needs both nodes whole.
    write_text(p.dir + "/urgent.sh", "#!/bin/bash\nsleep 3\n");
    const std::string urgent =
        p.slurm->say("cd " + p.dir +
                     " && sbatch --parsable -p high -N2 --ntasks-per-node=16 "
                     "-t1 -o /dev/null urgent.sh");
    fine = wait_for("the urgent job has run", 120, [&] { return p.slurm->gone(urgent); }) && fine;
    const std::int64_t saved_at = steps_done(job.run_dir);
    fine =
        wait_for("the preempted job runs again", 120, [&] { return p.starts(job) >= 2; }) && fine;
    const bool stopped = count_events(job.run_dir, "stop") >= 1;
    fine = p.wait_for_steps(job, saved_at + 5) && fine;
    p.record("preemption", fine && stopped,
             {{"saved_before", stopped}, {"stopped_after_step", saved_at}});

    p.slurm->say("scancel --batch --signal=USR2 " + job.job);
    fine = wait_for("started again after scancel --signal=USR2", 120,
                    [&] { return p.starts(job) >= 3; });
    const int stops = count_events(job.run_dir, "stop");
    p.record("scancel_signal", fine && stops >= 2 && count_events(job.run_dir, "requeue") >= 2,
             {{"stops", stops}});

    if (!quick) {
        p.wait_for_steps(job, steps_done(job.run_dir) + 60);
        p.slurm->say("scontrol requeue " + job.job);
        fine = wait_for("started again after scontrol requeue", 120,
                        [&] { return p.starts(job) >= 4; });
        p.record("scontrol_requeue", fine, {});
    }
    nlohmann::json details;
    fine = p.wait_for_end(job);
    fine = p.whole(job, details) && fine;
    p.record("disturbed_run", fine, details);

    fine = array.submitted() && p.wait_for_end(array);
    nlohmann::json tasks = nlohmann::json::array();
    std::set<std::map<std::string, std::string>> different;
    for (int seed = 0; seed < seeds; ++seed) {
        const std::string run_dir = p.dir + "/runs/array-seed" + std::to_string(seed);
        const auto state = state_at_end(run_dir);
        const bool same = !state.empty() && state == p.reference(60, 2, seed);
        fine = fine && same && each_step_once(run_dir, 60);
        if (!state.empty()) different.insert(state);
        tasks.push_back(same);
    }
    p.record("array_of_seeds", fine && static_cast<int>(different.size()) == seeds,
             {{"same_bits", tasks}, {"different_runs", different.size()}});
}

/// SLURM sends SIGTERM to every process of a job that is requeued or cancelled by hand, and SIGKILL
/// after KillWait. On one node the ranks have saved by then.
void end_one_node_job(Program& p) {
    const Job job = p.submit("by-hand", 400, 2, "--time 20", "", 1);
    const auto saved = [&] {
        const auto all = list_checkpoints(job.run_dir);
        const std::int64_t done = steps_done(job.run_dir);
        return !all.empty() && read_checkpoint_info(all.back()).meta.step == done;
    };
    bool fine = job.submitted() && p.wait_for_steps(job, 20);
    p.slurm->say("scontrol requeue " + job.job);
    fine = wait_for("left after scontrol requeue", 60,
                    [&] { return count_events(job.run_dir, "stop") >= 1; }) &&
           fine;
    const bool at_requeue = saved();
    fine = wait_for("started again", 120, [&] { return p.starts(job) >= 2; }) && fine;
    fine = p.wait_for_steps(job, steps_done(job.run_dir) + 20) && fine;
    p.slurm->say("scancel " + job.job);
    fine = p.wait_for_end(job) && fine;
    const bool at_cancel = saved();
    const Job again = p.submit("by-hand", 400, 2, "--time 20", "", 1);
    nlohmann::json details;
    fine = p.wait_for_end(again) && fine;
    fine = p.whole(again, details) && fine;
    details["saved_at_requeue"] = at_requeue;
    details["saved_at_scancel"] = at_cancel;
    p.record("requeue_and_scancel_by_hand", fine && at_requeue && at_cancel, details);
}

/// Time limits of a minute: once with SLURM's signal, once without any; and a chain of jobs beside.
void reach_time_limits(Program& p, bool quick) {
    // Each longer than the limit: 50 ms a step.
    const Job signalled = p.submit("limit", quick ? 1200 : 3600, 2, "--time 1 --signal-seconds 15");
    // 20 s before the end, by the supervisor's own clock
    const Job silent = p.submit("deadline", quick ? 1000 : 3000, 2, "--time 1 --signal-seconds 30",
                                "/SBATCH --signal/d");
    const int links = quick ? 2 : 3;
    std::vector<Job> chain;
    for (int n = 0; n < links; ++n)
        chain.push_back(p.submit("chain", 60, 2, "--time 20 --singleton --no-requeue", "", 1));
    bool fine = true;
    int together = 0;
    for (int n = 0; n < links; ++n) {
        const bool last = n + 1 == links;
        fine = p.wait_for_steps(chain[static_cast<std::size_t>(n)], 20 * (n + 1)) && fine;
        int running = 0;
        for (const Job& link : chain)
            running += p.slurm->state(link.job) == "RUNNING" ? 1 : 0;
        together = std::max(together, running);
        if (!last) {
            p.slurm->say("scancel --batch --signal=USR2 " + chain[static_cast<std::size_t>(n)].job);
            fine = wait_for("the next link runs", 120,
                            [&] { return Program::starts(chain[0]) >= n + 2; }) &&
                   fine;
        }
    }
    nlohmann::json details;
    fine = p.wait_for_end(chain.back()) && fine;
    fine = p.whole(chain.back(), details) && fine;
    details["links"] = links;
    details["at_a_time"] = together;
    p.record("singleton_chain", fine && together == 1, details);

    const int least = quick ? 2 : 4;  // starts
    nlohmann::json of_signal, of_clock;
    fine = p.wait_for_end(signalled);
    fine = p.whole(signalled, of_signal) && fine;
    p.record("time_limit", fine && Program::starts(signalled) >= least, of_signal);
    fine = p.wait_for_end(silent);
    fine = p.whole(silent, of_clock) && fine;
    p.record("time_limit_without_signal", fine && Program::starts(silent) >= (quick ? 2 : 3),
             of_clock);
}

/// Two of three nodes at a time; one of them is drained, then one is lost.
void lose_nodes(Program& p) {
    const Job job = p.submit("nodes", 600, 4, "--time 20 --signal-seconds 60");
    bool fine = job.submitted() && p.wait_for_steps(job, 60);
    const auto nodes = [&] { return p.slurm->say("squeue -h -j " + job.job + " -o %N"); };
    const auto names = [&] {
        std::set<std::string> out;
        std::istringstream words(p.slurm->say("scontrol show hostnames " + nodes()));
        for (std::string name; words >> name;)
            out.insert(name);
        return out;
    };
    const std::set<std::string> first = names();
    const std::string drained = first.empty() ? "n0" : *first.rbegin();
    p.slurm->say("scontrol update node=" + drained + " state=drain reason=test");
    p.slurm->say("scancel --batch --signal=USR2 " + job.job);
    fine = wait_for("goes on without the drained node", 180,
                    [&] { return Program::starts(job) >= 2 && steps_done(job.run_dir) >= 80; }) &&
           fine;
    const std::set<std::string> second = names();
    p.record("node_drained", fine && second.size() == 2 && !second.contains(drained),
             {{"drained", drained}, {"nodes", second}});
    p.slurm->say("scontrol update node=" + drained + " state=resume");

    fine = p.wait_for_steps(job, steps_done(job.run_dir) + 60);
    const std::set<std::string> third = names();
    const std::string lost = third.empty() ? "n1" : *third.rbegin();  // not the supervisor's
    const double begin = seconds_now();
    const int starts = Program::starts(job);
    p.slurm->say("cut-node " + lost);
    fine = wait_for("goes on without the lost node", 240,
                    [&] { return Program::starts(job) > starts; }) &&
           fine;
    const double seconds = seconds_now() - begin;
    p.slurm->say("heal-node " + lost);
    nlohmann::json details;
    fine = p.wait_for_end(job) && fine;
    fine = p.whole(job, details) && fine;
    details["lost"] = lost;
    details["started_again_after_s"] = seconds;
    p.record("node_lost", fine, details);
}

}  // namespace

int main(int argc, char** argv) {
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    const std::string only = argc > 2 && std::strcmp(argv[1], "--only") == 0 ? argv[2] : "";
    const std::string scripts = shared_folder("slurm-local");
    if (geteuid() != 0) return skip("not root: network namespaces and SLURM's daemons need it");
    if (scripts.empty()) return skip("no slurm-local in $STOA_SHARED or ../shared");
    for (const char* program : {"munged", "slurmctld", "slurmd", "sbatch", "ip", "nsenter"})
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
    std::string left;
    Program p{.dir = dir / "project"};
    {
        const Slurm slurm(scripts, dir / "slurm", instance.number(), quick ? 2 : 3);
        if (!slurm.up()) return 1;
        p.slurm = &slurm;
        left = slurm.node_namespace(0).substr(0, slurm.node_namespace(0).find('-'));
        if (only.empty() || only == "disturb") disturb_one_run(p, quick);
        if (only.empty() || only == "by-hand") end_one_node_job(p);
        if (only.empty() || only == "limits") reach_time_limits(p, quick);
        if ((only.empty() && !quick) || only == "nodes") lose_nodes(p);
    }
    // After the end: no namespace of ours, and no process that was started in one of them.
    const int namespaces =
        std::atoi(run_shell("ip netns list | grep -c '^" + left + "-'").output.c_str());
    const int processes = std::atoi(run_shell("grep -laz '^SLURM_CONF=" + (dir / "slurm") +
                                              "' /proc/[0-9]*/environ 2>/dev/null | wc -l")
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
