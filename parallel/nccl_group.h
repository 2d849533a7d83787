#pragma once
// NCCL for a group of ranks that each have a GPU of their own: what keeps no order of sums goes
// from GPU to GPU (copies and maxima; sums where the run asks for fast ones). Sums whose order is
// part of the result go through the host (staged.h). A build without NCCL links no_nccl.cpp.
#include <memory>
#include <span>

#include "kernels/core/exec.h"
#include "parallel/owned_parts.h"

namespace stoa {

class Communicator;

class NcclGroup {
public:
    /// Connects the ranks of `comm`, bootstrapped over MPI. Null, on all of them, in a build
    /// without NCCL. comm: a broadcast and an all-reduce over `comm`; all ranks reach it errors:
    /// DeviceError on every rank, after `deadline_s` at the latest, that names the first
    ///         rank that could not connect, its GPU, the reason and the next step
    static std::unique_ptr<NcclGroup> open(const Communicator& comm, Device device,
                                           double deadline_s);
    /// Aborts what is still open: waits for no peer.
    ~NcclGroup();
    NcclGroup(const NcclGroup&) = delete;
    NcclGroup& operator=(const NcclGroup&) = delete;

    // In the order of the stream; on return they are only on their way.
    // errors: DeviceError (rank, GPU, reason) where NCCL reports one of this or an earlier call;
    //         the group is aborted then, so that no kernel of it waits for a peer that has gone

    /// Every rank gets the owners' parts.
    void gather(std::span<const PartCopy> parts, Stream stream);
    void broadcast(TensorView t, int root, Stream stream);
    /// fp32 | fp64 | bf16: owners' total = the sum of the ranks' values.
    void sum_parts(std::span<const PartSum> parts, Stream stream);
    /// fp32 | fp64 | bf16 | int32; a sum in whatever order NCCL takes.
    enum class Op { sum, max, min };
    void all_reduce(TensorView t, Op op, Stream stream);

    /// Waits for the stream while looking for errors of the peers: instead of a bare wait, which
    /// would not end where one has died.     errors: DeviceError
    void synchronize(Stream stream);

private:
    struct State;
    explicit NcclGroup(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

}  // namespace stoa
