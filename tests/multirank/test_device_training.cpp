// The whole training path on a device: arena, copies, collectives, optimizer, checkpoints,
// decoding. Kernels run on the host here (kernels/cuda/host), where a line that touches device
// memory without a copy ends the program. The products of the vendor's library and attention are
// there the CPU's, so every bit must be: with `fast` sums, for the library knows no chain over
// tokens.
#include <mpi.h>

#include "checkpoints/saver.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/host/device_pages.h"
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

void check_same(const TinyOptions& options, const Mesh& mesh, std::int64_t steps) {
    TrainState cpu, gpu;
    const Trace reference = tiny_run(options, mesh, steps, &cpu);
    const Trace trace = tiny_run(options, mesh, steps, &gpu, device());
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
                std::int64_t updates, const Exec& exec) {
    TrainState s = make_train_state(config, mesh.tp_rank(), mesh.tp_size(), exec, mesh.dp_rank());
    load_checkpoint(find_checkpoint(dir, mesh), checkpoint_shards(s.model), mesh, LoadTensors::all,
                    exec.stream);
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
