// The CUDA kernels, run on the host: each gives the CPU's bytes, and the host's checks notice a
// barrier that is missing and an index that is off by one.
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/host/device_pages.h"
#include "kernels/cuda/host/fibers.h"
#include "kernels/cuda/lane_groups.h"
#include "kernels/cuda/transpose_codes.h"
#include "kernels/device_scratch.h"
#include "tests/conformance/conformance.h"
#include "tests/support/attention_cases.h"
#include "tests/support/execs.h"
#include "tests/support/kernel_checks.h"

using namespace stoa;
using namespace stoa::test;
using namespace stoa::cuda;

TEST_CASE("every kernel gives the bytes of the CPU op") {
    for (const KernelCheck& check : check_kernels(available_execs().back(), false)) {
        CAPTURE(check.op, check.first, check.worst);
        CHECK(check.runs > 0);
        CHECK(check.values > 0);
        CHECK(check.differences == 0);
    }
}

namespace {

/// The sum of x within each block, by a tree in shared memory.
STOA_KERNEL void tree_sum(float* out, const float* x) {
    SharedMemory memory;
    const Shared<float> part = memory.array<float>(block_threads());
    const int t = thread_index();
    part.write(t, x[global_thread()]);
    for (int half = block_threads() / 2; half > 0; half /= 2) {
        sync_block();
        if (t < half) part.write(t, part.read(t) + part.read(t + half));
    }
    if (t == 0) out[block_index()] = part.read(0);
}

void run_tree_sum(const Tensor& out, const Tensor& x) {
    launch({.name = "tree_sum", .blocks = 3, .threads = 64, .shared_bytes = 256}, tree_sum,
           out.as<float>().data(), x.as<float>().data());
}

std::string message_of(const std::function<void()>& f) {
    try {
        f();
    } catch (const DeviceError& e) {
        return e.what();
    }
    return "";
}

// Kernels with a mistake each.
STOA_KERNEL void reads_unwritten(float* out) {
    SharedMemory memory;
    const Shared<float> part = memory.array<float>(2 * block_threads());
    part.write(thread_index(), 1.0f);
    sync_block();
    out[global_thread()] = part.read(thread_index() + block_threads());
}
STOA_KERNEL void overwrites_while_read(float* out) {
    SharedMemory memory;
    const Shared<float> part = memory.array<float>(block_threads());
    part.write(thread_index(), 1.0f);
    sync_block();
    out[global_thread()] = part.read(0);
    if (thread_index() == 0) part.write(0, 2.0f);
}
STOA_KERNEL void half_meets(float* out) {
    if (thread_index() < 16) (void)shuffle(1, 0);
    out[global_thread()] = 0.0f;
}
STOA_KERNEL void takes_too_much(float* out) {
    SharedMemory memory;
    const Shared<float> part = memory.array<float>(block_threads() + 1);
    part.write(thread_index(), 1.0f);
    out[global_thread()] = 0.0f;
}

/// Ops whose kernels share memory: none does without any of its barriers, `all` of them together,
/// nor with an index that is off by one.
void needs_each_barrier(const std::vector<std::function<void()>>& ops, int all) {
    int missed = 0;
    for (std::size_t i = 0; i < ops.size(); ++i) {
        host::reset_counts();
        ops[i]();
        const int barriers = host::counts().most_barriers;
        CHECK(barriers > 0);
        for (int b = 0; b < barriers; ++b) {
            const host::MutationScope scope({.skip_barrier = b});
            CAPTURE(i, b);
            CHECK(message_of(ops[i]) != "");
            ++missed;
        }
        const host::MutationScope scope({.shift_index = 1});
        CAPTURE(i);
        CHECK(message_of(ops[i]).find("of a shared array of") != std::string::npos);
    }
    CHECK(missed == all);
}

}  // namespace

TEST_CASE("threads of a block meet at barriers and share memory") {
    const Tensor x({192}, DType::fp32), out({3}, DType::fp32);
    for (std::size_t i = 0; i < 192; ++i)
        x.as<float>()[i] = static_cast<float>(i);
    host::reset_counts();
    run_tree_sum(out, x);
    for (std::size_t b = 0; b < 3; ++b)
        CHECK(out.as<float>()[b] == static_cast<float>(64 * 64 * b + 2016));
    CHECK(host::counts().blocks == 3);
    CHECK(host::counts().most_barriers == 6);
    CHECK(host::counts().barriers == 3 * 64 * 6);
}

