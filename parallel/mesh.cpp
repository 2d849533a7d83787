#include "parallel/mesh.h"

#include "parallel/check_mpi.h"

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

Mesh make_mesh(std::int64_t dp, std::int64_t tp, bool overlap) {
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
    const int tp_size = static_cast<int>(tp);
    mesh.world = split(MPI_COMM_WORLD, 0, rank, "world");
    mesh.tp = split(MPI_COMM_WORLD, rank / tp_size, rank, "tp");
    mesh.dp = split(MPI_COMM_WORLD, rank % tp_size, rank, "dp");
    mesh.dp_beside = split(MPI_COMM_WORLD, rank % tp_size, rank, "dp beside");
    mesh.tp_beside = split(MPI_COMM_WORLD, rank / tp_size, rank, "tp beside");
    mesh.tp.share_memory();
    mesh.dp.share_memory();
    const auto open_queue = [&](Communicator& beside, std::unique_ptr<CommQueue>& queue) {
        const bool thread = overlap && beside.size() > 1 && several_threads();
        if (thread) queue = std::make_unique<CommQueue>(/*own_thread=*/true);
        beside.share_memory(thread ? SharedMemory::Wait::sleep : SharedMemory::Wait::spin);
    };
    open_queue(mesh.dp_beside, mesh.dp_queue);
    open_queue(mesh.tp_beside, mesh.tp_queue);
    return mesh;
}

void close_mesh(Mesh& mesh) {
    mesh.dp_queue = std::make_unique<CommQueue>();  // the old ones end their jobs first
    mesh.tp_queue = std::make_unique<CommQueue>();
    mesh.dp_beside.close();
    mesh.tp_beside.close();
    mesh.dp.close();
    mesh.tp.close();
    mesh.world.close();
}

}  // namespace stoa
