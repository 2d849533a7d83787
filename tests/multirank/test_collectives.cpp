#include <mpi.h>

#include "tests/support/catch.h"

#include "kernels/core/buffer.h"
#include "parallel/agree.h"
#include "parallel/collectives.h"
#include "parallel/mesh.h"

using namespace stoa;

namespace {

Mesh world_mesh() {
    int size = 1;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    return make_mesh(size, 1);
}

}  // namespace

TEST_CASE("all_reduce sums, takes maxima and minima in every dtype", "[multirank]") {
    Mesh mesh = world_mesh();
    const int rank = mesh.world.rank(), size = mesh.world.size();
    const std::int64_t n = GENERATE(1, 5, 100000);
    const double sum = size * (size - 1) / 2.0;
    Tensor a({n}, DType::fp32), b({n}, DType::bf16), c({n}, DType::fp64), d({n}, DType::int32);
    for (float& x : a.as<float>())
        x = static_cast<float>(rank);
    for (bf16& x : b.as<bf16>())
        x = to_bf16(static_cast<float>(rank));
    for (double& x : c.as<double>())
        x = rank;
    for (std::int32_t& x : d.as<std::int32_t>())
        x = rank;
    all_reduce(a, ReduceOp::sum, mesh.world, {});
    all_reduce(b, ReduceOp::sum, mesh.world, {});
    all_reduce(c, ReduceOp::max, mesh.world, {});
    all_reduce(d, ReduceOp::min, mesh.world, {});
    bool right = true;
    for (const float x : a.as<float>())
        right = right && x == static_cast<float>(sum);
    for (const bf16 x : b.as<bf16>())
        right = right && to_float(x) == static_cast<float>(sum);
    for (const double x : c.as<double>())
        right = right && x == size - 1;
    for (const std::int32_t x : d.as<std::int32_t>())
        right = right && x == 0;
    CHECK(right);
    close_mesh(mesh);
}

TEST_CASE("a mesh puts tp ranks next to each other", "[multirank]") {
    int rank = 0, size = 1;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    Mesh mesh = make_mesh(size / 2, 2);
    CHECK(mesh.tp_rank() == rank % 2);
    CHECK(mesh.dp_rank() == rank / 2);
    close_mesh(mesh);
    CHECK_THROWS_AS(make_mesh(size, 2), ConfigError);
}

TEST_CASE("agree makes one rank's error everyone's", "[multirank]") {
    Mesh mesh = world_mesh();
    const int failing = GENERATE(0, 1);
    try {
        agree(mesh.world, "phase", [&] {
            if (mesh.world.rank() >= failing)
                throw DataError({.what = "broken",
                                 .where = "file " + std::to_string(mesh.world.rank()),
                                 .expected = "whole",
                                 .actual = "half",
                                 .hint = "mend it"});
        });
        FAIL("no error");
    } catch (const Error& e) {
        CHECK(e.code() == ExitCode::data);
        CHECK(e.fields().what == "broken");
        CHECK(e.fields().where.find("file " + std::to_string(failing)) == 0);
        CHECK(e.fields().where.find("rank " + std::to_string(failing)) != std::string::npos);
        CHECK(e.fields().hint == "mend it");
    }
    agree(mesh.world, "phase", [] {});  // and the group still works
    try {
        agree(mesh.world, "phase", [&] {
            if (mesh.world.rank() == 1) throw std::runtime_error("surprise");
        });
        FAIL("no error");
    } catch (const Error& e) {
        CHECK(e.code() == ExitCode::internal);
        CHECK(e.fields().what == "surprise");
    }
    close_mesh(mesh);
}