TEST_CASE("each barrier that is taken away is missed") {
    const Tensor x({192}, DType::fp32), out({3}, DType::fp32);
    for (int barrier = 0; barrier < 6; ++barrier) {
        const host::MutationScope scope({.skip_barrier = barrier});
        const std::string message = message_of([&] { run_tree_sum(out, x); });
        CAPTURE(barrier, message);
        CHECK(message.find("tree_sum") != std::string::npos);
        CHECK((message.find("no barrier between") != std::string::npos ||
               message.find("no thread has written") != std::string::npos));
    }
    run_tree_sum(out, x);  // and none is missed when all are there
}

TEST_CASE("each barrier of the real kernels is needed") {
    const Tensor x = random_tensor({200, 300}, DType::fp32, 1), codes({200, 300}, DType::e4m3),
                 turned({300, 200}, DType::e4m3),
                 column_scale(scale_shape({200, 300}, QuantBlocks::column), DType::e8m0);
    const Exec exec = available_execs().back();
    const auto run_quantize = [&](QuantBlocks blocks) {
        const Tensor scale(scale_shape({200, 300}, blocks), DType::e8m0);
        run(quantize, {.codes = codes, .scale = scale, .x = x}, exec);
    };
    const Tensor ones({200}, DType::fp32), loss({1}, DType::fp64), targets({200}, DType::int32);
    for (float& one : ones.as<float>())
        one = 1.0f;
    const Tensor rows = random_tensor({300, 40}, DType::fp32, 2), gains({40}, DType::fp32),
                 rstd({300}, DType::fp32);
    const Shape one_head{1, 20, 1, 40};
    const Tensor heads_in = random_tensor(one_head, DType::fp32, 3), heads(one_head, DType::fp32),
                 d_k(one_head, DType::fp32), d_v(one_head, DType::fp32),
                 row_lse({1, 1, 20}, DType::fp32), key_begin({20}, DType::int32),
                 key_end({20}, DType::int32);
    for (std::size_t t = 0; t < 20; ++t)
        key_end.as<std::int32_t>()[t] = static_cast<std::int32_t>(t + 1);
    const std::vector<std::function<void()>> ops = {
        [&] { run_quantize(QuantBlocks::column); },
        [&] { run_quantize(QuantBlocks::square); },
        [&] {
            run(cross_entropy_exp_sum,
                {.exp_sum = Tensor({200}, DType::fp32),
                 .target_logit = Tensor({200}, DType::fp32),
                 .logits = x,
                 .row_max = ones,
                 .targets = targets,
                 .vocab_valid = 300,
                 .chunk = 50},
                exec);
        },
        [&] {
            run(cross_entropy_finish,
                {.loss_sum = loss,
                 .logits = x,
                 .row_max = ones,
                 .exp_sum = ones,
                 .target_logit = ones,
                 .targets = targets,
                 .vocab_valid = 300},
                exec);
        },
        [&] {  // three tiles of rows
            run(rms_norm_backward,
                {.d_x = Tensor({300, 40}, DType::fp32),
                 .d_weight = Tensor({40}, DType::fp32),
                 .d_y = rows,
                 .x = rows,
                 .weight = gains,
                 .rstd = rstd},
                exec);
        },
        [&] {  // one tile of keys in two slices of columns
            run(own_attention,
                {.out = heads,
                 .lse = row_lse,
                 .q = heads_in,
                 .k = heads_in,
                 .v = heads_in,
                 .key_begin = key_begin,
                 .key_end = key_end},
                exec);
        },
        [&] {
            run(own_attention_gradient,
                {.d_q = heads,
                 .d_k = d_k,
                 .d_v = d_v,
                 .d_out = heads_in,
                 .out = heads_in,
                 .lse = row_lse,
                 .q = heads_in,
                 .k = heads_in,
                 .v = heads_in,
                 .key_begin = key_begin,
                 .key_end = key_end},
                exec);
        },
        [&] { transpose_codes(turned.view.data, codes.view.data, 200, 300, exec.stream); },
        [&] {
            run(quantize_two_way,
                {.codes = {.column = codes, .column_scale = column_scale}, .x = x}, exec);
        }};
    needs_each_barrier(ops, 1 + 2 + 1 + 8 + 3 + 4 + 5 + 1 + 1);
}

