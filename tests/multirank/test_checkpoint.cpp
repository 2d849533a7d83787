// A checkpoint written on one mesh comes back bit for bit on every other; an error of one rank is
// everybody's.
#include <mpi.h>

#include <filesystem>
#include <memory>

#include "checkpoints/rank_file.h"
#include "checkpoints/saver.h"
#include "parallel/collectives.h"
#include "tests/support/catch.h"
#include "tests/support/checkpoints.h"

using namespace stoa;
using namespace stoa::test;
namespace fs = std::filesystem;

namespace {

int world_size() {
    int size = 1;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    return size;
}

/// A mesh for one scope; all ranks leave it together.
struct ScopedMesh {
    Mesh mesh;
    explicit ScopedMesh(int tp) : mesh(make_mesh(world_size() / tp, tp)) {}
    ~ScopedMesh() { close_mesh(mesh); }
    ScopedMesh(const ScopedMesh&) = delete;
    ScopedMesh& operator=(const ScopedMesh&) = delete;
};

/// Rank 0's temporary directory on all ranks.
struct SharedDir {
    std::unique_ptr<TempDir> own;
    std::string path;
    SharedDir() {
        const ScopedMesh world(1);
        if (world.mesh.world.rank() == 0) own = std::make_unique<TempDir>();
        path = broadcast(own ? own->path : "", 0, world.mesh.world);
    }
    ~SharedDir() { MPI_Barrier(MPI_COMM_WORLD); }
};

std::vector<int> tp_sizes() {
    std::vector<int> sizes;
    for (int tp = 1; tp <= world_size(); tp *= 2)
        sizes.push_back(tp);
    return sizes;
}

std::string save(const std::string& run, std::int64_t step, int tp) {
    const ScopedMesh s(tp);
    State state = make_state(s.mesh.tp_rank(), s.mesh.tp_size());
    fill(state, static_cast<std::uint64_t>(step));
    return save_checkpoint(run, make_meta(step), state.shards, s.mesh);
}

/// The error that every rank must get alike, "" when none.
template <class Fn>
std::string common_error(const Mesh& mesh, Fn&& fn) {
    std::string text;
    try {
        fn();
    } catch (const Error& e) {
        CHECK(e.code() == ExitCode::checkpoint);
        text = e.what();
    }
    CHECK(broadcast(text, 0, mesh.world) == text);
    return text;
}

}  // namespace

TEST_CASE("any mesh loads what any mesh saved", "[checkpoint]") {
    const SharedDir run;
    std::vector<CheckpointTensor> first;
    for (const int from : tp_sizes()) {
        const std::string dir = save(run.path, from, from);
        const auto info = read_checkpoint_info(dir);
        CHECK(info.tp == from);
        CHECK(info.files.size() == static_cast<std::size_t>(from) + 1);
        if (from == 1) first = info.tensors;
        for (const int to : tp_sizes()) {
            CAPTURE(from, to);
            const ScopedMesh s(to);
            CHECK(find_checkpoint(run.path, s.mesh) == dir);
            State back = make_state(s.mesh.tp_rank(), s.mesh.tp_size());
            const CheckpointMeta meta = load_checkpoint(dir, back.shards, s.mesh);
            CHECK(meta.counters == make_meta(from).counters);
            CHECK(count_wrong(back, static_cast<std::uint64_t>(from)) == 0);
        }
        State alone = make_state(0, 1);  // and a group of one, as `stoa generate` is
        load_checkpoint(dir, alone.shards, Mesh{});
        CHECK(count_wrong(alone, static_cast<std::uint64_t>(from)) == 0);
    }
}

TEST_CASE("the hash of a tensor does not depend on the mesh", "[checkpoint]") {
    const SharedDir one, many;
    const auto a = read_checkpoint_info(save(one.path, 9, 1)),
               b = read_checkpoint_info(save(many.path, 9, world_size()));
    REQUIRE(a.tensors.size() == b.tensors.size());
    for (std::size_t i = 0; i < a.tensors.size(); ++i) {
        CHECK(a.tensors[i].name == b.tensors[i].name);
        CHECK(a.tensors[i].xxh3 == b.tensors[i].xxh3);
    }
}

