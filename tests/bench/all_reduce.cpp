// The chain of all ranks' fp32 gradients, and their copy to all, the way that is taken where ranks
// lie near each other (through shared memory on one machine, machine by machine on several) beside
// messages from rank to rank, in turns in one run. Both sums are checked against each other.
//   mpirun -n 2 bench_all_reduce [million values] [rounds]      The last line is one JSON object.
#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/core/buffer.h"
#include "parallel/collectives.h"
#include "parallel/machine_parts.h"
#include "parallel/mesh.h"
#include "parallel/mpi_session.h"

using namespace stoa;

namespace {

double seconds_of(Tensor& t, const Communicator& comm) {
    for (float& x : t.as<float>())
        x = static_cast<float>(comm.rank() + 1);
    barrier(comm);
    const auto begin = std::chrono::steady_clock::now();
    chain_sum(t, false, t, comm, {});
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

nlohmann::json quantiles(std::vector<double> x, double scale) {
    std::ranges::sort(x);
    const auto at = [&](double q) {
        return scale * x[static_cast<std::size_t>(q * static_cast<double>(x.size() - 1))];
    };
    return {{"median", at(0.5)}, {"p10", at(0.1)}, {"p90", at(0.9)}};
}

}  // namespace

int main(int argc, char** argv) {
    MpiSession session(argc, argv);
    int size = 1;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    Mesh mesh = make_mesh(size, 1);  // world: messages
    const std::int64_t n = (argc > 1 ? std::atoi(argv[1]) : 5) * 1'000'000;
    const int rounds = argc > 2 ? std::atoi(argv[2]) : 20;
    const MachineGroups* const machines = mesh.dp.machine_groups();
    if (mesh.dp.shared_memory() == nullptr && machines == nullptr) {
        fmt::print("{{\"bench\":\"all_reduce\",\"skipped\":\"no memory is shared\"}}\n");
        close_mesh(mesh);
        session.close();
        return 77;
    }
    Tensor near({n}, DType::fp32), messages({n}, DType::fp32);
    std::vector<double> near_s, messages_s, ratio;
    bool equal = true;
    for (int i = 0; i <= rounds; ++i) {
        const double a = seconds_of(near, mesh.dp), b = seconds_of(messages, mesh.world);
        equal = equal && std::ranges::equal(near.as<float>(), messages.as<float>());
        if (i == 0) continue;  // the first touches the memory
        near_s.push_back(a), messages_s.push_back(b), ratio.push_back(b / a);
    }
    if (mesh.world.rank() == 0) {
        const nlohmann::json report = {{"bench", "all_reduce"},
                                       {"machines", machines ? machines->rail.size() : 1},
                                       {"ranks", size},
                                       {"values", n},
                                       {"equal", equal},
                                       {"near_ms", quantiles(near_s, 1e3)},
                                       {"messages_ms", quantiles(messages_s, 1e3)},
                                       {"messages_over_near", quantiles(ratio, 1.0)}};
        fmt::print("{}\n", report.dump());
    }
    close_mesh(mesh);
    session.close();
    return equal ? 0 : 1;
}