TEST_CASE("each barrier of the sparse attentions is needed") {
    const Exec exec = available_execs().back();
    constexpr std::int64_t kLen = 120;
    const Shape queries{1, kLen, 4, 8}, keys{1, kLen, 2, 8}, columns{1, kLen, 2};
    const Tensor q = random_tensor(queries, DType::fp32, 1),
                 k = random_tensor(keys, DType::fp32, 2), v = random_tensor(keys, DType::fp32, 3),
                 gate = random_gates(columns, DType::fp32, 4),
                 sink = random_tensor({4}, DType::fp32, 5), out(queries, DType::fp32),
                 lse({1, 4, kLen}, DType::fp32), key_begin = packed_documents(1, kLen, 100),
                 expiry({1, 2, kLen}, DType::int32), dense_rows = int_tensor({9, 20, 74, 98}),
                 targets({kLen}, DType::int32), d_q(queries, DType::fp32), d_k(keys, DType::fp32),
                 d_v(keys, DType::fp32), d_gate(columns, DType::fp32),
                 d_sink({1, kLen, 4}, DType::fp32), far_mass(columns, DType::fp32);
    const KeyRule rule{40, 2, 3};
    const TreeRule tree{48, 4, 2, 2, 1};
    const Tensor selection({2, kLen, tree_levels(tree, kLen), tree_slots(tree)}, DType::int32);
    stoa::select_keys({.expiry = expiry, .importance = gate, .key_begin = key_begin, .rule = rule},
                      {});
    const auto set_inputs = [&](auto& a) {
        a.out = out;
        a.lse = lse;
        a.q = q;
        a.k = k;
        a.v = v;
        a.key_begin = key_begin;
        a.gate = gate;
        a.sink_logit = sink;
        a.scale = 0.3;
    };
    const auto set_gradients = [&](auto& a) {
        a.d_q = d_q;
        a.d_k = d_k;
        a.d_v = d_v;
        a.d_gate = d_gate;
        a.d_sink = d_sink;
        a.d_out = q;
    };
    const auto set_keys = [&](auto& a) {
        a.expiry = expiry;
        a.dense_rows = dense_rows.view.reshaped({1, 4});
        a.rule = rule;
    };
    ImportanceAttentionArgs forward;
    ImportanceAttentionBackwardArgs backward;
    TreeAttentionArgs tree_forward{.selection = selection, .rule = tree};
    TreeAttentionBackwardArgs tree_backward{.selection = selection, .rule = tree};
    set_inputs(forward);
    set_keys(forward);
    set_inputs(backward);
    set_keys(backward);
    set_gradients(backward);
    backward.far_mass = far_mass;
    set_inputs(tree_forward);
    set_inputs(tree_backward);
    set_gradients(tree_backward);
    stoa::tree_attention_forward(tree_forward, {});
    needs_each_barrier({[&] { run(importance_attention_forward, forward, exec); },
                        [&] { run(importance_attention_backward, backward, exec); },
                        [&] {
                            run(importance_distil,
                                {.d_importance = far_mass,
                                 .importance = gate,
                                 .key_begin = key_begin,
                                 .targets = targets,
                                 .rule = rule},
                                exec);
                        },
                        [&] { run(tree_attention_forward, tree_forward, exec); },
                        [&] { run(tree_attention_backward, tree_backward, exec); }},
                       78);
}

TEST_CASE("each barrier of the caches of decoding is needed") {
    const Exec exec = available_execs().back();
    constexpr std::int64_t kLen = 60, kRoom = 40;  // tokens, and those that tests append
    const Tensor q = random_tensor({1, 4, 8}, DType::fp32, 1),
                 k = random_tensor({kLen, 2, 8}, DType::fp32, 2),
                 v = random_tensor({kLen, 2, 8}, DType::fp32, 3),
                 gate = random_gates({kLen, 2}, DType::fp32, 4), out({1, 4, 8}, DType::fp32);
    ImportanceCache keys = make_importance_cache({20, 2, 3}, 2, 8, DType::fp32, exec.device);
    TreeCache tree =
        make_tree_cache({16, 4, 2, 2, 1}, 2, 8, kLen + kRoom, DType::fp32, exec.device);
    run_append(keys, {k, v, gate, gate}, exec);
    run_append(tree, {k, v, gate}, exec);
    const auto first = [](const Tensor& t) { return t.view.view().slice_rows(0, 1); };
    needs_each_barrier({[&] {
                            run_attend(keys,
                                       {.out = out,
                                        .q = q,
                                        .k = first(k),
                                        .v = first(v),
                                        .gate = first(gate),
                                        .importance = first(gate)},
                                       exec);
                        },
                        [&] {
                            run_append(tree, {first(k), first(v), first(gate)}, exec);
                            run_attend(tree, {.out = out, .q = q, .begin = tree.len - 1}, exec);
                        }},
                       14);
}

