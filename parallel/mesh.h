#pragma once
#include <memory>

#include "configs/run_config.h"
#include "parallel/comm_queue.h"
#include "parallel/communicator.h"

namespace stoa {

/// The dp x tp mesh of a run. World rank = dp_rank * tp_size + tp_rank: tp ranks are neighbours,
/// and so are the ranks of a machine (node_map.h).
struct Mesh {
    Communicator world, dp, tp;
    int tp_across_machines = 0;  // tensor-parallel groups with ranks on several machines
    /// What goes beside the computation: jobs on `dp_queue` and `tp_queue`, which alone use
    /// `dp_beside` and `tp_beside`, the same ranks as dp and tp. Always there; without overlap they
    /// run a job at once.
    Communicator dp_beside, tp_beside;
    std::unique_ptr<CommQueue> dp_queue = std::make_unique<CommQueue>(),
                               tp_queue = std::make_unique<CommQueue>();
    int dp_rank() const { return dp.rank(); }
    int dp_size() const { return dp.size(); }
    int tp_rank() const { return tp.rank(); }
    int tp_size() const { return tp.size(); }
};

/// `overlap`: whether the queues of groups of several ranks have threads of their own, where MPI
/// allows it; automatic: those of groups that cross machines.
/// `machine_of`: the machine of each rank of MPI_COMM_WORLD; empty: as MPI sees it.
/// comm: five MPI_Comm_split over the world, the shared memory and the machine groups of dp and tp
/// errors: ConfigError when world != dp x tp
Mesh make_mesh(std::int64_t dp, std::int64_t tp, Overlap overlap = Overlap::off,
               std::vector<int> machine_of = {}, Site site = {});
/// Waits for the queue and closes the communicators; all ranks reach it.
void close_mesh(Mesh& mesh);

}  // namespace stoa
