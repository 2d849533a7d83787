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
    /// Where NCCL gathers and the host sums: gathers over `dp`, given by the main thread, for NCCL
    /// wants the calls of all groups in one order. Null: they are jobs of dp_queue, too.
    std::unique_ptr<CommQueue> dp_gathers;
    CommQueue& gather_queue() const { return dp_gathers ? *dp_gathers : *dp_queue; }
    const Communicator& gather_group() const { return dp_gathers ? dp : dp_beside; }
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
/// On a GPU, after open_nccl: what data parallel sends beside the computation gets a stream of its
/// own; and a thread, where sums go through the host and MPI allows it. Not in a group of one.
/// Tensor parallel stays on the main stream: its next product waits for the sum.
void open_side_streams(Mesh& mesh, Device device);
/// Waits for the queues and closes the communicators; all ranks reach it.
void close_mesh(Mesh& mesh);

}  // namespace stoa
