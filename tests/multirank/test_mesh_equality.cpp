// dp, tp, grad_accum and recompute give the single-rank loss and gradient norm. Every rank computes
// the (1,1) reference by itself; np2 covers (2,1), (1,2), np4 covers (2,2), (4,1), (1,4).
#include <mpi.h>

#include "tests/support/catch.h"
#include "tests/support/tiny_run.h"

using namespace stoa;
using namespace stoa::test;

namespace {

int world_size() {
    int size = 1;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    return size;
}

}  // namespace

TEST_CASE("every mesh gives the single-rank loss and gradient norm over 50 steps", "[multirank]") {
    const Recompute recompute = GENERATE(Recompute::none, Recompute::full);
    const std::int64_t micro_batch = GENERATE(1, 2);
    const bool tied = GENERATE(true, false);
    const Trace reference = tiny_run({.micro_batch = 8, .tie_embeddings = tied}, Mesh{}, 50);
    REQUIRE(reference.loss.back() < 0.8 * reference.loss.front());  // it learns, so steps matter
    const int size = world_size();
    for (int tp = 1; tp <= size; tp *= 2) {
        Mesh mesh = make_mesh(size / tp, tp);
        const Trace trace = tiny_run(
            {.micro_batch = micro_batch, .recompute = recompute, .tie_embeddings = tied}, mesh, 50);
        CAPTURE(size / tp, tp, micro_batch, tied, recompute == Recompute::full);
        CHECK(worst_relative(trace.loss, reference.loss) < 1e-5);
        CHECK(worst_relative(trace.grad_norm, reference.grad_norm) < 1e-5);
        close_mesh(mesh);
    }
}

TEST_CASE("every mesh selects the same keys and learns the same from them", "[multirank]") {
    // Sums in one order, so that a selection cannot differ by a rounding.
    const AttentionConfig attention =
        tiny_attention(AttentionKind::dynamic, KeySelector::tree, GENERATE("T", "PTW"));
    const int size = world_size();
    const auto options = [&](std::int64_t micro_batch, Recompute recompute) {
        return TinyOptions{.micro_batch = micro_batch,
                           .recompute = recompute,
                           .dp_shards = 4,
                           .tp_chunks = 4,
                           .attention = attention};
    };
    const Trace reference = tiny_run(options(2, Recompute::none), Mesh{}, 20);
    REQUIRE(reference.loss.back() < 0.9 * reference.loss.front());
    const Trace dense = tiny_run({.dp_shards = 4, .tp_chunks = 4}, Mesh{}, 20);
    REQUIRE(reference.loss != dense.loss);
    for (int tp = 1; tp <= size; tp *= 2) {
        Mesh mesh = make_mesh(size / tp, tp);
        const Trace trace = tiny_run(options(1, Recompute::selective), mesh, 20);
        CAPTURE(size / tp, tp, attention.layers);
        CHECK(trace.loss == reference.loss);
        CHECK(trace.grad_norm == reference.grad_norm);
        close_mesh(mesh);
    }
}

TEST_CASE("all ranks start from the same logical weights", "[multirank]") {
    const int size = world_size();
    const Exec exec{};
    const TrainState whole = make_train_state(tiny_config({}, 1, 1), 0, 1, exec);
    Mesh mesh = make_mesh(1, size);
    const TrainState part = make_train_state(tiny_config({}, 1, size), mesh.tp_rank(), size, exec);
    for (std::size_t i = 0; i < whole.model.params.size(); ++i) {
        const Param &w = whole.model.params[i], &p = part.model.params[i];
        const auto all = w.master.as<float>(), mine = p.master.as<float>();
        const std::int64_t cols = p.master.cols(), whole_cols = w.master.cols();
        bool equal = true;
        for (std::int64_t e = 0; e < p.master.numel(); ++e) {
            const std::int64_t r = e / cols + (p.cut == TpCut::rows ? p.range.begin : 0);
            const std::int64_t c = e % cols + (p.cut == TpCut::cols ? p.range.begin : 0);
            const bool padding = p.cut == TpCut::rows && e / cols >= p.range.count;
            const float expected =
                padding ? 0.0f : all[static_cast<std::size_t>(r * whole_cols + c)];
            equal = equal && mine[static_cast<std::size_t>(e)] == expected;
        }
        CAPTURE(p.name, mesh.tp_rank());
        CHECK(equal);
    }
    close_mesh(mesh);
}

TEST_CASE("tp ranks keep replicated weights bit-equal", "[multirank]") {
    const int size = world_size();
    Mesh mesh = make_mesh(1, size);
    TrainState s;
    tiny_run({}, mesh, 20, &s);
    for (const Param& p : s.model.params) {
        if (p.cut != TpCut::replicated) continue;
        const auto values = p.master.as<float>();
        std::vector<float> first(values.begin(), values.end());
        MPI_Bcast(first.data(), static_cast<int>(first.size()), MPI_FLOAT, 0, mesh.tp.handle());
        CAPTURE(p.name, mesh.tp_rank());
        CHECK(std::equal(first.begin(), first.end(), values.begin()));
    }
    close_mesh(mesh);
}

TEST_CASE("one rank's non-finite gradient skips the step on all ranks", "[multirank]") {
    const int size = world_size();
    Mesh mesh = make_mesh(size, 1);
    const RunConfig config = tiny_config({.micro_batch = 1}, size, 1);
    TrainState s = make_train_state(config, 0, 1, Exec{}, mesh.dp_rank());
    const auto masters = [&] {
        std::vector<float> all;
        for (const Param& p : s.model.params)
            std::ranges::copy(p.master.as<float>(), std::back_inserter(all));
        return all;
    };
    const std::vector<float> before = masters();
    StepInputs in{.lr = 1e-3};
    in.micro_batches.push_back(tiny_batch(config, 0, mesh.dp_rank()));
    const float good = s.model.params[0].master.as<float>()[0];
    if (mesh.dp_rank() == size - 1) s.model.params[0].master.as<float>()[0] = NAN;
    StepResult r = train_step(s, in, mesh, Exec{});
    CHECK(r.skipped);
    CHECK(s.skipped_in_a_row == 1);
    CHECK(s.optimizer_step == 0);
    s.model.params[0].master.as<float>()[0] = good;
    CHECK(before == masters());
    for (const Param& p : s.model.params)
        for (const float m : p.m.data.as<float>())
            CHECK((m == 0.0f));
    r = train_step(s, in, mesh, Exec{});
    CHECK_FALSE(r.skipped);
    CHECK(s.skipped_in_a_row == 0);
    close_mesh(mesh);
}

TEST_CASE("a stop request of one rank reaches all", "[multirank]") {
    Mesh mesh = make_mesh(world_size(), 1);
    const RunConfig config = tiny_config({.micro_batch = 1}, world_size(), 1);
    TrainState s = make_train_state(config, 0, 1, Exec{}, mesh.dp_rank());
    StepInputs in{.lr = 1e-3};
    in.micro_batches.push_back(tiny_batch(config, 0, mesh.dp_rank()));
    if (mesh.dp_rank() == 1) in.stop = StopRequest::preempted;
    CHECK(train_step(s, in, mesh, Exec{}).stop == StopRequest::preempted);
    close_mesh(mesh);
}