TEST_CASE("an error on one rank is the same error on all", "[checkpoint]") {
    const SharedDir run;
    const std::string good = save(run.path, 1, world_size());
    const ScopedMesh s(world_size());
    const int last = s.mesh.world.size() - 1;
    const bool is_last = s.mesh.world.rank() == last;
    State state = make_state(s.mesh.tp_rank(), s.mesh.tp_size());
    SECTION("a tensor of another name") {
        if (is_last) state.shards[0].name = "stray";
        const std::string e =
            common_error(s.mesh, [&] { load_checkpoint(good, state.shards, s.mesh); });
        CHECK_THAT(e, Catch::Contains("stray") && Catch::Contains("rank " + std::to_string(last)));
    }
    SECTION("ranks that save different tensors") {
        if (is_last) state.shards[0].name = "stray";
        const std::string e = common_error(
            s.mesh, [&] { save_checkpoint(run.path, make_meta(2), state.shards, s.mesh); });
        CHECK_THAT(e, Catch::Contains("tile"));
    }
    SECTION("a rank that cannot reach the directory") {
        const std::string elsewhere = is_last ? run.path + "/not-mounted-here" : run.path;
        const std::string e = common_error(
            s.mesh, [&] { save_checkpoint(elsewhere, make_meta(2), state.shards, s.mesh); });
        CHECK_THAT(e, Catch::Contains("not-mounted-here") && Catch::Contains("shared file system"));
        const std::string f = common_error(s.mesh, [&] {
            load_checkpoint(is_last ? good + "-missing" : good, state.shards, s.mesh);
        });
        CHECK_THAT(f, Catch::Contains("-missing"));
    }
    SECTION("a rank that sees another checkpoint") {
        const std::string other = save(run.path, 3, world_size());
        const std::string e = common_error(
            s.mesh, [&] { load_checkpoint(is_last ? other : good, state.shards, s.mesh); });
        CHECK_THAT(e, Catch::Contains("another checkpoint"));
        if (s.mesh.world.rank() == 0) fs::remove_all(other);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    CHECK(list_checkpoints(run.path) == std::vector<std::string>{good});
    CHECK_FALSE(fs::exists(run.path + "/ckpt/.step-000000002.g0.tmp"));
    CHECK(find_checkpoint(run.path, s.mesh) == good);
}

TEST_CASE("a save beside the steps holds the bits of its step, on all ranks", "[checkpoint]") {
    const SharedDir run;
    const ScopedMesh s(world_size());
    const int last = s.mesh.world.size() - 1;
    State state = make_state(s.mesh.tp_rank(), s.mesh.tp_size());
    Buffer memory(snapshot_bytes(state.shards, s.mesh.tp_rank(), s.mesh.dp_rank()) + 64);
    const TensorView snapshot{memory.data(), DType::int32, {memory.bytes() / 4}, {}};
    CheckpointSaver saver(run.path, {.keep = {1}, .read_back = true});
    std::uint64_t step = 0;
    const auto save_beside = [&](const std::vector<TensorShard>& shards) {
        fill(state, ++step);
        saver.start(make_meta(static_cast<std::int64_t>(step)), shards, snapshot, s.mesh);
        for (;;) {
            fill(state, 1000 + step);
            const SaveWords mine = saver.words();
            std::int32_t words[2] = {mine.busy, mine.failed};
            all_reduce({reinterpret_cast<std::byte*>(words), DType::int32, {2}, {}}, ReduceOp::max,
                       s.mesh.world, {});
            if (auto report = saver.advance({words[0], words[1]}, s.mesh)) return *report;
        }
    };
    const SaveReport first = save_beside(state.shards);
    REQUIRE_FALSE(first.failure);
    State back = make_state(s.mesh.tp_rank(), s.mesh.tp_size());
    load_checkpoint(first.dir, back.shards, s.mesh);
    CHECK(count_wrong(back, 1) == 0);
    // One rank cannot write: all hear it, nothing is left, the one before stays.
    std::vector<TensorShard> bad = state.shards;
    if (s.mesh.world.rank() == last) bad[0].row_count = 1 << 20;
    const SaveReport failed = save_beside(bad);
    REQUIRE(failed.failure);
    CHECK(failed.dir.empty());
    CHECK_THAT(failed.failure->what(), Catch::Contains("rank " + std::to_string(last)));
    CHECK(list_checkpoints(run.path) == std::vector<std::string>{first.dir});
    const SaveReport third = save_beside(state.shards);
    REQUIRE_FALSE(third.failure);
    MPI_Barrier(MPI_COMM_WORLD);
    CHECK(list_checkpoints(run.path) == std::vector<std::string>{third.dir});  // pruned
    load_checkpoint(third.dir, back.shards, s.mesh);
    CHECK(count_wrong(back, 3) == 0);
}

TEST_CASE("a file that is damaged for one reader is damaged for all", "[checkpoint]") {
    const SharedDir run;
    const std::string good = save(run.path, 1, world_size()), bad = save(run.path, 2, world_size());
    const ScopedMesh s(world_size());
    const std::string path = fmt::format("{}/rank-{:04}.h5", bad, world_size() - 1);
    if (s.mesh.world.rank() == 0) {
        std::string bytes = slurp(path);  // of the same length, wrong in every byte
        for (char& b : bytes)
            b = static_cast<char>(b ^ 1);
        spill(path, bytes);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    State state = make_state(s.mesh.tp_rank(), s.mesh.tp_size());
    const std::string e = common_error(s.mesh, [&] { load_checkpoint(bad, state.shards, s.mesh); });
    CHECK_THAT(e, Catch::Contains("damaged data of tensor"));
    CHECK(find_checkpoint(run.path, s.mesh) == good);
    MPI_Barrier(MPI_COMM_WORLD);
    if (s.mesh.world.rank() == 0) fs::remove(path);
    MPI_Barrier(MPI_COMM_WORLD);
    CHECK(find_checkpoint(run.path, s.mesh) == good);
}
