// One main for every test program. Under mpirun every rank runs the same cases; only rank 0
// reports, and the verdict is all-reduced so that one failing rank fails the program everywhere.
#define CATCH_CONFIG_RUNNER
#include <mpi.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "tests/support/catch.h"

int main(int argc, char** argv) {
    const bool under_mpirun =
        std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMIX_RANK") != nullptr;
    if (!under_mpirun) return Catch::Session().run(argc, argv);
    int provided = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    std::vector<const char*> args(argv, argv + argc);
    // Ranks other than 0 stay silent unless they fail: their report goes to a file of their own.
    const std::string report = std::string(argv[0]) + ".rank" + std::to_string(rank) + ".log";
    if (rank != 0) {
        args.push_back("-o");
        args.push_back(report.c_str());
    }
    int failed = Catch::Session().run(static_cast<int>(args.size()), args.data());
    if (rank != 0 && failed != 0)
        std::fprintf(stderr, "rank %d failed: see %s\n", rank, report.c_str());
    int any = 0;
    MPI_Allreduce(&failed, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    MPI_Finalize();
    return any == 0 ? 0 : 1;
}
