#include "parallel/mpi_session.h"

#include <mpi.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "kernels/core/error.h"
#include "parallel/node_map.h"

namespace stoa {
namespace {

int env_int(const char* name, int otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : std::atoi(text);
}

// mpirun and `srun --mpi=pmix` announce themselves; a process started by hand is alone and needs no
// MPI.
bool started_by_mpi() {
    return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMIX_RANK") != nullptr;
}

void refuse_srun_without_pmix() {
    if (std::getenv("SLURM_STEP_ID") == nullptr || env_int("SLURM_STEP_NUM_TASKS", 1) <= 1) return;
    throw DeviceError({.what = "srun started several tasks without MPI support",
                       .where = host_name(),
                       .expected = "PMIx in the environment",
                       .hint = "start the job step with `srun --mpi=pmix stoa train ...`"});
}

}  // namespace

std::string host_name() {
    char name[256] = "unknown";
    gethostname(name, sizeof name - 1);
    return name;
}

MpiSession::MpiSession(int& argc, char**& argv) {
    if (!started_by_mpi()) {
        refuse_srun_without_pmix();
        open_ = false;
        return;
    }
    int provided = 0;  // less than asked for: no overlap (parallel/mesh.cpp)
    if (MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided) != MPI_SUCCESS)
        throw DeviceError(
            {.what = "MPI_Init failed", .where = host_name(), .hint = "run `mpirun -n 2 true`"});
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    rank_ = numbers_by_machine(machines_of(MPI_COMM_WORLD))[static_cast<std::size_t>(rank_)];
    MPI_Comm node = MPI_COMM_NULL;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &node);
    MPI_Comm_rank(node, &local_rank_);
    MPI_Comm_free(&node);
}

MpiSession::~MpiSession() {
    if (!open_) return;
    std::fprintf(stderr, "rank %d on %s left without closing MPI: ending the job\n", rank_,
                 host_name().c_str());
    MPI_Abort(MPI_COMM_WORLD, static_cast<int>(ExitCode::internal));
}

void MpiSession::close() {
    if (!open_) return;
    open_ = false;
    MPI_Finalize();
}

void MpiSession::abort(int exit_code) {
    int started = 0, finished = 0;
    MPI_Initialized(&started);
    MPI_Finalized(&finished);
    if (started && !finished) MPI_Abort(MPI_COMM_WORLD, exit_code);
    std::_Exit(exit_code);
}

}  // namespace stoa
