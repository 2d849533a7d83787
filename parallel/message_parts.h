#pragma once
// Sums and copies of parts that have owners, between ranks that share no memory.
#include <span>

#include "parallel/communicator.h"
#include "parallel/owned_parts.h"
#include "parallel/rank_sum.h"

namespace stoa {

/// Owners' total = the sum of the ranks' values (rank_sum.h), a chain from total on where `add`;
/// total may be values. T is float, double or bf16 (in fp32, rounded once). comm: per kMessageChunk
/// bytes of a rank one all-to-all: each value is sent once errors: CollectiveError
template <class T>
void message_sum_parts(std::span<const PartSum> parts, SumOrder order, bool add,
                       const Communicator& comm);

/// comm: per kMessageChunk bytes one all-gather     errors: CollectiveError
void message_gather_parts(std::span<const PartCopy> parts, const Communicator& comm);

}  // namespace stoa
