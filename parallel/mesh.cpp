#include "parallel/mesh.h"

#include <algorithm>

#include "parallel/check_mpi.h"
#include "parallel/node_map.h"

namespace stoa {
namespace {

Communicator split(MPI_Comm parent, int color, int key, const char* name) {
    MPI_Comm comm = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split(parent, color, key, &comm), "MPI_Comm_split", Communicator{});
    return Communicator{comm, name};
}

bool several_threads() {
    int level = MPI_THREAD_SINGLE;
    MPI_Query_thread(&level);
    return level >= MPI_THREAD_MULTIPLE;
}

}  // namespace

Mesh make_mesh(std::int64_t dp, std::int64_t tp, Overlap overlap, std::vector<int> machine_of,
               Site site) {
    int started = 0;
    MPI_Initialized(&started);
    int rank = 0, size = 1;
    if (started) {
        MPI_Comm_rank(MPI_COMM_WORLD, &rank);
        MPI_Comm_size(MPI_COMM_WORLD, &size);
    }
    if (dp * tp != size)
        throw ConfigError(
            {.what = "the mesh does not match the ranks that were started",
             .where = "parallel.dp, parallel.tp",
             .expected = "dp x tp = " + std::to_string(size),
             .actual = std::to_string(dp) + " x " + std::to_string(tp),
             .hint = "start " + std::to_string(dp * tp) + " ranks or set parallel.dp=auto"});
    Mesh mesh;
    if (!started) return mesh;
    if (machine_of.empty()) machine_of = machines_of(MPI_COMM_WORLD);
    const int number = numbers_by_machine(machine_of)[static_cast<std::size_t>(rank)];
    std::ranges::sort(machine_of);  // from here on by number
    const int tp_size = static_cast<int>(tp);
    mesh.tp_across_machines = groups_across_machines(machine_of, tp_size);
    mesh.world = split(MPI_COMM_WORLD, 0, number, "world");
    {
        const CollectiveScope scope{"split", mesh.world, 4, "groups", site};
        mesh.tp = split(MPI_COMM_WORLD, number / tp_size, number, "tp");
        mesh.dp = split(MPI_COMM_WORLD, number % tp_size, number, "dp");
        mesh.dp_beside = split(MPI_COMM_WORLD, number % tp_size, number, "dp beside");
        mesh.tp_beside = split(MPI_COMM_WORLD, number / tp_size, number, "tp beside");
    }
    std::vector<int> dp_machines;
    for (std::size_t r = static_cast<std::size_t>(number % tp_size); r < machine_of.size();
         r += static_cast<std::size_t>(tp_size))
        dp_machines.push_back(machine_of[r]);
    const auto on_one = [](const std::vector<int>& machines) {
        return std::ranges::count(machines, machines[0]) == std::ssize(machines);
    };
    const auto share = [&](Communicator& comm, const std::vector<int>& machines,
                           SharedMemory::Wait wait) {
        on_one(machines) ? comm.share_memory(wait, site)
                         : comm.share_machines(machines, wait, site);
    };
    const auto tp_first = machine_of.begin() + number / tp_size * tp_size;
    const std::vector<int> tp_machines(tp_first, tp_first + tp_size);
    share(mesh.tp, tp_machines, SharedMemory::Wait::spin);
    share(mesh.dp, dp_machines, SharedMemory::Wait::spin);
    const auto open_queue = [&](Communicator& beside, const std::vector<int>& machines, Lane lane,
                                std::unique_ptr<CommQueue>& queue) {
        const bool wanted =
            overlap == Overlap::on || (overlap == Overlap::automatic && !on_one(machines));
        const bool thread = wanted && beside.size() > 1 && several_threads();
        if (thread) queue = std::make_unique<CommQueue>(/*own_thread=*/true, lane);
        share(beside, machines, thread ? SharedMemory::Wait::sleep : SharedMemory::Wait::spin);
    };
    open_queue(mesh.dp_beside, dp_machines, Lane::dp_queue, mesh.dp_queue);
    open_queue(mesh.tp_beside, tp_machines, Lane::tp_queue, mesh.tp_queue);
    return mesh;
}

void open_side_streams(Mesh& mesh, Device device) {
    if (mesh.dp.size() == 1) return;
    const bool host_sums = mesh.dp_beside.nccl() == nullptr || !mesh.dp_beside.fast_sums();
    mesh.dp_queue =
        std::make_unique<CommQueue>(host_sums && several_threads(), Lane::dp_queue, device);
    if (host_sums && mesh.dp.nccl() != nullptr)
        mesh.dp_gathers = std::make_unique<CommQueue>(/*own_thread=*/false, Lane::dp_queue, device);
}

void close_mesh(Mesh& mesh) {
    mesh.dp_gathers.reset();
    mesh.dp_queue = std::make_unique<CommQueue>();  // the old ones end their jobs first
    mesh.tp_queue = std::make_unique<CommQueue>();
    mesh.dp_beside.close();
    mesh.tp_beside.close();
    mesh.dp.close();
    mesh.tp.close();
    mesh.world.close();
}

}  // namespace stoa
