#include "parallel/nccl_group.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "parallel/check_mpi.h"
#include "parallel/communicator.h"
#include "parallel/mpi_session.h"

namespace stoa {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
}

cudaStream_t handle(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

ncclDataType_t nccl_type(DType t) {
    switch (t) {
        case DType::fp32:
            return ncclFloat32;
        case DType::fp64:
            return ncclFloat64;
        case DType::bf16:
            return ncclBfloat16;
        case DType::int32:
            return ncclInt32;
        default:
            break;
    }
    throw ShapeError({.what = "all_reduce on a GPU",
                      .expected = "fp32, fp64, bf16 or int32",
                      .actual = dtype_name(t)});
}

// The first rank for which `bad`, over the group; -1: none.
int first_rank(bool bad, const Communicator& comm) {
    int mine = bad ? comm.rank() : comm.size(), first = mine;
    check_mpi(MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, comm.handle()), "NCCL: agree",
              comm);
    return first == comm.size() ? -1 : first;
}

}  // namespace

struct NcclGroup::State {
    ncclComm_t comm = nullptr;
    std::string who;  // "group dp, rank 3 on host, GPU 1"
    int rank = 0;
    double deadline_s = 60.0;

    void abort() {
        if (comm != nullptr) (void)ncclCommAbort(comm);
        comm = nullptr;
    }
    [[noreturn]] void fail(const char* what, const std::string& reason) {
        abort();
        throw DeviceError({.what = std::string(what) + " failed",
                           .where = who,
                           .actual = reason,
                           .hint = "look for the first error in logs/rank-*.log; NCCL_DEBUG=INFO "
                                   "tells which link NCCL uses"});
    }
    std::string reason_of(ncclResult_t result) const {
        std::string text = ncclGetErrorString(result);
        if (const char* last = ncclGetLastError(comm); last != nullptr && *last != '\0')
            text += std::string(": ") + last;
        return text;
    }
    // A call of a non-blocking group may still be in progress on return.
    void settle(const char* what, ncclResult_t result) {
        const auto begin = Clock::now();
        while (result == ncclInProgress) {
            if (seconds_since(begin) > deadline_s)
                fail(what, "no answer within " + std::to_string(deadline_s) + " s");
            std::this_thread::sleep_for(std::chrono::microseconds(50));
            ncclResult_t now = ncclSuccess;
            const ncclResult_t asked = ncclCommGetAsyncError(comm, &now);
            result = asked != ncclSuccess ? asked : now;
        }
        if (result != ncclSuccess) fail(what, reason_of(result));
    }
    void require_open(const char* what) {
        if (comm == nullptr) fail(what, "the group was aborted after an earlier error");
    }
};

NcclGroup::NcclGroup(std::unique_ptr<State> state) : state_(std::move(state)) {}
NcclGroup::~NcclGroup() { state_->abort(); }

std::unique_ptr<NcclGroup> NcclGroup::open(const Communicator& comm, Device device,
                                           double deadline_s) {
    if (comm.size() == 1) return nullptr;
    const CollectiveScope scope{"nccl_init", comm, 0, "bytes", {}};
    auto state = std::make_unique<State>();
    state->who = "group " + comm.name() + ", rank " + std::to_string(comm.rank()) + " on " +
                 host_name() + ", GPU " + std::to_string(device.index);
    state->rank = comm.rank();
    state->deadline_s = deadline_s;
    ncclUniqueId id{};
    const bool no_id = comm.rank() == 0 && ncclGetUniqueId(&id) != ncclSuccess;
    if (first_rank(no_id, comm) >= 0) {
        if (no_id) state->fail("starting NCCL", state->reason_of(ncclSystemError));
        throw DeviceError({.what = "starting NCCL failed on rank 0", .where = state->who});
    }
    check_mpi(MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, comm.handle()), "NCCL: broadcast", comm);
    std::string reason;
    try {
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        config.blocking = 0;
        state->settle("connecting over NCCL",
                      ncclCommInitRankConfig(&state->comm, comm.size(), id, comm.rank(), &config));
    } catch (const DeviceError& e) {
        reason = e.what();
    }
    // All meet here after the deadline at the latest, and go on or stop together.
    const int first = first_rank(!reason.empty(), comm);
    if (first < 0) return std::unique_ptr<NcclGroup>(new NcclGroup(std::move(state)));
    state->abort();
    if (!reason.empty()) throw DeviceError({.what = reason});
    throw DeviceError(
        {.what = "connecting over NCCL failed",
         .where = state->who,
         .actual = "rank " + std::to_string(first) + " of the group has not connected",
         .hint = "its log (logs/rank-*.log) has the reason"});
}

void NcclGroup::gather(std::span<const PartCopy> parts, Stream stream) {
    State& s = *state_;
    s.require_open("all_gather");
    (void)ncclGroupStart();
    for (const PartCopy& p : parts)
        (void)ncclBroadcast(p.data.data, p.data.data, static_cast<std::size_t>(p.data.bytes()),
                            ncclInt8, p.owner, s.comm, handle(stream));
    s.settle("all_gather", ncclGroupEnd());  // which tells of the calls inside, too
}

void NcclGroup::broadcast(TensorView t, int root, Stream stream) {
    State& s = *state_;
    s.require_open("broadcast");
    s.settle("broadcast", ncclBroadcast(t.data, t.data, static_cast<std::size_t>(t.bytes()),
                                        ncclInt8, root, s.comm, handle(stream)));
}

void NcclGroup::sum_parts(std::span<const PartSum> parts, Stream stream) {
    State& s = *state_;
    s.require_open("reduce_scatter");
    (void)ncclGroupStart();
    for (const PartSum& p : parts)
        (void)ncclReduce(p.values.data, p.owner == s.rank ? p.total.data : nullptr,
                         static_cast<std::size_t>(p.values.numel()), nccl_type(p.values.dtype),
                         ncclSum, p.owner, s.comm, handle(stream));
    s.settle("reduce_scatter", ncclGroupEnd());
}

void NcclGroup::all_reduce(TensorView t, Op op, Stream stream) {
    State& s = *state_;
    s.require_open("all_reduce");
    const ncclRedOp_t how = op == Op::sum ? ncclSum : op == Op::max ? ncclMax : ncclMin;
    s.settle("all_reduce", ncclAllReduce(t.data, t.data, static_cast<std::size_t>(t.numel()),
                                         nccl_type(t.dtype), how, s.comm, handle(stream)));
}

void NcclGroup::synchronize(Stream stream) {
    State& s = *state_;
    s.require_open("waiting for the GPU");
    for (;;) {
        const cudaError_t done = cudaStreamQuery(handle(stream));
        if (done == cudaSuccess) return;
        if (done != cudaErrorNotReady) s.fail("a kernel", cudaGetErrorString(done));
        ncclResult_t now = ncclSuccess;
        if (ncclCommGetAsyncError(s.comm, &now) != ncclSuccess ||
            (now != ncclSuccess && now != ncclInProgress))
            s.fail("a collective", s.reason_of(now));
        std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
}

}  // namespace stoa
