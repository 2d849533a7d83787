#include <mpi.h>
#include <unistd.h>

#include <bit>
#include <cmath>

#include "kernels/core/buffer.h"
#include "kernels/core/philox.h"
#include "parallel/agree.h"
#include "parallel/collectives.h"
#include "parallel/machine_parts.h"
#include "parallel/mesh.h"
#include "tests/support/catch.h"

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

TEST_CASE("sums through shared memory are the sums of messages", "[multirank]") {
    Mesh mesh = world_mesh();
    REQUIRE(mesh.dp.shared_memory() != nullptr);     // the tests run on one machine
    REQUIRE(mesh.world.shared_memory() == nullptr);  // messages
    // Around the smallest sum that is shared, a slice, a chunk, two chunks.
    const std::int64_t n = GENERATE(4097, 8193, 65535, 65536, 65537, 131072, 300001);
    Tensor wide({n}, DType::fp32), narrow({n}, DType::bf16), exact({n}, DType::fp64);
    const auto fill = [&](int call) {
        for (std::int64_t i = 0; i < n; ++i) {
            const auto r = philox(7, static_cast<std::uint64_t>(i),
                                  static_cast<std::uint64_t>(100 * call + mesh.world.rank()));
            const float x = static_cast<float>(r[0]) * 0x1p-31f - 1.0f;
            wide.as<float>()[static_cast<std::size_t>(i)] = x;
            narrow.as<bf16>()[static_cast<std::size_t>(i)] = to_bf16(x);
            exact.as<double>()[static_cast<std::size_t>(i)] = static_cast<double>(x);
        }
    };
    for (int call = 0; call < 5; ++call) {  // one call's values never reach the next
        fill(call);
        // Ranks come late in turn: nobody may read before the values are there.
        if (mesh.world.rank() == call % mesh.world.size()) usleep(2000);
        all_reduce(wide, ReduceOp::sum, mesh.dp, {});
        all_reduce(narrow, ReduceOp::sum, mesh.dp, {});
        all_reduce(exact, ReduceOp::sum, mesh.world, {});
        std::int64_t wrong = 0;
        std::uint32_t bits = 0;
        for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
            const double want = exact.as<double>()[i];
            const float got = wide.as<float>()[i], rounded = to_float(narrow.as<bf16>()[i]);
            wrong += std::abs(got - want) > 1e-6 || std::abs(rounded - want) > 0.02;
            bits = bits * 31 + std::bit_cast<std::uint32_t>(got) * 7 +
                   std::bit_cast<std::uint32_t>(rounded);
        }
        CHECK(wrong == 0);
        CHECK(all_reduce_scalar(std::int64_t{bits}, ReduceOp::min, mesh.world) ==
              all_reduce_scalar(std::int64_t{bits}, ReduceOp::max, mesh.world));
    }
    close_mesh(mesh);
}

