// The whole training path on a device: arena, copies, collectives, optimizer, checkpoints,
// decoding. Kernels run on the host here (kernels/cuda/host), where a line that touches device
// memory without a copy ends the program. The products of the vendor's library and attention are
// there the CPU's, so every bit must be: with `fast` sums, for the library knows no chain over
// tokens.
#include <mpi.h>

#include "checkpoints/saver.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/host/device_pages.h"
#include "kernels/cuda/host/recording.h"
#include "kernels/cuda/host/streams.h"
#include "kernels/device_memory.h"
#include "parallel/collectives.h"
#include "tests/support/catch.h"
#include "tests/support/programs.h"
#include "tests/support/texts.h"
#include "tests/support/tiny_run.h"
#include "trainer/inference/shared_prefill.h"
#include "trainer/model/dp_traffic.h"

using namespace stoa;
using namespace stoa::test;

namespace {

int world_size() {
    int started = 0, size = 1;
    MPI_Initialized(&started);
    if (started) MPI_Comm_size(MPI_COMM_WORLD, &size);
    return size;
}

const Exec& device() {
    static const cuda::CudaStream stream;
    static const Exec exec{{DeviceKind::cuda, 0}, stream.stream()};
    return exec;
}

// Masters and moments, bytes as they are: too many to be printed.
std::vector<std::byte> state_bytes(const TrainState& s, const Exec& exec) {
    std::vector<std::byte> all;
    for (const Param& p : s.model.params)
        for (const TensorView& t : {p.master, p.m.data, p.m.scale, p.v.data, p.v.scale})
            std::ranges::copy(read_back<std::byte>(t, exec), std::back_inserter(all));
    return all;
}

TinyOptions options_of(Recipe recipe) {
    TinyOptions o{.micro_batch = 2, .recompute = Recompute::selective, .recipe = recipe};
    o.determinism = Determinism::fast;
    if (recipe != Recipe::fp32) {
        o.whole_blocks = true;
        o.global_batch = 4;
        o.micro_batch = 1;
    }
    return o;
}

void check_same(const TinyOptions& options, const Mesh& mesh, std::int64_t steps,
                std::int64_t begin = 0) {
    TrainState cpu, gpu;
    const auto run = [&](TrainState& s, const Exec& exec) {
        s = make_train_state(tiny_config(options, mesh.dp_size(), mesh.tp_size()), mesh.tp_rank(),
                             mesh.tp_size(), exec, mesh.dp_rank());
        return tiny_steps(s, mesh, begin, begin + steps, exec);
    };
    const Trace reference = run(cpu, Exec{}), trace = run(gpu, device());
    CHECK(trace.loss == reference.loss);
    CHECK(trace.grad_norm == reference.grad_norm);
    CHECK((state_bytes(gpu, device()) == state_bytes(cpu, Exec{})));
    CHECK(cuda::host::is_device_memory(gpu.arena.data()));
    CHECK_FALSE(cuda::host::is_device_memory(gpu.snapshot.data));
}

}  // namespace

TEST_CASE("a device trains as the CPU does, bit for bit", "[multirank]") {
    if (world_size() > 2) return;  // of one rank: two have seen it
    const Recipe recipe = GENERATE(Recipe::fp32, Recipe::bf16, Recipe::r30);
    CAPTURE(recipe_name(recipe));
    check_same(options_of(recipe), Mesh{}, recipe == Recipe::fp32 ? 4 : 2);
}

TEST_CASE("so it does with every recompute, untied and with several micro-batches", "[multirank]") {
    if (world_size() > 2) return;
    TinyOptions o = options_of(Recipe::fp32);
    o.recompute = GENERATE(Recompute::none, Recompute::full);
    o.tie_embeddings = o.recompute == Recompute::none;
    o.micro_batch = 1;
    check_same(o, Mesh{}, 2);
}

namespace {

std::int64_t replays() { return cuda::host::graph_counts().replayed; }

// Of so many steps of graph_options in three layers: the forward pass of each micro-batch, and the
// backward of a step's first and of the others, but for each one's first time.
std::int64_t replays_of(std::int64_t steps) {
    return 3 * ((4 * steps - 1) + (steps - 1) + (3 * steps - 1));
}

// Four micro-batches a step.
TinyOptions graph_options(Recipe recipe) {
    TinyOptions o = options_of(recipe);
    o.global_batch = 4;
    o.micro_batch = 1;
    return o;
}
TrainState graph_state(const TinyOptions& o) {
    return make_train_state(tiny_config(o, 1, 1), 0, 1, device());
}

}  // namespace

