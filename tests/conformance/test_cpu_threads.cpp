// Every op whose loops are divided among threads: the bits of one thread on two and three.
#include "kernels/attention.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "tests/conformance/conformance.h"

using namespace stoa;
using namespace stoa::test;

namespace {

struct ThreadScope {
    explicit ThreadScope(int n) { set_cpu_threads(n); }
    ~ThreadScope() { set_cpu_threads(1); }
    ThreadScope(const ThreadScope&) = delete;
    ThreadScope& operator=(const ThreadScope&) = delete;
};

/// `op` writes into poisoned tensors of the shapes given; all of them, one after the other.
template <class Op>
std::vector<std::byte> bytes_written(const std::vector<std::pair<Shape, DType>>& outputs,
                                     const Op& op) {
    std::vector<PoisonedTensor> tensors;
    for (const auto& [shape, dtype] : outputs)
        tensors.push_back(poisoned_tensor(shape, dtype));
    op(tensors);
    std::vector<std::byte> bytes;
    for (const PoisonedTensor& t : tensors) {
        CHECK(t.guards_intact());
        const auto more = bytes_of(t);
        bytes.insert(bytes.end(), more.begin(), more.end());
    }
    return bytes;
}

template <class Op>
void check_threads(const std::vector<std::pair<Shape, DType>>& outputs, const Op& op) {
    const std::vector<std::byte> one = bytes_written(outputs, op);
    for (const int threads : {2, 3}) {
        const ThreadScope scope(threads);
        CAPTURE(threads);
        CHECK(bytes_written(outputs, op) == one);
    }
}

std::vector<std::int32_t> counting(std::int64_t n, std::int32_t modulus) {
    std::vector<std::int32_t> v;
    for (std::int64_t i = 0; i < n; ++i)
        v.push_back(static_cast<std::int32_t>(i * 7 % modulus));
    return v;
}

}  // namespace

TEST_CASE("attention has the same bits on any number of threads") {
    const DType dtype = GENERATE(DType::fp32, DType::fp16);
    // Heads for all threads, or one head whose tiles they share.
    const auto [batch, len, heads, kv_heads] =
        GENERATE(table<std::int64_t, std::int64_t, std::int64_t, std::int64_t>(
            {{2, 140, 6, 3}, {1, 1100, 2, 1}}));
    const Shape q_shape{batch, len, heads, 32}, kv_shape{batch, len, kv_heads, 32},
        lse_shape{batch, heads, len};
    const Tensor q = random_tensor(q_shape, dtype, 1), k = random_tensor(kv_shape, dtype, 2),
                 v = random_tensor(kv_shape, dtype, 3), d_out = random_tensor(q_shape, dtype, 4);
    std::vector<std::int32_t> begin(static_cast<std::size_t>(batch * len), 0), end;
    for (std::int64_t i = 0; i < batch * len; ++i)
        end.push_back(static_cast<std::int32_t>(i % len + 1));
    const Tensor key_begin = int_tensor(begin), key_end = int_tensor(end);
    check_threads({{q_shape, dtype},
                   {lse_shape, DType::fp32},
                   {q_shape, dtype},
                   {kv_shape, dtype},
                   {kv_shape, dtype}},
                  [&](const std::vector<PoisonedTensor>& t) {
                      attention_forward({.out = t[0],
                                         .lse = t[1],
                                         .q = q,
                                         .k = k,
                                         .v = v,
                                         .key_begin = key_begin,
                                         .key_end = key_end,
                                         .scale = 0.2},
                                        {});
                      attention_backward({.d_q = t[2],
                                          .d_k = t[3],
                                          .d_v = t[4],
                                          .d_out = d_out,
                                          .out = t[0],
                                          .lse = t[1],
                                          .q = q,
                                          .k = k,
                                          .v = v,
                                          .key_begin = key_begin,
                                          .key_end = key_end,
                                          .scale = 0.2},
                                         {});
                  });
}

TEST_CASE("cross_entropy has the same bits on any number of threads") {
    const Shape shape{40, 3001};
    const Tensor logits = random_tensor(shape, DType::fp32, 1, 4.0);
    std::vector<std::int32_t> labels = counting(40, 3001);
    labels[3] = -1;
    const Tensor targets = int_tensor(labels);
    const Shape rows{40};
    const auto f = DType::fp32;
    check_threads(
        {{rows, f}, {rows, f}, {rows, f}, {shape, f}}, [&](const std::vector<PoisonedTensor>& t) {
            const Tensor loss({1}, DType::fp64);
            cross_entropy_row_max({.row_max = t[0], .logits = logits, .vocab_valid = 2990}, {});
            cross_entropy_exp_sum({.exp_sum = t[1],
                                   .target_logit = t[2],
                                   .logits = logits,
                                   .row_max = t[0],
                                   .targets = targets,
                                   .vocab_valid = 2990},
                                  {});
            cross_entropy_finish({.d_logits = t[3],
                                  .loss_sum = loss,
                                  .logits = logits,
                                  .row_max = t[0],
                                  .exp_sum = t[1],
                                  .target_logit = t[2],
                                  .targets = targets,
                                  .vocab_valid = 2990},
                                 {});
        });
}

TEST_CASE("swiglu has the same bits on any number of threads") {
    const Shape shape{300, 257};
    const Tensor gate = random_tensor(shape, DType::bf16, 1, 3.0),
                 up = random_tensor(shape, DType::bf16, 2),
                 d_y = random_tensor(shape, DType::bf16, 3);
    check_threads({{shape, DType::bf16}, {shape, DType::bf16}, {shape, DType::bf16}},
                  [&](const std::vector<PoisonedTensor>& t) {
                      swiglu_forward({.y = t[0], .gate = gate, .up = up}, {});
                      swiglu_backward(
                          {.d_gate = t[1], .d_up = t[2], .d_y = d_y, .gate = gate, .up = up}, {});
                  });
}

TEST_CASE("rope has the same bits on any number of threads") {
    const Shape shape{200, 4, 64};
    const Tensor x = random_tensor(shape, DType::fp32, 1);
    const Tensor cos({50, 32}, DType::fp32), sin({50, 32}, DType::fp32);
    rope_table(cos, sin, {.theta = 1e4}, {});
    const Tensor positions = int_tensor(counting(200, 50));
    check_threads({{shape, DType::fp32}}, [&](const std::vector<PoisonedTensor>& t) {
        std::memcpy(t[0].view.data, x.view.data, static_cast<std::size_t>(x.view.bytes()));
        rope({.x = t[0], .cos = cos, .sin = sin, .positions = positions}, {});
    });
}

TEST_CASE("embedding has the same bits on any number of threads, with repeated tokens") {
    const Shape rows{600, 200}, table_shape{20, 200};
    const Tensor table = random_tensor(table_shape, DType::fp32, 1),
                 d_y = random_tensor(rows, DType::fp32, 2);
    const Tensor tokens = int_tensor(counting(600, 23));  // 20 to 22 lie on another rank
    check_threads({{rows, DType::fp32}, {table_shape, DType::fp32}},
                  [&](const std::vector<PoisonedTensor>& t) {
                      std::memset(t[1].view.data, 0, static_cast<std::size_t>(t[1].view.bytes()));
                      embedding_forward({.y = t[0], .table = table, .tokens = tokens}, {});
                      embedding_backward({.d_table = t[1], .d_y = d_y, .tokens = tokens}, {});
                  });
}
