#pragma once
#include "parallel/communicator.h"

namespace stoa {

/// The dp x tp mesh of a run. World rank = dp_rank * tp_size + tp_rank: tp ranks are neighbours.
struct Mesh {
    Communicator world, dp, tp;
    int dp_rank() const { return dp.rank(); }
    int dp_size() const { return dp.size(); }
    int tp_rank() const { return tp.rank(); }
    int tp_size() const { return tp.size(); }
};

/// comm: three MPI_Comm_split over the world, and the shared memory of dp and tp     errors:
/// ConfigError when world != dp x tp
Mesh make_mesh(std::int64_t dp, std::int64_t tp);
/// Closes the three communicators; all ranks reach it.
void close_mesh(Mesh& mesh);

}  // namespace stoa
