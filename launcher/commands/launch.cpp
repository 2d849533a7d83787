#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>

#include "configs/load_run_config.h"
#include "launcher/cli.h"
#include "launcher/commands.h"
#include "launcher/process.h"
#include "launcher/slurm_requeue.h"
#include "launcher/supervisor.h"

namespace po = boost::program_options;

namespace stoa {
namespace {

CommandLine launch_line() {
    CommandLine line;
    line.usage = "stoa launch --ranks N [--tp T] CONFIG [key=value ...]";
    line.examples =
        "  stoa launch --ranks 2 configs/tiny.yaml\n"
        "  stoa launch --ranks 4 --tp 2 configs/tiny.yaml run.name=mesh\n"
        "  stoa launch --ranks 4 configs/tiny.yaml --dry-run\n"
        "  stoa launch --hostfile hosts configs/125m.yaml --interface ib0 --min-ranks 8\n"
        "  exec stoa launch configs/125m.yaml         in a batch script: all of the allocation\n";
    line.about =
        "Starts `stoa train CONFIG` on the ranks through mpirun or srun, and again from the "
        "newest\n"
        "checkpoint when one fails. Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 ask the ranks to save "
        "and\n"
        "leave; a second Ctrl-C or SIGTERM stops at once. The exit code is that of the ranks, or "
        "69\n"
        "when restarts do not help. docs/launcher.md has it all.";
    auto add = line.options.add_options();
    add("config", po::value<std::vector<std::string>>()->required(), "");
    add("ranks", po::value<int>(), "number of ranks (default: all slots of the hosts)");
    add("tp", po::value<int>(), "same as parallel.tp=T");
    add("fresh", po::bool_switch(), "refuse to start where checkpoints exist");
    add("dry-run", po::bool_switch(), "print the command instead of running it");
    add("hostfile", po::value<std::string>(), "hosts as Open MPI writes them: NAME slots=N");
    add("ranks-per-node", po::value<int>(), "slots of each host, instead of what is found");
    add("spares", po::value<int>()->default_value(0),
        "hosts at the end of the list that wait for another one to fail");
    add("min-ranks", po::value<int>()->default_value(0),
        "go on with as few when hosts are gone (default: wait for them)");
    add("max-restarts", po::value<int>()->default_value(10),
        "without a newer checkpoint in between; 0: never restart");
    add("term-grace", po::value<double>(),
        "seconds that a save may take after SIGTERM or Ctrl-C (default: 25 in a SLURM job, else no "
        "limit)");
    add("limit", po::value<std::vector<std::string>>()->composing(),
        "seconds without progress that count as a hang, by phase: step=30s,save=5min");
    add("fence", po::value<double>()->default_value(10.0),
        "seconds after which a rank that has lost the supervisor leaves");
    add("keepalive", po::value<std::string>(),
        "of mpirun between hosts: idle seconds, interval, probes (default: 10,3,N that mpirun "
        "gives a host up only after the limit of a lost host, which names it)");
    add("interface", po::value<std::string>(), "network interface between hosts, as eth0");
    add("rsh-agent", po::value<std::string>(), "command that reaches a host, instead of ssh");
    add("allow-tp-across", po::bool_switch(), "let a tp group cross hosts");
    add("srun", po::bool_switch(), "start the ranks with `srun --mpi=pmix` in a SLURM job");
    add("requeue", po::bool_switch(), "in a SLURM job: into the queue again after a stop (75)");
    add("stop-before", po::value<double>()->default_value(0.0),
        "in a SLURM job: save and leave when it ends in less than this many seconds");
    add("mpirun-args", po::value<std::string>()->default_value(""),
        "further arguments of mpirun (or srun), in one word");
    line.positional.add("config", -1);
    return line;
}

std::string text_of(const po::variables_map& values, const char* name) {
    return values.contains(name) ? values[name].as<std::string>() : "";
}

int at_least(const po::variables_map& values, const char* name, int least) {
    const int n = values[name].as<int>();
    if (n < least)
        throw ConfigError({.what = std::string("--") + name,
                           .expected = fmt::format("at least {}", least),
                           .actual = std::to_string(n)});
    return n;
}

// After its last sign of life mpirun gives a host up no sooner than INTERVAL x PROBES.
void read_keepalive(LaunchOptions& o, const std::string& text) {
    if (text.empty()) {
        const double later = parse_limits(o.limits).host + 5.0;
        o.keepalive_probes = static_cast<int>(std::ceil(later / o.keepalive_interval_s));
        return;
    }
    char rest = 0;
    if (std::sscanf(text.c_str(), "%d,%d,%d%c", &o.keepalive_s, &o.keepalive_interval_s,
                    &o.keepalive_probes, &rest) != 3 ||
        std::min({o.keepalive_s, o.keepalive_interval_s, o.keepalive_probes}) < 1)
        throw ConfigError(
            {.what = "--keepalive", .expected = "IDLE,INTERVAL,PROBES as 10,3,7", .actual = text});
}

/// The hosts, and how many ranks: what is asked for, else all slots but the spares'.
void find_hosts(LaunchOptions& o, const po::variables_map& values) {
    const std::string hostfile = text_of(values, "hostfile");
    o.hosts = hostfile.empty() ? slurm_hosts() : read_hostfile(hostfile);
    o.one_machine = o.hosts.empty();
    if (values.contains("ranks-per-node")) {
        const int n = at_least(values, "ranks-per-node", 1);
        for (Host& h : o.hosts)
            h.slots = n;
        if (o.one_machine) o.hosts = local_host(n);
    }
    const auto tp = static_cast<int>(o.config.parallel.tp);
    const auto spares = static_cast<std::size_t>(at_least(values, "spares", 0));
    if (values.contains("ranks")) {
        o.ranks = at_least(values, "ranks", 1);
    } else if (o.hosts.empty()) {
        throw ConfigError({.what = "missing option --ranks",
                           .hint = "--ranks N here, or --hostfile FILE, or in a SLURM job; see "
                                   "`stoa launch --help`"});
    } else {
        if (spares >= o.hosts.size())
            throw ConfigError({.what = "--spares",
                               .expected = fmt::format("fewer than the {} hosts", o.hosts.size()),
                               .actual = std::to_string(spares)});
        const std::vector<Host> used(o.hosts.begin(),
                                     o.hosts.end() - static_cast<std::ptrdiff_t>(spares));
        o.ranks = capacity(used, tp, o.allow_tp_across);
        if (o.ranks < 1) place_ranks(used, tp, tp, o.allow_tp_across);  // says why
    }
    if (o.one_machine) o.hosts = local_host(o.ranks);
}

double default_grace() { return std::getenv("SLURM_JOB_ID") == nullptr ? 0.0 : 25.0; }

}  // namespace

int command_launch(const Args& args) {
    const auto values = parse_command_line(launch_line(), args);
    if (!values) return 0;
    if (values->contains("ranks")) at_least(*values, "ranks", 1);
    LaunchOptions o;
    o.allow_tp_across = (*values)["allow-tp-across"].as<bool>();
    o.words = (*values)["config"].as<std::vector<std::string>>();
    if (values->contains("tp"))
        o.words.push_back(fmt::format("parallel.tp={}", (*values)["tp"].as<int>()));
    const bool hosts_known = values->contains("hostfile") || values->contains("ranks-per-node") ||
                             std::getenv("SLURM_JOB_ID") != nullptr;
    if (!values->contains("ranks") && !hosts_known) find_hosts(o, *values);  // says what is missing
    o.config = load_run_config(o.words[0], {o.words.begin() + 1, o.words.end()}).config;
    find_hosts(o, *values);
    // One report here instead of one per rank.
    resolve_for_world(o.config, o.ranks);
    o.fresh = (*values)["fresh"].as<bool>();
    o.srun = (*values)["srun"].as<bool>();
    if (o.srun && std::getenv("SLURM_JOB_ID") == nullptr)
        throw ConfigError({.what = "--srun outside a SLURM job",
                           .hint = "start it in a batch script or under salloc, or leave it out"});
    o.min_ranks = at_least(*values, "min-ranks", 0);
    o.restarts.max_restarts = at_least(*values, "max-restarts", 0);
    o.term_grace_s =
        values->contains("term-grace") ? (*values)["term-grace"].as<double>() : default_grace();
    o.fence_s = (*values)["fence"].as<double>();
    if (const char* given = std::getenv("STOA_LIMITS"); given && !values->contains("limit"))
        o.limits = given;
    if (values->contains("limit"))
        for (const std::string& l : (*values)["limit"].as<std::vector<std::string>>())
            o.limits += (o.limits.empty() ? "" : ",") + l;
    parse_limits(o.limits);
    read_keepalive(o, text_of(*values, "keepalive"));
    o.stop_before_s = (*values)["stop-before"].as<double>();
    o.interface = text_of(*values, "interface");
    o.rsh_agent = text_of(*values, "rsh-agent");
    o.mpirun_args = split_words(text_of(*values, "mpirun-args"));
    // What the ranks print as the command that resumes the run.
    std::vector<std::string> typed = {this_program(), "launch"};
    typed.insert(typed.end(), args.begin(), args.end());
    o.typed = shell_line(typed);
    if ((*values)["dry-run"].as<bool>()) {
        const auto placed = place_ranks(o.hosts, o.ranks, static_cast<int>(o.config.parallel.tp),
                                        o.allow_tp_across);
        fmt::print("{}\n", shell_line(worker_command(o, placed, text_of(*values, "hostfile"))));
        return 0;
    }
    const int code = supervise(o);
    const auto job = slurm_job();
    if (job && code == static_cast<int>(ExitCode::preempted) && (*values)["requeue"].as<bool>()) {
        std::signal(SIGTERM, SIG_IGN);  // SLURM's, to everything in a job that it requeues
        const RequeueResult again = requeue_slurm_job(*job);
        write_slurm_event(o.config.run_dir(), again.requeued ? "requeue" : "no_requeue", *job,
                          again.text);
        fmt::print(stderr, "stoa: {}\n", again.text);
    }
    return code;
}

}  // namespace stoa
