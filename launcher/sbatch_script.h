#pragma once
// The batch script of `stoa slurm`: a pure function of what was asked for.
#include <string>
#include <vector>

namespace stoa {

enum class ContainerKind { none, apptainer, pyxis };

struct SlurmOptions {
    std::vector<std::string> words;  // CONFIG [key=value ...] for the ranks
    std::string run_name, run_dir;
    int nodes = 1, ranks_per_node = 1;
    int gpus_per_node = 0;  // 0: not asked for
    int cpus_per_rank = 0;  // 0: as the cluster has it
    std::string time = "24:00:00", partition, account, qos;
    bool requeue = true;
    int signal_seconds = 180;
    std::string array_seeds;  // "0-3%2"; each task is a run of its own with that seed
    bool singleton = false;
    std::string container;
    std::vector<std::string> sbatch_lines;  // further options of sbatch
    std::vector<std::string> setup_lines;   // shell lines before the start
    std::string launch_args;                // further options of `stoa launch`
    std::string program = "stoa";
    std::string typed;  // the command that wrote the script
};

/// "x.sif", a folder, "apptainer:x" -> apptainer; "x.sqsh", "repo/image:tag", "pyxis:x" -> pyxis.
ContainerKind container_kind(const std::string& image);

/// What SLURM calls the job: the run's name with the characters that it takes.
std::string slurm_job_name(const SlurmOptions& options);
/// Where the job writes what it prints, as SLURM's pattern ("tiny-%j.out").
std::string slurm_output_pattern(const SlurmOptions& options);

/// The whole script. Its last line replaces the shell by `stoa launch` (exec), so that SLURM's
/// signals reach the supervisor; a shell that waits for a child may lose them.
std::string sbatch_script(const SlurmOptions& options);

/// The second line of every script of ours: such a file may be overwritten.
inline constexpr const char* kSbatchMark = "# Written by `stoa slurm`";

}  // namespace stoa