// Each pass of each layer (forward; backward that overwrites; that adds) is run once and recorded
// when it comes again; every replay is held against what it would do without (host_graph.cpp).
TEST_CASE("blocks run from graphs, with the bits of the CPU", "[multirank]") {
    if (world_size() > 2) return;
    const auto [recipe, recompute] =
        GENERATE(std::pair{Recipe::fp32, Recompute::none},
                 std::pair{Recipe::r30, Recompute::full},  // bf16 gradients, rounded at random:
                 std::pair{Recipe::r45, Recompute::selective});
    CAPTURE(recipe_name(recipe));
    TinyOptions o = graph_options(recipe);
    o.recompute = recompute;
    const std::int64_t before = replays();
    check_same(o, Mesh{}, 3, kSampleEvery - 3);
    CHECK(replays() - before == replays_of(recipe == Recipe::fp32 ? 3 : 2));  // samples: by itself
}

TEST_CASE("so do layers that select keys, but for those with rows that the host draws",
          "[multirank]") {
    if (world_size() > 2) return;
    TinyOptions o = graph_options(Recipe::fp32);
    const bool helped = GENERATE(false, true);
    o.attention = helped ? helped_attention(0.25, 0.5)
                         : tiny_attention(AttentionKind::dynamic,
                                          GENERATE(KeySelector::tree, KeySelector::importance));
    const std::int64_t before = replays(), all = replays_of(2);
    check_same(o, Mesh{}, 2);
    if (helped)
        CHECK(replays() - before < all);
    else
        CHECK(replays() - before == all);
}

TEST_CASE("what is baked into a graph and changes is found", "[multirank]") {
    if (world_size() > 2) return;
    const Mesh mesh;
    TrainState s = graph_state(graph_options(Recipe::fp32));
    tiny_steps(s, mesh, 0, 1, device());
    s.config.model.norm_eps *= 2.0;
    CHECK_THROWS_WITH(tiny_steps(s, mesh, 1, 2, device()),
                      Catch::Contains("rms_norm") && Catch::Contains("argument"));
}

TEST_CASE("graphs outlive an evaluation, and begin anew with another shape", "[multirank]") {
    if (world_size() > 2) return;
    const Mesh mesh;
    TrainState s = graph_state(graph_options(Recipe::fp32));
    const std::int64_t base = cuda::host::graph_counts().recorded;
    const auto recorded = [&] { return cuda::host::graph_counts().recorded - base; };
    tiny_steps(s, mesh, 0, 2, device());
    const std::int64_t all = recorded();
    MicroBatch half = tiny_batch(s.config, 0, 0);
    half.seq_len /= 2;
    for (auto* ids : {&half.tokens, &half.targets, &half.key_begin})
        ids->resize(static_cast<std::size_t>(half.seq_len));
    load_micro_batch(s, half, device());
    const std::int64_t before = replays();
    model_forward(s, mesh, device());  // rows of its own
    CHECK(replays() == before);
    tiny_steps(s, mesh, 2, 3, device());
    CHECK(recorded() == all);
    s.config.stages[0].seq_len /= 2;
    tiny_steps(s, mesh, 3, 5, device());
    CHECK(recorded() == 2 * all);
}

TEST_CASE("STOA_GRAPHS=off runs every kernel by itself", "[multirank]") {
    if (world_size() > 2) return;
    setenv("STOA_GRAPHS", "off", 1);
    TrainState s = graph_state(graph_options(Recipe::fp32));
    const std::int64_t before = replays();
    tiny_steps(s, Mesh{}, 0, 2, device());
    unsetenv("STOA_GRAPHS");
    CHECK(replays() == before);
}

TEST_CASE("so it does on every mesh", "[multirank]") {
    const int size = world_size();
    const bool sequence = GENERATE(false, true);
    const std::int64_t zero = GENERATE(1, 3);
    for (int tp = 1; tp <= size; tp *= 2) {
        if (sequence != (tp > 1 && zero == 3)) continue;
        Mesh mesh = make_mesh(size / tp, tp);
        TinyOptions o = options_of(Recipe::fp32);
        o.micro_batch = 1;
        o.zero = zero;
        o.sequence = sequence;
        CAPTURE(size / tp, tp, sequence, zero);
        check_same(o, mesh, 2);
        close_mesh(mesh);
    }
}

