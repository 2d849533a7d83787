#pragma once
// Sums and copies of parts that have owners, for a group of several ranks on each of several
// machines: within a machine through the memory its ranks share, between machines once per machine
// instead of once per rank. The order of a sum is the chain of rank_sum.h, so the bits are those of
// message_parts.h.
//
// Ranks of a machine are neighbours in the group: rank = machine * per_machine + local. Ranks with
// the same `local` are a rail, which carries the parts of its own ranks. A chain goes over the
// machines in turn: the first adds its ranks' values to the start, hands the sums on, the next adds
// its own, ...; while a machine adds one piece, the one before adds the next. The last machine
// sends the sums to their owners.
#include <memory>
#include <span>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/owned_parts.h"

namespace stoa {

struct MachineGroups {
    Communicator machine;  // the ranks on this machine; with shared memory
    Communicator rail;     // the ranks with this one's number on their machines
};

/// The groups for `comm`, or null where they would not help: all on one machine, one rank on each,
/// or uneven numbers. `machine_of`: by rank of `comm`.
/// comm: collective
std::unique_ptr<MachineGroups> open_machine_groups(const Communicator& comm,
                                                   const std::vector<int>& machine_of,
                                                   SharedMemory::Wait wait);

/// Whether the chain over machines carries less than the direct exchange: every rank sends all its
/// values there, 1 / machines of which stay; a machine sends them once here, after waiting for all
/// machines before it.
bool chain_pays(int machines, int per_machine, std::int64_t bytes);

/// Owners' total = the chain of the ranks' values, from total on where `add`; total may be values.
/// dtype: fp32 alone; bf16 would be rounded once per machine
/// comm:  per kRailBytes of a rail one message to the next machine, and the sums to their owners
/// errors: CollectiveError
void machine_sum_parts(std::span<const PartSum> parts, bool add, const MachineGroups& groups);

/// Every rank gets the owners' parts.     comm: an all-gather in each rail, then shared memory
/// errors: CollectiveError
void machine_gather_parts(std::span<const PartCopy> parts, const MachineGroups& groups);

constexpr std::int64_t kRailBytes = 1 << 18;

}  // namespace stoa
