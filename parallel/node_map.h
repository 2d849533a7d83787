#pragma once
// Which machine each rank is on, and how ranks are numbered because of it: those of a machine next
// to each other, whatever order mpirun dealt them in. So a tensor-parallel group, which is ranks in
// a row, lies inside a machine wherever its size divides the machine's ranks, and data parallel
// goes across.
#include <mpi.h>

#include <vector>

namespace stoa {

/// Machine of each rank of `comm`, numbered by the first rank on it.     comm: two collectives
std::vector<int> machines_of(MPI_Comm comm);

/// The number of each rank when machine goes after machine, in the order of their first ranks.
std::vector<int> numbers_by_machine(const std::vector<int>& machine_of);

/// How many of the groups of `size` ranks in a row have ranks on several machines.
/// `machine_of`: by number
int groups_across_machines(const std::vector<int>& machine_of, int size);

/// Ranks on each machine, if every machine has as many; else 0.     `machine_of`: by number
int ranks_per_machine(const std::vector<int>& machine_of);

}  // namespace stoa