TEST_CASE("8-bit weights cross between ranks on a device", "[multirank]") {
    Mesh mesh = make_mesh(world_size(), 1);
    TinyOptions o = options_of(Recipe::r30);
    o.global_batch = 4;
    check_same(o, mesh, 2);
    close_mesh(mesh);
}

// With gathers and sums on a stream of their own. In the two orders of deferred work a wait that is
// missing shows in the bits (kernels/cuda/host/streams.h).
TEST_CASE("what data parallel sends beside the computation waits for it, and it for that",
          "[multirank]") {
    using cuda::host::Order;
    const auto [order, zero, thread] = GENERATE(table<Order, std::int64_t, bool>({
        {Order::on_demand, 1, true},
        {Order::side_first, 3, true},
        {Order::on_demand, 3, false},
        {Order::side_first, 0, false},
    }));
    CAPTURE(static_cast<int>(order), zero, thread);
    const int tp = world_size() == 4 ? 2 : 1;
    Mesh mesh = make_mesh(world_size() / tp, tp);
    open_side_streams(mesh, device().device);
    REQUIRE(mesh.dp_queue->own_stream());
    CHECK(mesh.dp_queue->own_thread());
    if (!thread)
        mesh.dp_queue =
            std::make_unique<CommQueue>(/*own_thread=*/false, Lane::dp_queue, device().device);
    TinyOptions o = options_of(Recipe::fp32);
    o.micro_batch = 1;
    o.zero = zero;
    if (zero == 1) {  // several shards a rank, whose sums wait for each other
        o.determinism = Determinism::automatic;
        o.dp_shards = o.tp_chunks = 4;
    }
    Mesh plain = make_mesh(world_size() / tp, tp);
    TrainState at_once, deferred;
    const Trace reference = tiny_run(o, plain, 2, &at_once, device());
    close_mesh(plain);
    const cuda::host::OrderScope scope(order, device().stream);
    const Trace trace = tiny_run(o, mesh, 2, &deferred, device());
    CHECK(trace.loss == reference.loss);
    CHECK(trace.grad_norm == reference.grad_norm);
    CHECK((state_bytes(deferred, device()) == state_bytes(at_once, device())));
    close_mesh(mesh);
}

namespace {

// Saves `s` as it is in `dir`.
void save(const TrainState& s, const std::string& dir, const Mesh& mesh, std::int64_t step,
          const Exec& exec) {
    CheckpointSaver saver(dir, {});
    saver.start({.step = step}, checkpoint_shards(s.model), s.snapshot, mesh, false, exec.stream);
    const SaveReport report = saver.finish(mesh);
    if (report.failure) FAIL(report.failure->what());
}

TrainState load(const RunConfig& config, const std::string& dir, const Mesh& mesh,
                std::int64_t updates, const Exec& exec, std::int64_t at_most = kAnyStep) {
    TrainState s = make_train_state(config, mesh.tp_rank(), mesh.tp_size(), exec, mesh.dp_rank());
    load_checkpoint(find_checkpoint(dir, mesh, at_most), checkpoint_shards(s.model), mesh,
                    LoadTensors::all, exec.stream);
    refresh_work(s.model, mesh, exec);
    s.optimizer_step = updates;
    return s;
}

}  // namespace

TEST_CASE("a checkpoint goes from a device to the CPU and back", "[multirank]") {
    const bool to_cpu = GENERATE(true, false);
    const Recipe recipe = to_cpu ? Recipe::r30 : Recipe::fp32;
    const Exec first = to_cpu ? device() : Exec{}, then = to_cpu ? Exec{} : device();
    const int tp = std::min(2, world_size());  // its blocks of 128 do not divide by more
    Mesh mesh = make_mesh(world_size() / tp, tp);
    TinyOptions o = options_of(recipe);
    TrainState s, whole;
    tiny_run(o, mesh, 1, &s, first);
    const Trace reference = tiny_run(o, mesh, 2, &whole, Exec{});

    std::string path(64, ' ');
    std::unique_ptr<TempDir> own;
    if (mesh.world.rank() == 0) own = std::make_unique<TempDir>();
    path = broadcast(own ? own->path : "", 0, mesh.world);
    save(s, path, mesh, 1, first);
    TrainState back = load(s.config, path, mesh, s.optimizer_step, then);
    back.loss_scale = s.loss_scale;
    back.policy = s.policy;
    const Trace trace = tiny_steps(back, mesh, 1, 2, then);
    CHECK(trace.loss.front() == reference.loss.back());
    CHECK(trace.grad_norm.front() == reference.grad_norm.back());
    CHECK((state_bytes(back, then) == state_bytes(whole, Exec{})));
    close_mesh(mesh);
}

