#pragma once
// One function per verb, one file per function (commands/<verb>.cpp). Arguments exclude the program
// and the verb. They return the exit code, or throw an Error that main turns into one message and
// its code.
#include <string>
#include <vector>

#include "configs/run_config.h"

namespace stoa {

using Args = std::vector<std::string>;

int command_check(const Args& args);   // stoa check CFG [key=value ...]
int command_plan(const Args& args);    // stoa plan CFG [key=value ...]
int command_train(const Args& args);   // stoa train CFG [key=value ...], alone or under mpirun/srun
int command_launch(const Args& args);  // stoa launch --ranks N CFG [key=value ...]
int command_hostcheck(const Args& args);  // what one host says before `stoa launch` starts there
int command_data(const Args& args);       // stoa data build ...
int command_tokenizer(const Args& args);  // stoa tokenizer train ...
int command_reason(const Args& args);     // stoa reason gen|verify ...
int command_generate(const Args& args);   // stoa generate RUN_DIR --prompt "..."
int command_ckpt(const Args& args);       // stoa ckpt ls|verify|show ...
int command_slurm(const Args& args);      // stoa slurm CFG --nodes N ...
int command_status(const Args& args);     // stoa status RUN

/// The part of `stoa plan` that ranks meshes on a cluster; 0 devices: one node's.
int plan_cluster(const RunConfig& config, const std::string& cluster_file, std::int64_t devices,
                 bool as_json);

/// Looks at the tokenizer, the shard directories and the families that the configuration names;
/// adds what is wrong to `problems`, and the vocabulary's size to `config`.
void check_files(RunConfig& config, std::vector<std::string>& problems);
/// One ConfigError of all of them; nothing where there are none.
void throw_problems(const std::vector<std::string>& problems);

}  // namespace stoa
