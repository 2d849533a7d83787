#pragma once
// Where the facts come from. What may hang (a driver, a dead file server, mpirun) is asked in a
// process of its own, `stoa doctor --probe PART`, which prints lines `name value` and is ended at a
// deadline.
#include <string>
#include <vector>

#include "launcher/doctor/facts.h"

namespace stoa {

struct DoctorOptions {
    std::string dir = ".";
    int ranks = 2;
    double seconds = 20.0;  // for each part
    std::vector<std::string> mpirun_args;
};

/// Asks everything. Hangs nowhere; throws nothing about the machine.
MachineFacts gather_machine(const DoctorOptions& options);

/// From files of /proc and /sys, and this process's limits.
void gather_host(MachineFacts& facts);
/// From nvidia-smi and the kernel's log, where they can be read.
void gather_nvidia(MachineFacts& facts, double seconds);

/// The other side of `--probe`: prints its lines; returns the exit code.
int probe_mpi(double seconds);
int probe_directory(const std::string& dir);
int probe_gpu();
int probe_cpu();

/// "name value" of a probe's output, "" where there is no such line.
std::string line_of(const std::string& output, const std::string& name);

}  // namespace stoa
