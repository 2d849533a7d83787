#pragma once
// Before anything starts: is every host reachable, does it run the same program with the same
// configuration, and see the same run directory? One short process per host, started the way the
// workers will be.
#include <cstdint>
#include <string>
#include <vector>

#include "launcher/process.h"
#include "launcher/topology.h"

namespace stoa {

/// What one host says.
struct HostReport {
    std::string asked;  // the name in the hostfile
    std::string host, version, program_hash, config_hash, error;
    bool sees_run_dir = false;  // the same one: the supervisor's nonce file is there
    double clock_offset_s = 0.0;
    std::int64_t free_bytes = -1;
    int gpus = 0;
    bool reached = false;
    std::string why_not;  // last line of what the start of it printed
};

/// `stoa hostcheck RUN_DIR NONCE CONFIG [key=value ...]`: prints this host's line.
std::string host_report_line(const std::string& run_dir, const std::string& nonce,
                             const std::vector<std::string>& words);
/// What is in the line; `asked` kept.
HostReport parse_host_report(const std::string& asked, const std::string& output);

/// The first reason not to start, in the order in which a user can do something about it.
/// errors: DeviceError (host not reached), ConfigError (version, configuration, run directory not
/// shared). Returns warnings: clocks apart, little disk.
std::vector<std::string> judge_hosts(const std::vector<HostReport>& hosts,
                                     const std::string& run_dir);

struct HostCheck {
    std::vector<std::string> mpirun;  // mpirun with what all starts have in common
    std::vector<std::string> environment;
    std::string run_dir;
    std::vector<std::string> words;  // configuration and overrides
    double seconds = 20.0;           // per host
};
/// Asks all hosts at the same time; hosts that do not answer in time are not `reached`.
std::vector<HostReport> ask_hosts(const HostCheck& check, const std::vector<Host>& hosts);

}  // namespace stoa