TEST_CASE("codes are transposed, whatever their shape") {
    for (const Shape& s : {Shape{1, 1}, Shape{128, 128}, Shape{3, 130}, Shape{257, 31}}) {
        const Tensor x = random_tensor({s[0], s[1]}, DType::fp32, 1), codes(s, DType::e4m3);
        stoa::quantize({.codes = codes,
                        .scale = Tensor(scale_shape(s, QuantBlocks::row), DType::e8m0),
                        .x = x},
                       {});
        const PoisonedTensor turned = poisoned_tensor({s[1], s[0]}, DType::e4m3);
        transpose_codes(turned.view.data, codes.view.data, s[0], s[1], {});
        std::int64_t wrong = 0;
        for (std::int64_t r = 0; r < s[0]; ++r)
            for (std::int64_t c = 0; c < s[1]; ++c)
                wrong += codes.view.data[r * s[1] + c] != turned.view.data[c * s[0] + r];
        CAPTURE(s.str());
        CHECK(wrong == 0);
        CHECK(turned.guards_intact());
    }
}

TEST_CASE("an index that is off by one is found") {
    const Tensor x({192}, DType::fp32), out({3}, DType::fp32);
    const host::MutationScope scope({.shift_index = 1});
    CHECK(message_of([&] { run_tree_sum(out, x); }).find("index 64 of a shared array of 64") !=
          std::string::npos);
}

TEST_CASE("other mistakes with shared memory and meetings are found") {
    const Tensor out({64}, DType::fp32);
    const auto message = [&](void (*kernel)(float*), int shared_bytes) {
        return message_of([&] {
            launch({.name = "k", .blocks = 1, .threads = 64, .shared_bytes = shared_bytes}, kernel,
                   out.as<float>().data());
        });
    };
    CHECK(message(reads_unwritten, 512).find("no thread has written") != std::string::npos);
    CHECK(message(overwrites_while_read, 256).find("no barrier between") != std::string::npos);
    CHECK(message(half_meets, 0).find("do not come") != std::string::npos);
    CHECK(message(takes_too_much, 256).find("in a shared memory of 256") != std::string::npos);
    CHECK(message_of([&] {
              launch({.name = "k", .blocks = 1, .threads = 48}, half_meets, out.as<float>().data());
          }) != "");
}

// AddressSanitizer ends a program at its first finding: so in a child.
TEST_CASE("an index into a tensor that is off by one is found") {
    constexpr std::int64_t kValues = 100;
    const Exec exec = available_execs().back();
#if defined(__SANITIZE_ADDRESS__)
    const auto ends_badly = [&](std::int64_t n) {
        const pid_t child = fork();
        if (child == 0) {
            (void)!freopen("/dev/null", "w", stderr);
            constexpr std::int64_t kBytes = 4 * kValues;
            const DeviceBuffer buffer(kBytes);
            const TensorView x{buffer.data(), DType::fp32, {n}, exec.device};
            fill_bytes(buffer.data(), 0, kBytes, exec.stream);
            swiglu_forward({.y = x, .gate = x, .up = x}, exec);
            _exit(0);
        }
        int status = 0;
        REQUIRE(waitpid(child, &status, 0) == child);
        return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    };
    CHECK_FALSE(ends_badly(kValues));
    CHECK(ends_badly(kValues + 1));
#else
    const Tensor all({kValues + 64}, DType::fp32);  // as DeviceCopies lays a tensor out
    const TensorView x{all.view.data, DType::fp32, {kValues + 1}, exec.device};
    for (float& value : all.as<float>())
        value = 3.0f;
    swiglu_forward({.y = x, .gate = x, .up = x}, exec);
    CHECK(all.as<float>()[kValues] != 3.0f);  // a guard behind the tensor would be damaged
#endif
}

