#include "parallel/communicator.h"

#include <utility>

#include "kernels/device_memory.h"
#include "parallel/check_mpi.h"
#include "parallel/machine_parts.h"
#include "parallel/nccl_group.h"

namespace stoa {
namespace {

// World rank of the member of rank 0; asks nobody.
int first_member(MPI_Comm comm) {
    MPI_Group group = MPI_GROUP_NULL, world = MPI_GROUP_NULL;
    MPI_Comm_group(comm, &group);
    MPI_Comm_group(MPI_COMM_WORLD, &world);
    int first = 0, in_world = 0;
    MPI_Group_translate_ranks(group, 1, &first, world, &in_world);
    MPI_Group_free(&group);
    MPI_Group_free(&world);
    return in_world == MPI_UNDEFINED ? -1 : in_world;
}

}  // namespace

Communicator::Communicator() = default;
Communicator::~Communicator() = default;

Communicator::Communicator(MPI_Comm comm, std::string name, bool on_board)
    : comm_(comm), name_(std::move(name)) {
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank", *this);
    check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size", *this);
    if (on_board) group_ = open_group(name_, first_member(comm_), size_);
}

Communicator::Communicator(Communicator&& other) noexcept { *this = std::move(other); }

Communicator& Communicator::operator=(Communicator&& other) noexcept {
    std::swap(comm_, other.comm_);
    std::swap(rank_, other.rank_);
    std::swap(size_, other.size_);
    std::swap(name_, other.name_);
    std::swap(group_, other.group_);
    std::swap(shared_memory_, other.shared_memory_);
    std::swap(machine_groups_, other.machine_groups_);
    std::swap(nccl_, other.nccl_);
    std::swap(fast_sums_, other.fast_sums_);
    std::swap(staging_, other.staging_);
    return *this;
}

void Communicator::share_memory(SharedMemory::Wait wait, Site site) {
    if (size_ == 1) return;
    const CollectiveScope scope{"share_memory", *this, 0, "bytes", site};
    shared_memory_ = SharedMemory::open(comm_, wait);
}

void Communicator::share_machines(const std::vector<int>& machine_of, SharedMemory::Wait wait,
                                  Site site) {
    if (size_ == 1) return;
    const CollectiveScope scope{"share_machines", *this, 0, "bytes", site};
    machine_groups_ = open_machine_groups(*this, machine_of, wait);
}

void Communicator::open_nccl(Device device, bool fast_sums, double deadline_s) {
    nccl_ = NcclGroup::open(*this, device, deadline_s);
    fast_sums_ = fast_sums;
}

std::byte* Communicator::staging(std::int64_t bytes, const Exec& exec) const {
    if (bytes > staging_.bytes()) {
        synchronize(exec);    // a copy from it may be on its way
        staging_ = Buffer{};  // first: two of them need not fit
        staging_ = make_copy_buffer(bytes, exec.device);
    }
    return staging_.data();
}

void Communicator::close() {
    if (comm_ == MPI_COMM_NULL) return;
    close_group(group_);
    if (machine_groups_) {
        machine_groups_->machine.close();
        machine_groups_->rail.close();
        machine_groups_.reset();
    }
    if (shared_memory_) shared_memory_->close();
    shared_memory_.reset();
    nccl_.reset();
    staging_ = Buffer{};
    MPI_Comm_free(&comm_);
    comm_ = MPI_COMM_NULL;
    rank_ = 0;
    size_ = 1;
}

int ranks_on_this_machine(const Communicator& comm, Site site) {
    if (comm.size() == 1) return 1;
    const CollectiveScope scope{"split", comm, 0, "bytes", site};
    MPI_Comm here = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split_type(comm.handle(), MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &here),
              "MPI_Comm_split_type", comm);
    int size = 1;
    MPI_Comm_size(here, &size);
    MPI_Comm_free(&here);
    return size;
}

}  // namespace stoa
