#pragma once
// A folder that holds the program and all it needs beyond glibc and drivers, and runs wherever it
// is moved: for nodes on which nothing is installed.
//
//   stoa                 start script              bin/mpirun, bin/orted    start scripts
//   lib/                 shared libraries          lib/openmpi/             Open MPI's plug-ins
//   libexec/             the programs themselves   share/, etc/             Open MPI's texts,
//   settings manifest.json        every file with its size and XXH3-128
#include <cstdint>
#include <string>
#include <vector>

#include "launcher/bundle/libraries.h"

namespace stoa {

struct BundleFile {
    std::string to;    // below the folder
    std::string from;  // "" where `text` is the content
    std::string text{};
    bool executable = false;
};
struct BundlePlan {
    std::vector<BundleFile> files;
    std::vector<std::string> left_out;  // plug-ins that lack a library here, with its name
    std::vector<std::string> of_the_node;
    std::int64_t bytes = 0;
};

/// What Open MPI's parts are and where this machine keeps them.
struct MpiPlaces {
    std::string plugins;                 // mca_*.so
    std::string share, etc, pmix_share;  // "" where there is none
    std::vector<std::string> programs;   // mpirun, orted
};
/// errors: DataError (a part that is not there)
MpiPlaces find_open_mpi(const Needs& program);

/// errors: DataError (a library that is missing, Open MPI's parts)
BundlePlan plan_bundle(const std::string& program);

/// errors: ConfigError (`dir` is a file, or a folder with something in it)
void require_not_taken(const std::string& dir);

/// Written beside `dir` and renamed: a bundle is whole or not there.
/// errors: those of require_not_taken, DataError (no space, cannot be written)
void write_bundle(const BundlePlan& plan, const std::string& dir);

/// How many files of the manifest are as they were written.
/// errors: DataError names the first that is missing or differs
std::int64_t check_bundle(const std::string& dir);

/// The start scripts: of `program` in libexec, with `arguments` before the user's.
std::string start_script(const std::string& program, const std::string& up,
                         const std::string& arguments);
/// Reads by them: where Open MPI looks for its parts, and the loader for libraries.
std::string environment_script();
/// mpirun reaches other hosts through it: ssh with the libraries of its own system.
std::string remote_shell_script();

}  // namespace stoa