TEST_CASE("a snapshot is copied beside the next step, which waits to overwrite it", "[multirank]") {
    using cuda::host::Order;
    // With zero: 0 the host waits for nothing behind the update; with 1 for the gathers.
    const auto [order, zero] = GENERATE(table<Order, std::int64_t>(
        {{Order::on_demand, 0}, {Order::on_demand, 1}, {Order::side_first, 0}}));
    CAPTURE(static_cast<int>(order), zero);
    Mesh mesh = make_mesh(world_size(), 1);
    TinyOptions o = options_of(Recipe::fp32);
    o.micro_batch = 1;
    o.zero = zero;
    TrainState s, expected;
    tiny_run(o, mesh, 1, &expected);
    std::unique_ptr<TempDir> own;
    if (mesh.world.rank() == 0) own = std::make_unique<TempDir>();
    const std::string path = broadcast(own ? own->path : "", 0, mesh.world);
    {
        const cuda::host::OrderScope scope(order, device().stream);
        tiny_run(o, mesh, 1, &s, device());
        CheckpointSaver saver(path, {});
        for (std::int64_t step = 1; step < 3; ++step) {
            saver.start({.step = step}, checkpoint_shards(s.model), s.snapshot, mesh, false,
                        device().stream);
            const bool waits = order == Order::on_demand && (zero == 1 || mesh.dp_rank() == 0);
            CHECK(saver.copied().reached() == !waits);  // start() has not waited
            tiny_steps(s, mesh, step, step + 1, device(), &saver.copied());
            const SaveReport report = saver.finish(mesh);
            if (report.failure) FAIL(report.failure->what());
        }
    }
    for (std::int64_t step = 1; step < 3; ++step) {
        TrainState back = load(s.config, path, mesh, step, Exec{}, step);
        CHECK((state_bytes(back, Exec{}) == state_bytes(expected, Exec{})));
        tiny_steps(expected, mesh, step, step + 1, Exec{});
    }
    CHECK((state_bytes(s, device()) == state_bytes(expected, Exec{})));
    close_mesh(mesh);
}

TEST_CASE("virtual ranks on one device have the bits of one rank", "[multirank]") {
    const int size = world_size();
    TinyOptions o{.micro_batch = 1, .dp_shards = 4, .tp_chunks = 4};
    const Trace reference = tiny_run(o, Mesh{}, 2, nullptr, device());
    for (int tp = 1; tp <= size; tp *= 2) {
        Mesh mesh = make_mesh(size / tp, tp);
        const Trace trace = tiny_run(o, mesh, 2, nullptr, device());
        CAPTURE(size / tp, tp);
        CHECK(trace.loss == reference.loss);
        CHECK(trace.grad_norm == reference.grad_norm);
        close_mesh(mesh);
    }
}

TEST_CASE("a device decodes what the CPU decodes", "[multirank]") {
    Mesh mesh = make_mesh(1, world_size());
    TrainState cpu, gpu;
    const TinyOptions o = options_of(Recipe::fp32);
    tiny_run(o, mesh, 3, &cpu);
    tiny_run(o, mesh, 3, &gpu, device());
    const std::vector<std::vector<TokenId>> prompts{{1, 4, 13}, {2}, {5, 16, 49, 14, 43}};
    const auto expected = generate_greedy(cpu, prompts, 8, -1, mesh, Exec{});
    CHECK(generate_greedy(gpu, prompts, 8, -1, mesh, device()) == expected);
    CHECK(expected[1].size() == 8);
    close_mesh(mesh);
}

namespace {

TrainState attending_state(const std::string& layers, Recipe recipe, const Mesh& mesh,
                           const Exec& exec) {
    TinyOptions o = options_of(recipe);
    o.seq_len = 128;
    o.attention = wide_attention(layers);
    o.micro_batch = 1;
    o.global_batch = 4;
    RunConfig c = tiny_config(o, mesh.dp_size(), mesh.tp_size());
    c.model.init_std = 0.3;  // far from indifferent
    return make_train_state(c, mesh.tp_rank(), mesh.tp_size(), exec, mesh.dp_rank());
}

}  // namespace

