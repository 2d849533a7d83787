#pragma once
// Collectives as free functions on tensors. The data's home chooses the wire: MPI for host memory;
// device memory goes by NCCL where that keeps the bits or sums may be fast (nccl_group.h), else
// through host memory (staged.h), so that its sums have the CPU's order. A group
// of one waits for nobody. Every collective of several ranks is stamped on the board
// (parallel/board.h) with the line that calls it; all ranks of a group reach it at the same line,
// with the same operation, type and count.
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/exact_sum.h"
#include "kernels/core/exec.h"
#include "parallel/comm_timer.h"
#include "parallel/communicator.h"
#include "parallel/owned_parts.h"
#include "parallel/rank_sum.h"

namespace stoa {

enum class ReduceOp { sum, max, min };

/// t = reduction of t over the ranks of `comm`, the same bits on every rank; a sum is the tree of
/// rank_sum.h.
/// dtype: fp32 | fp64 | bf16 | int32. bf16 is added in fp32 and rounded once
/// comm:  large sums of ranks on one machine: shared_memory.h; other sums: message_sum.h; else one
/// MPI
///        all-reduce over `comm`
/// errors: CollectiveError
void all_reduce(TensorView t, ReduceOp op, const Communicator& comm, Stream stream, Site site = {});

/// total = ((total + rank 0's values) + rank 1's) + ..., without the first summand unless `add`.
/// `total` holds the same on every rank, before and after; it may be `values`.
/// dtype: fp32 | fp64 | bf16, both alike     comm, errors: as all_reduce
void chain_sum(TensorView total, bool add, ConstTensorView values, const Communicator& comm,
               Stream stream, Site site = {});

/// Each part's owner gets the sum of it in `order`; a chain goes on from total where `add`.
/// dtype: fp32 | fp64 | bf16, one for all parts     errors: CollectiveError
/// comm: shared_memory.h on one machine, machine_parts.h for large fp32 chains of several ranks on
/// each of several, else message_parts.h
void reduce_scatter(std::span<const PartSum> parts, SumOrder order, bool add,
                    const Communicator& comm, Stream stream, Site site = {});

/// Every rank gets the owners' parts.     dtype: any     comm, errors: as reduce_scatter
void all_gather(std::span<const PartCopy> parts, const Communicator& comm, Stream stream,
                Site site = {});

double all_reduce_scalar(double value, ReduceOp op, const Communicator& comm, Site site = {});
/// The ranks' sum, without rounding.
ExactSum all_reduce(ExactSum sum, const Communicator& comm, Site site = {});
std::int64_t all_reduce_scalar(std::int64_t value, ReduceOp op, const Communicator& comm,
                               Site site = {});

/// Rank `root`'s text on every rank.     comm: two broadcasts
std::string broadcast(std::string text, int root, const Communicator& comm, Site site = {});

/// Root's bytes of t on every rank.     comm: broadcasts of at most 1 GiB
void broadcast(TensorView t, int root, const Communicator& comm, Stream stream, Site site = {});

/// Every rank's text on `root`, by rank; nothing on the others.
/// comm: a gather of sizes, then one of texts     errors: CollectiveError above 2 GiB in all
std::vector<std::string> gather(const std::string& text, int root, const Communicator& comm,
                                Site site = {});

/// Before the host waits for a GPU whose stream holds collectives of `groups`: looks for errors of
/// their peers while it waits, for a bare wait would not end where one has died. Nothing to do
/// without NCCL.     errors: DeviceError
void await_device(const Exec& exec, std::initializer_list<const Communicator*> groups);

void barrier(const Communicator& comm, Site site = {});
/// A barrier that sleeps between looks: for waits in which a peer needs this processor.
void patient_barrier(const Communicator& comm, Site site = {});

}  // namespace stoa