TEST_CASE("a sum has the documented order, through memory and through messages", "[multirank]") {
    Mesh mesh = world_mesh();
    const int size = mesh.world.size();
    const std::int64_t n = GENERATE(3, 4097, 300001);  // all-gather, and more than one chunk
    const auto value = [](int rank, std::int64_t i) {
        const auto r = philox(9, static_cast<std::uint64_t>(i), static_cast<std::uint64_t>(rank));
        return std::ldexp(static_cast<float>(r[0]) - 0x1p31f, static_cast<int>(r[1] % 40) - 20);
    };
    Tensor mine({n}, DType::fp32), tree({n}, DType::fp32), chain({n}, DType::fp32);
    for (std::int64_t i = 0; i < n; ++i)
        mine.as<float>()[static_cast<std::size_t>(i)] = value(mesh.world.rank(), i);
    for (const Communicator* comm : {&mesh.world, &mesh.dp}) {  // messages, shared memory
        std::copy_n(mine.as<float>().data(), n, tree.as<float>().data());
        all_reduce(tree, ReduceOp::sum, *comm, {});
        chain_sum(chain, false, mine, *comm, {});
        chain_sum(chain, true, mine, *comm, {});
        std::int64_t wrong = 0;
        for (std::int64_t i = 0; i < n; ++i) {
            const auto x = [&](int r) { return value(r, i); };
            const float pairs = size == 2 ? x(0) + x(1) : (x(0) + x(1)) + (x(2) + x(3));
            float one = x(0);
            for (int r = 1; r < 2 * size; ++r)
                one += x(r % size);
            wrong += tree.as<float>()[static_cast<std::size_t>(i)] != pairs ||
                     chain.as<float>()[static_cast<std::size_t>(i)] != one;
        }
        CAPTURE(comm->name(), n);
        CHECK(wrong == 0);
    }
    Tensor other({n + 1}, DType::fp32);
    CHECK_THROWS_AS(chain_sum(other, false, mine, mesh.world, {}), ShapeError);
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

namespace {

// `count` values of rank r, and parts of them that go to the ranks in turns.
struct Parts {
    Tensor values, total, whole;
    std::vector<PartSum> sums;
    std::vector<PartCopy> copies;
};
Parts make_parts(DType dtype, std::int64_t count, const Communicator& comm) {
    Parts p{
        Tensor({count, 1}, dtype), Tensor({count, 1}, dtype), Tensor({count, 1}, dtype), {}, {}};
    dispatch_dtype(dtype, [&]<Element T>(T) {
        Draws draws(5, static_cast<std::uint64_t>(comm.rank()));
        for (T& x : p.values.as<T>())
            x = narrow_to<T>(static_cast<Wide<T>>(draws.between(-1000, 1000)) / Wide<T>{7});
        for (std::int64_t i = 0; i < count; ++i)
            p.total.as<T>()[static_cast<std::size_t>(i)] =
                narrow_to<T>(static_cast<Wide<T>>(i % 13));
    });
    std::ranges::copy_n(p.total.view.data, p.total.view.bytes(), p.whole.view.data);
    std::int64_t at = 0;
    for (int i = 0; at < count; ++i) {  // of uneven sizes; some owners get two, some few
        const std::int64_t n =
            std::min<std::int64_t>(count - at, 1 + (i * 7919 + 3 * i) % (count / 3 + 1));
        const int owner = (i + i / 3) % comm.size();
        const TensorView total = p.total.view.slice_rows(at, n);
        p.sums.push_back(
            {owner, owner == comm.rank() ? total : TensorView{}, p.values.view.slice_rows(at, n)});
        p.copies.push_back({owner, total});
        at += n;
    }
    return p;
}

}  // namespace

TEST_CASE("reduce_scatter and all_gather make what chain_sum makes, through memory and messages",
          "[multirank]") {
    Mesh mesh = world_mesh();
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    const std::int64_t count = GENERATE(1, 40, 300001);
    const bool add = GENERATE(false, true);
    for (const Communicator* comm : {&mesh.dp, &mesh.world}) {
        Parts p = make_parts(dtype, count, *comm);
        CAPTURE(dtype_name(dtype), count, add, comm->name());
        chain_sum(p.whole, add, p.values, *comm, {});
        reduce_scatter(p.sums, SumOrder::chain, add, *comm, {});
        all_gather(p.copies, *comm, {});
        CHECK(std::equal(p.whole.view.data, p.whole.view.data + p.whole.view.bytes(),
                         p.total.view.data));
    }
    close_mesh(mesh);
}

TEST_CASE(
    "on several machines, sums and copies make the same bits through the machines' own groups",
    "[multirank]") {
    int size = 1;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (size < 4) return;
    // Two make-believe machines of two ranks, dealt in turns: numbered machine by machine.
    Mesh mesh = make_mesh(4, 1, Overlap::automatic, {0, 1, 0, 1});
    int mpi_rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &mpi_rank);
    CHECK(mesh.world.rank() == std::vector{0, 2, 1, 3}[static_cast<std::size_t>(mpi_rank)]);
    REQUIRE(mesh.dp.shared_memory() == nullptr);
    REQUIRE(mesh.dp.machine_groups() != nullptr);
    REQUIRE(mesh.world.machine_groups() == nullptr);  // messages, rank to rank
    const std::int64_t count = GENERATE(1, 40, 300001);
    const bool add = GENERATE(false, true);
    for (int call = 0; call < 3; ++call) {
        Parts p = make_parts(DType::fp32, count, mesh.dp);
        Tensor chain({count, 1}, DType::fp32);
        std::ranges::copy_n(p.whole.view.data, p.whole.view.bytes(), chain.view.data);
        CAPTURE(count, add, call);
        chain_sum(chain, add, p.values, mesh.world, {});
        if (mesh.world.rank() == call) usleep(2000);  // ranks come late in turn
        machine_sum_parts(p.sums, add, *mesh.dp.machine_groups());
        machine_gather_parts(p.copies, *mesh.dp.machine_groups());
        CHECK(std::equal(chain.view.data, chain.view.data + chain.view.bytes(), p.total.view.data));
        chain_sum(p.whole, add, p.values, mesh.dp, {});  // by either way
        CHECK(std::equal(chain.view.data, chain.view.data + chain.view.bytes(), p.whole.view.data));
    }
    close_mesh(mesh);

    Mesh pairs =
        make_mesh(2, 2, Overlap::automatic, {0, 1, 0, 1});  // tp inside, one dp rank on each
    CHECK(pairs.tp_across_machines == 0);
    CHECK(pairs.tp.shared_memory() != nullptr);
    CHECK(pairs.dp.shared_memory() == nullptr);
    CHECK(pairs.dp.machine_groups() == nullptr);
    CHECK(pairs.dp_queue->own_thread());  // of itself, where a group crosses machines
    CHECK_FALSE(pairs.tp_queue->own_thread());
    close_mesh(pairs);
    Mesh torn = make_mesh(1, 4, Overlap::automatic, {0, 1, 0, 1});
    CHECK(torn.tp_across_machines == 1);
    close_mesh(torn);
}

