#include "launcher/sbatch_script.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "launcher/process.h"

namespace stoa {
namespace {

std::string image_of(const std::string& container) {
    for (const char* prefix : {"apptainer:", "pyxis:"})
        if (container.starts_with(prefix)) return container.substr(std::string(prefix).size());
    return container;
}

struct Script {
    std::string text;
    void say(const std::string& line) { text += line + "\n"; }
    void note(const std::string& line) { text += "# " + line + "\n"; }
    void ask(const std::string& option) { text += "#SBATCH " + option + "\n"; }
};

void ask_for_resources(Script& s, const SlurmOptions& o) {
    s.say("");
    s.ask("--job-name=" + slurm_job_name(o));
    s.ask(fmt::format("--nodes={}", o.nodes));
    s.ask(fmt::format("--ntasks-per-node={}", o.ranks_per_node));
    if (o.gpus_per_node > 0) s.ask(fmt::format("--gpus-per-node={}", o.gpus_per_node));
    if (o.cpus_per_rank > 0) s.ask(fmt::format("--cpus-per-task={}", o.cpus_per_rank));
    if (!o.partition.empty()) s.ask("--partition=" + o.partition);
    if (!o.account.empty()) s.ask("--account=" + o.account);
    if (!o.qos.empty()) s.ask("--qos=" + o.qos);
    s.ask("--time=" + o.time);
    s.ask("--output=" + slurm_output_pattern(o));
    for (const std::string& line : o.sbatch_lines)
        s.ask(line);
}

void ask_for_survival(Script& s, const SlurmOptions& o) {
    s.say("");
    if (o.requeue) {
        s.note(
            "A lost node or a preemption puts the job into the queue again, under the same "
            "number;");
        s.note("it goes on from its newest checkpoint and adds to the same output file.");
        s.ask("--requeue");
    } else {
        s.note("SLURM does not start this job a second time; submit it again and it goes on.");
        s.ask("--no-requeue");
    }
    s.ask("--open-mode=append");
    s.note(
        fmt::format("{} s (SLURM: up to 60 s more) before the time limit, and before a preemption "
                    "where the cluster",
                    o.signal_seconds));
    s.note("sends it, SIGUSR2 reaches the supervisor: finish the step, save, leave with 75.");
    s.ask(fmt::format("--signal=B:USR2@{}", o.signal_seconds));
    if (o.singleton) {
        s.say("");
        s.note(
            "One job of this name at a time: submit the script N times, and each goes on where "
            "the");
        s.note("one before stopped. What comes after the end of the run finds nothing to do.");
        s.ask("--dependency=singleton");
    }
    if (!o.array_seeds.empty()) {
        s.say("");
        s.note("One task per seed, each a run of its own: " + o.run_name + "-seed0, ...");
        s.ask("--array=" + o.array_seeds);
    }
}

/// What stands between mpirun (or the shell) and the workers' program.
std::string container_args(const SlurmOptions& o, ContainerKind kind) {
    const std::string image = image_of(o.container);
    if (kind == ContainerKind::apptainer) {
        const std::string gpu = o.gpus_per_node > 0 ? "--nv " : "";
        return "apptainer exec " + gpu + image;
    }
    return "--container-image=" + image + " --container-mount-home";
}

}  // namespace

ContainerKind container_kind(const std::string& image) {
    if (image.empty()) return ContainerKind::none;
    if (image.starts_with("apptainer:")) return ContainerKind::apptainer;
    if (image.starts_with("pyxis:")) return ContainerKind::pyxis;
    if (image.ends_with(".sif") || image.ends_with("/")) return ContainerKind::apptainer;
    return ContainerKind::pyxis;
}

std::string slurm_job_name(const SlurmOptions& o) {
    std::string name = o.run_name;
    for (char& c : name)
        if (!std::isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_' && c != '.')
            c = '_';
    return name;
}

std::string slurm_output_pattern(const SlurmOptions& o) {
    return slurm_job_name(o) + (o.array_seeds.empty() ? "-%j.out" : "-%A_%a.out");
}

std::string sbatch_script(const SlurmOptions& o) {
    const int ranks = o.nodes * o.ranks_per_node;
    const ContainerKind kind = container_kind(o.container);
    Script s;
    s.say("#!/bin/bash");
    s.note("Written by `stoa slurm`:");
    s.note("  " + o.typed);
    s.note(
        fmt::format("Trains the run {} on {} node{} x {} rank{}. Submit it from this folder; paths "
                    "are relative to it:",
                    o.run_dir, o.nodes, o.nodes == 1 ? "" : "s", o.ranks_per_node,
                    o.ranks_per_node == 1 ? "" : "s"));
    s.note("  sbatch FILE                             start it");
    s.note(fmt::format("  stoa status {:<27} how it is", o.run_dir));
    s.note("  scancel --batch --signal=USR2 JOBID     save now" +
           std::string(o.requeue ? ", into the queue again" : " and leave"));
    s.note("  scancel --batch --signal=INT JOBID      save now, leave for good");
    s.note("  scancel JOBID                           end now; the last checkpoint stands");
    ask_for_resources(s, o);
    ask_for_survival(s, o);
    if (!o.setup_lines.empty()) s.say("");
    for (const std::string& line : o.setup_lines)
        s.say(line);

    s.say("");
    s.note(
        "The shell becomes the supervisor (exec), for a shell that waits for a child can lose "
        "SLURM's");
    s.note(
        "signals. The supervisor starts the ranks on all nodes, starts them again after a fault,");
    s.note(o.requeue ? "and has the job requeued when it had to stop before the run was finished."
                     : "and leaves with 75 when it had to stop before the run was finished.");
    std::string line = "exec ";
    // On one node all of it can live inside; on several, mpirun has to reach the other nodes'
    // SLURM.
    if (kind == ContainerKind::apptainer && o.nodes == 1) line += container_args(o, kind) + " ";
    line += shell_line({o.program}) + fmt::format(" launch --ranks {}", ranks);
    if (kind == ContainerKind::apptainer && o.nodes > 1)
        line += " --mpirun-args " + shell_line({container_args(o, kind)});
    if (kind == ContainerKind::pyxis)
        line += " --srun --mpirun-args " + shell_line({container_args(o, kind)});
    if (o.requeue) line += " --requeue";
    // The signal comes `signal_seconds` before the end or earlier. Where it does not come at all:
    line += fmt::format(" --stop-before {}", std::max(1, o.signal_seconds * 2 / 3));
    if (!o.launch_args.empty()) line += " " + o.launch_args;
    line += " " + shell_line(o.words);
    if (!o.array_seeds.empty()) {
        line += fmt::format(" run.seed=\"$SLURM_ARRAY_TASK_ID\" {}\"$SLURM_ARRAY_TASK_ID\"",
                            shell_line({"run.name=" + o.run_name + "-seed"}));
    }
    s.say(line);
    return s.text;
}

}  // namespace stoa