TEST_CASE(
    "whatever layers attend, a device reads and goes on as the CPU does, waiting once a token",
    "[multirank]") {
    if (world_size() > 2) return;
    const Recipe recipe = GENERATE(Recipe::fp32, Recipe::bf16);
    const auto layers = GENERATE(as<std::string>(), "DW", "TP");
    CAPTURE(recipe_name(recipe), layers);
    const Mesh alone;
    TrainState cpu = attending_state(layers, recipe, alone, Exec{}),
               gpu = attending_state(layers, recipe, alone, device());
    std::vector<std::vector<TokenId>> texts{random_text(1, 7), random_text(2, 60), {}};
    Decoder on_cpu = make_decoder(cpu, 3, 100), there = make_decoder(gpu, 3, 100);
    CHECK(kv_cache_bytes(there.cache) > 0);
    for (int i = 0; i < 12; ++i) {
        const std::vector<TokenId> next = feed(cpu, on_cpu, texts, alone, Exec{});
        const std::int64_t waits = cuda::host::waits();
        const std::vector<TokenId> got = feed(gpu, there, texts, alone, device());
        if (i > 0 && i != 6) CHECK(cuda::host::waits() == waits + 1);
        CAPTURE(i);
        CHECK(got == next);
        CHECK((read_back<std::byte>(there.hidden, device()) ==
               read_back<std::byte>(on_cpu.hidden, Exec{})));
        for (std::size_t b = 0; b < texts.size(); ++b)  // one by one, and once several at a time
            texts[b] = i == 5 ? random_text(b, 5 + 3 * static_cast<std::int64_t>(b))
                              : std::vector<TokenId>{next[b]};
    }
}

TEST_CASE("what decoding takes of a device is what it says", "[multirank]") {
    if (world_size() > 2) return;
    const Mesh alone;
    TrainState s = attending_state("DTPW", Recipe::fp32, alone, device());
    const std::int64_t before = cuda::host::device_bytes();
    const Decoder d = make_decoder(s, 2, 100);
    const Workspace w = make_workspace(s, 2, 50);
    const std::int64_t said = decoding_bytes(s, 2, 100, 50),
                       took = cuda::host::device_bytes() - before;
    CHECK(took >= said);
    CHECK(took < said + said / 20 + 100 * 256);  // pieces begin at multiples of 256
}

TEST_CASE("ranks that share a prompt on devices continue it as on the CPU", "[multirank]") {
    Mesh mesh = make_mesh(world_size(), 1);
    TrainState cpu = attending_state("DTPW", Recipe::fp32, mesh, Exec{}),
               gpu = attending_state("DTPW", Recipe::fp32, mesh, device());
    const std::vector<TokenId> prompt = random_text(5, 37);
    const auto expected = generate_shared(cpu, prompt, 12, -1, mesh, Exec{});
    CHECK(expected.size() == 12);
    CHECK(generate_shared(gpu, prompt, 12, -1, mesh, device()) == expected);
    close_mesh(mesh);
}

TEST_CASE("Inf in a gradient on a device is met, named and skipped", "[multirank]") {
    Mesh mesh = make_mesh(world_size(), 1);
    TinyOptions o = options_of(Recipe::fp32);
    o.micro_batch = 1;
    const RunConfig config = tiny_config(o, mesh.dp_size(), 1);
    TrainState s = make_train_state(config, 0, 1, device(), mesh.dp_rank());
    const std::vector<std::byte> before = state_bytes(s, device());
    StepInputs in{.lr = 1e-3};
    in.micro_batches.push_back(tiny_batch(config, 0, mesh.dp_rank()));
    const Param& p = s.model.params.front();
    const float good = read_back<float>(p.master, device())[0], bad = INFINITY;
    const auto set_first = [&](const float& x) {
        upload(p.master.slice_rows(0, 1), std::span(&x, 1), device());
    };
    if (mesh.dp_rank() == mesh.dp_size() - 1) set_first(bad);
    const StepResult r = train_step(s, in, mesh, device());
    CHECK(r.skipped);
    CHECK_FALSE(r.forward_nonfinite.empty());
    if (mesh.dp_rank() == mesh.dp_size() - 1) set_first(good);
    CHECK((state_bytes(s, device()) == before));
    CHECK_FALSE(train_step(s, in, mesh, device()).skipped);
    close_mesh(mesh);
}