TEST_CASE("a queue runs collectives in order beside others, and keeps the first error",
          "[multirank]") {
    int size = 1;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    Mesh mesh = make_mesh(size, 1, Overlap::on);
    REQUIRE(mesh.dp_queue->own_thread());
    take_comm_seconds();
    constexpr int kJobs = 12;
    std::vector<std::int64_t> sums(kJobs);
    CommQueue::Ticket last = 0;
    for (int i = 0; i < kJobs; ++i)
        last = mesh.dp_queue->submit(
            [&, i](Stream) {
                const std::int64_t before = i == 0 ? 1 : sums[static_cast<std::size_t>(i - 1)];
                sums[static_cast<std::size_t>(i)] =
                    all_reduce_scalar(before, ReduceOp::sum, mesh.dp_beside);
            },
            {});
    std::int64_t meanwhile = 1;
    for (int i = 0; i < kJobs; ++i)
        meanwhile = all_reduce_scalar(meanwhile, ReduceOp::max, mesh.world);
    mesh.dp_queue->wait(last, {});
    std::int64_t power = 1;
    for (const std::int64_t sum : sums)
        CHECK(sum == (power *= size));
    CHECK(take_comm_seconds().hidden > 0.0);

    // A state may have tickets of a mesh before this one.
    CommQueue().wait(last, {});

    bool ran = false;
    mesh.dp_queue->submit([](Stream) { throw CollectiveError({.what = "lost a peer"}); }, {});
    const auto after = mesh.dp_queue->submit([&](Stream) { ran = true; }, {});
    CHECK_THROWS_AS(mesh.dp_queue->wait(after, {}), CollectiveError);
    CHECK(!ran);  // dropped
    close_mesh(mesh);
}
