#pragma once
// Which hosts there are, and which ranks go where: pure functions of what hostfiles and SLURM say.
#include <string>
#include <vector>

#include "configs/run_config.h"

namespace stoa {

struct Host {
    std::string name;
    int slots = 1;  // ranks it takes
};

/// An Open MPI hostfile: "NAME [slots=N] [max_slots=N]" per line, '#' comments; a name given twice
/// adds up. errors: ConfigError naming file and line
std::vector<Host> parse_hostfile(const std::string& text, const std::string& path);
/// errors: ConfigError when it cannot be read or names no host
std::vector<Host> read_hostfile(const std::string& path);

/// "node[01-03,07],login" -> node01 node02 node03 node07 login.     errors: ConfigError
std::vector<std::string> expand_nodelist(const std::string& text);
/// SLURM_TASKS_PER_NODE: "2(x3),1" -> 2 2 2 1.     errors: ConfigError
std::vector<int> expand_tasks_per_node(const std::string& text);
/// The hosts of the SLURM job that this process is in (through `scontrol show hostnames` where it
/// is there); none outside. errors: ConfigError
std::vector<Host> slurm_hosts();
/// This machine with as many slots as are asked for.
std::vector<Host> local_host(int slots);

/// Ranks per host, in rank order: neighbours together, so that a tp group (tp ranks in a row) stays
/// on one host. A host takes a multiple of tp unless `across`.
/// errors: ConfigError when there are too few slots, with how many there are
std::vector<Host> place_ranks(const std::vector<Host>& hosts, int ranks, int tp, bool across);

/// How many ranks `hosts` can take with groups of tp on one host.
int capacity(const std::vector<Host>& hosts, int tp, bool across);

/// The largest world of at most `available` and at least `min_ranks` ranks on which the run can go
/// on: tp kept, dp one that the batch (and elastic sums, whose bits do not depend on it) divides.
/// 0: there is none.
int choose_world(const RunConfig& config, int available, int min_ranks);

}  // namespace stoa
