#include "parallel/node_map.h"

#include <algorithm>
#include <map>
#include <numeric>

namespace stoa {

std::vector<int> machines_of(MPI_Comm comm) {
    int rank = 0, size = 1, first = 0;
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &size);
    MPI_Comm here = MPI_COMM_NULL;
    MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &here);
    first = rank;
    MPI_Bcast(&first, 1, MPI_INT, 0, here);
    MPI_Comm_free(&here);
    std::vector<int> firsts(static_cast<std::size_t>(size));
    MPI_Allgather(&first, 1, MPI_INT, firsts.data(), 1, MPI_INT, comm);
    std::map<int, int> machines;
    for (int& f : firsts)
        f = machines.try_emplace(f, static_cast<int>(machines.size())).first->second;
    return firsts;
}

std::vector<int> numbers_by_machine(const std::vector<int>& machine_of) {
    std::vector<int> ranks(machine_of.size()), numbers(machine_of.size());
    std::iota(ranks.begin(), ranks.end(), 0);
    std::ranges::stable_sort(ranks, {},
                             [&](int r) { return machine_of[static_cast<std::size_t>(r)]; });
    for (std::size_t n = 0; n < ranks.size(); ++n)
        numbers[static_cast<std::size_t>(ranks[n])] = static_cast<int>(n);
    return numbers;
}

int groups_across_machines(const std::vector<int>& machine_of, int size) {
    int across = 0;
    const auto step = static_cast<std::size_t>(size);
    for (std::size_t first = 0; first + step <= machine_of.size(); first += step)
        across += std::any_of(machine_of.begin() + static_cast<std::ptrdiff_t>(first),
                              machine_of.begin() + static_cast<std::ptrdiff_t>(first + step),
                              [&](int m) { return m != machine_of[first]; });
    return across;
}

int ranks_per_machine(const std::vector<int>& machine_of) {
    std::size_t per = 0;
    while (per < machine_of.size() && machine_of[per] == machine_of[0])
        ++per;
    if (per == 0 || machine_of.size() % per != 0) return 0;
    for (std::size_t r = 0; r < machine_of.size(); ++r) {
        const std::size_t first = r / per * per;
        if (machine_of[r] != machine_of[first]) return 0;
        if (first >= per && machine_of[first] == machine_of[first - 1]) return 0;
    }
    return static_cast<int>(per);
}

}  // namespace stoa
