#pragma once
// Sums over ranks that share no memory, in the order of rank_sum.h: MPI's own all-reduce may add in
// any. Few values go to every rank, which adds them all; of many, each rank adds a slice.
#include "parallel/communicator.h"
#include "parallel/rank_sum.h"

namespace stoa {

/// out[i] = the sum of the ranks' in[i] in `order`, a chain from out[i] on where `add`; out may be in.
/// T is float, double or bf16 (in fp32, rounded once). The same bits on every rank.
/// comm: up to kMessageBytes one all-gather; else per kMessageChunk bytes an all-to-all and an
///       all-gather, so that each value is sent twice
/// errors: CollectiveError
template <class T>
void message_sum(T* out, const T* in, std::int64_t count, SumOrder order, bool add,
                 const Communicator& comm);

constexpr std::int64_t kMessageBytes = 1 << 14;  // up to here the ranks' meeting is the cost
constexpr std::int64_t kMessageChunk = 1 << 20;

}  // namespace stoa
