#pragma once
// Why a rank left: one small JSON file per rank and generation, <run>/exit/g0003-rank0007.json.
// The supervisor reports the first by time; mpirun's own exit code is that of whichever rank it
// noticed first.
#include <cstdint>
#include <string>
#include <vector>

namespace stoa {

struct ExitRecord {
    double time = 0.0;  // seconds since 1970
    int generation = 0, rank = -1;
    std::string host;
    int pid = 0;
    int code = 0;       // the exit code the rank left with
    std::string kind;   // "error", "exception", "bad_alloc", "hang", "fenced", "peer_lost"
    std::string what;   // the message, without its hint
    std::string where;  // file, key, tensor
    std::string phase;  // start | restore | step | evaluate | save | drain | end
    std::int64_t step = -1;
    std::string site;  // of the collective the rank was in, if any
};

/// Writes the record into $STOA_EXIT_DIR (nothing without it: no supervisor). time, generation,
/// rank, host and pid are filled in where they are empty. A rank's first record stands: later calls
/// in the same generation change nothing. Never throws: it is called on the way out.
/// comm: none
void write_exit_record(ExitRecord record) noexcept;

/// The records of one generation, oldest first; files that cannot be read are left out.
std::vector<ExitRecord> read_exit_records(const std::string& dir, int generation);

/// The rank that mpirun or srun gave this process, also before MPI has started; -1: neither did.
int rank_from_environment();

}  // namespace stoa
