#pragma once
#include <mpi.h>

#include "kernels/core/error.h"
#include "parallel/communicator.h"

namespace stoa {

/// errors: CollectiveError with the call, the group and MPI's own text
inline void check_mpi(int code, const char* call, const Communicator& comm) {
    if (code == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING] = "unknown";
    int length = 0;
    MPI_Error_string(code, text, &length);
    throw CollectiveError(
        {.what = std::string(call) + " failed",
         .where = "group " + comm.name() + ", rank " + std::to_string(comm.rank()),
         .actual = text,
         .hint = "a peer has probably died; look for the first error in logs/rank-*.log"});
}

}  // namespace stoa