TEST_CASE("the host cannot touch device memory but through copies") {
    const Exec exec = available_execs().back();
    const DeviceBuffer buffer(4096), other(64);
    fill_bytes(buffer.data(), 7, 4096, exec.stream);
    const auto ends_by = [&](const std::function<void()>& touch) {
        const pid_t child = fork();
        if (child == 0) {
            (void)!freopen("/dev/null", "w", stderr);
            touch();
            _exit(0);
        }
        int status = 0;
        REQUIRE(waitpid(child, &status, 0) == child);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
    };
    CHECK(ends_by([&] { *static_cast<volatile std::byte*>(buffer.data() + 9) = std::byte{1}; }) !=
          0);
    CHECK(ends_by([&] { (void)*static_cast<volatile std::byte*>(buffer.data() + 9); }) != 0);
    {
        const host::DeviceMemoryOpen outer;
        { const host::DeviceMemoryOpen inner; }
        CHECK(ends_by([&] { *static_cast<volatile std::byte*>(buffer.data()) = std::byte{1}; }) ==
              0);
    }
    std::byte got[2]{};
    copy_on_device(other.data(), buffer.data() + 4094, 2, exec.stream);
    copy_from_device(got, other.data(), 2, exec.stream);
    CHECK(got[1] == std::byte{7});
}

TEST_CASE("attention takes the scratch that its rules say, in every kind of pieces") {
    const Exec exec = available_execs().back();
    const DType dtype = GENERATE(DType::bf16, DType::fp32);
    const std::int64_t batch = 2, len = 256, heads = 4, kv_heads = 2, dim = 16;
    const std::int64_t entries = batch * len, size = entries * heads * dim * size_of(dtype);
    const DeviceBuffer memory(16 * size);
    fill_bytes(memory.data(), 0, memory.bytes(), exec.stream);
    std::int64_t used = 0;
    const auto tensor = [&](const Shape& shape, DType t) {
        const TensorView x{memory.data() + used, t, shape, exec.device};
        used += align_up(x.bytes(), 256);
        return x;
    };
    const Shape of_q{batch, len, heads, dim}, of_k{batch, len, kv_heads, dim};
    const AttentionBackwardArgs args{.d_q = tensor(of_q, dtype),
                                     .d_k = tensor(of_k, dtype),
                                     .d_v = tensor(of_k, dtype),
                                     .d_out = tensor(of_q, dtype),
                                     .out = tensor(of_q, dtype),
                                     .lse = tensor({batch, heads, len}, DType::fp32),
                                     .q = tensor(of_q, dtype),
                                     .k = tensor(of_k, dtype),
                                     .v = tensor(of_k, dtype),
                                     .key_begin = tensor({entries}, DType::int32),
                                     .key_end = tensor({entries}, DType::int32),
                                     .causal = true};
    REQUIRE(used <= memory.bytes());
    // Whole, by batch entry, by kv head, by queries.
    for (const std::int64_t score_bytes :
         {kSdpaScoreBytes, std::int64_t{600'000}, std::int64_t{300'000}, std::int64_t{150'000}}) {
        host::reset_scratch_peak();
        if (!library_attention_backward(args, exec.stream, score_bytes))
            own_attention_backward(args, exec.stream);
        CAPTURE(dtype_name(dtype), score_bytes);
        CHECK(host::scratch_peak() == scratch_bytes(args, {}, score_bytes));
    }
    host::reset_scratch_peak();
    const AttentionArgs forward{.out = args.d_q,
                                .lse = tensor({batch, heads, len}, DType::fp32),
                                .q = args.q,
                                .k = args.k,
                                .v = args.v,
                                .key_begin = args.key_begin,
                                .key_end = args.key_end,
                                .causal = true};
    attention_forward(forward, exec);
    CHECK(host::scratch_peak() == scratch_bytes(forward, {}));
}

TEST_CASE("device memory that is given back is used again") {
    const std::int64_t before = host::device_bytes();
    const std::byte* first = nullptr;
    for (int i = 0; i < 3; ++i) {
        const DeviceBuffer a(1000), b(5000), c(1);
        CHECK(reinterpret_cast<std::uintptr_t>(b.data()) % 256 == 0);
        if (first == nullptr) first = a.data();
        CHECK(a.data() == first);
    }
    CHECK(host::device_bytes() == before);
}
