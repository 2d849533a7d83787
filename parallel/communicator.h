#pragma once
// A group of ranks: the one owner of an MPI_Comm.
#include <mpi.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/buffer.h"
#include "kernels/core/exec.h"
#include "parallel/board.h"
#include "parallel/shared_memory.h"

namespace stoa {

struct MachineGroups;  // parallel/machine_parts.h
class NcclGroup;       // parallel/nccl_group.h

class Communicator {
public:
    Communicator();  // a group of one, without MPI
    /// Takes ownership of `comm`; `name` appears in messages ("world", "dp", "tp"). `on_board`: not
    /// for a part of another group, whose collectives tell of it.
    Communicator(MPI_Comm comm, std::string name, bool on_board = true);
    Communicator(Communicator&& other) noexcept;
    Communicator& operator=(Communicator&& other) noexcept;
    ~Communicator();  // MPI is closed by close(), which all ranks reach; never here
    Communicator(const Communicator&) = delete;
    Communicator& operator=(const Communicator&) = delete;

    int rank() const { return rank_; }
    int size() const { return size_; }
    const std::string& name() const { return name_; }
    MPI_Comm handle() const { return comm_; }
    /// The group on the board; a collective counts its sequence up.
    GroupRow& group() const { return group_; }
    /// Lets large tensors go through shared memory where all ranks are on one machine.
    /// comm: collective
    void share_memory(SharedMemory::Wait wait = SharedMemory::Wait::spin, Site site = {});
    SharedMemory* shared_memory() const { return shared_memory_.get(); }  // null: messages only
    /// Lets large tensors of several ranks on each of several machines cross between machines once
    /// per machine. `machine_of`: by rank of this group     comm: collective
    void share_machines(const std::vector<int>& machine_of,
                        SharedMemory::Wait wait = SharedMemory::Wait::spin, Site site = {});
    const MachineGroups* machine_groups() const { return machine_groups_.get(); }  // null: none
    /// Lets collectives on `device` go from GPU to GPU where that changes no bit, and sums too
    /// where `fast_sums`. comm: collective     errors: DeviceError on all ranks
    void open_nccl(Device device, bool fast_sums, double deadline_s);
    NcclGroup* nccl() const { return nccl_.get(); }  // null: through host memory
    bool fast_sums() const { return fast_sums_; }
    /// Host memory of at least `bytes` that the device copies to: for collectives on its memory.
    /// One thread at a time uses a group, and it.
    std::byte* staging(std::int64_t bytes, const Exec& exec) const;
    std::int64_t staging_bytes() const { return staging_.bytes(); }  // so far
    void close();

private:
    MPI_Comm comm_ = MPI_COMM_NULL;
    int rank_ = 0;
    int size_ = 1;
    std::string name_ = "self";
    mutable GroupRow group_;
    std::unique_ptr<SharedMemory> shared_memory_;
    std::unique_ptr<MachineGroups> machine_groups_;
    std::unique_ptr<NcclGroup> nccl_;
    bool fast_sums_ = false;
    mutable Buffer staging_;
};

/// Ranks of `comm` on this rank's machine.     comm: one split and its end
int ranks_on_this_machine(const Communicator& comm, Site site = {});

}  // namespace stoa
