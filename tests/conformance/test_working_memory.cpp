// The attention kernels allocate what kernels/working_memory.h says, to the byte.
#include <functional>
#include <thread>

#include "kernels/attention.h"
#include "kernels/core/thread_pool.h"
#include "kernels/working_memory.h"
#include "tests/conformance/conformance.h"
#include "tests/support/attention_cases.h"

using namespace stoa;
using namespace stoa::test;

namespace {

// What a thread that has kept nothing yet keeps of a call.
std::int64_t kept_by(const std::function<void()>& call) {
    std::int64_t kept = 0;
    const std::int64_t before = held_working_bytes();
    std::thread([&] {
        call();
        kept = held_working_bytes() - before;
    }).join();
    CHECK(held_working_bytes() == before);  // what a thread kept ends with it
    return kept;
}

struct Inputs {
    AttentionSizes n;
    Tensor q, k, out, lse, d_q, d_k, d_v, gate, key_begin;
    explicit Inputs(const AttentionSizes& sizes)
        : n(sizes),
          q(random_tensor({n.batch, n.len, n.n_heads, n.dim}, n.dtype, 1)),
          k(random_tensor({n.batch, n.len, n.n_kv_heads, n.dim}, n.dtype, 2)),
          out(q.view.shape, n.dtype),
          lse({n.batch, n.n_heads, n.len}, wide_dtype(n.dtype)),
          d_q(q.view.shape, n.dtype),
          d_k(k.view.shape, n.dtype),
          d_v(k.view.shape, n.dtype),
          gate(random_gates({n.batch, n.len, n.n_kv_heads}, wide_dtype(n.dtype), 3)),
          key_begin(packed_documents(n.batch, n.len, n.batch + n.len)) {}
    // q as d_out, k as v.
    template <class Args>
    Args filled(Args args) const {
        if constexpr (requires { args.d_q; }) {
            args.d_q = d_q, args.d_k = d_k, args.d_v = d_v, args.d_out = q;
        }
        args.out = out, args.lse = lse, args.q = q, args.k = k, args.v = k;
        args.key_begin = key_begin;
        return args;
    }
};

const std::vector<AttentionSizes> kSizes = {{1, 100, 1, 1, 8, DType::fp32},
                                            {2, 700, 4, 2, 24, DType::bf16},
                                            {1, 5000, 2, 1, 16, DType::fp32},
                                            {3, 300, 2, 2, 8, DType::fp64}};

}  // namespace

TEST_CASE("dense attention keeps what it says") {
    for (const AttentionSizes& n : kSizes) {
        const Inputs in(n);
        Tensor key_end({n.batch * n.len}, DType::int32);
        for (std::int64_t r = 0; r < n.batch * n.len; ++r)
            key_end.as<std::int32_t>()[static_cast<std::size_t>(r)] =
                static_cast<std::int32_t>(r % n.len + 1);
        CHECK(kept_by([&] {
                  attention_forward(in.filled(AttentionArgs{.key_end = key_end}), {});
                  attention_backward(in.filled(AttentionBackwardArgs{.key_end = key_end}), {});
              }) == dense_working_bytes(n));
    }
}

TEST_CASE("importance attention keeps what it says, whatever was selected") {
    const KeyRule rule = GENERATE(KeyRule{40, 0, 0}, KeyRule{16, 4, 30}, KeyRule{30, 4, 400});
    for (const AttentionSizes& n : kSizes) {
        const Inputs in(n);
        const DType wide = wide_dtype(n.dtype);
        const Tensor expiry({n.batch, n.n_kv_heads, n.len}, DType::int32),
            d_gate(in.gate.view.shape, wide), far_mass(in.gate.view.shape, wide),
            rows({n.batch, 1}, DType::int32);
        const bool dense = rule.keep == 30;
        CHECK(kept_by([&] {
                  select_keys({.expiry = expiry,
                               .importance = in.gate,
                               .key_begin = in.key_begin,
                               .rule = rule},
                              {});
                  ImportanceAttentionArgs forward{.expiry = expiry, .gate = in.gate, .rule = rule};
                  ImportanceAttentionBackwardArgs backward{
                      .d_gate = d_gate, .expiry = expiry, .gate = in.gate, .rule = rule};
                  if (dense) forward.dense_rows = backward.dense_rows = rows;
                  if (dense) backward.far_mass = far_mass;
                  importance_attention_forward(in.filled(forward), {});
                  importance_attention_backward(in.filled(backward), {});
              }) == importance_working_bytes(n, rule, dense));
    }
}

TEST_CASE("tree attention keeps what it says") {
    const TreeRule rule = GENERATE(TreeRule{.window = 16, .leaf = 4, .fanout = 4, .beam = 3},
                                   TreeRule{.window = 32, .leaf = 16, .fanout = 8, .beam = 4});
    for (const AttentionSizes& n : kSizes) {
        const Inputs in(n);
        const Tensor selection(
            {n.batch * n.n_kv_heads, n.len, tree_levels(rule, n.len), tree_slots(rule)},
            DType::int32),
            d_gate(in.gate.view.shape, wide_dtype(n.dtype));
        CHECK(kept_by([&] {
                  tree_attention_forward(
                      in.filled(
                          TreeAttentionArgs{.selection = selection, .gate = in.gate, .rule = rule}),
                      {});
                  tree_attention_backward(
                      in.filled(TreeAttentionBackwardArgs{
                          .d_gate = d_gate, .selection = selection, .gate = in.gate, .rule = rule}),
                      {});
              }) == tree_working_bytes(n, rule));
    }
}

TEST_CASE("more threads keep at most what is said for so many") {
    AttentionSizes n{4, 1500, 2, 1, 16, DType::fp32};
    const Inputs in(n);
    const KeyRule rule{.window = 40};
    const Tensor expiry({n.batch, n.n_kv_heads, n.len}, DType::int32);
    select_keys({.expiry = expiry, .key_begin = in.key_begin, .rule = rule}, {});
    for (const int threads : {2, 3}) {
        n.threads = threads;
        const std::int64_t one = importance_working_bytes({4, 1500, 2, 1, 16, DType::fp32}, rule,
                                                          false),
                           many = importance_working_bytes(n, rule, false);
        CHECK(many == (threads == 2 ? 2 * one : one));  // three threads work in one head
        const std::int64_t before = held_working_bytes();
        set_cpu_threads(threads);
        importance_attention_forward(
            in.filled(ImportanceAttentionArgs{.expiry = expiry, .rule = rule}), {});
        importance_attention_backward(
            in.filled(ImportanceAttentionBackwardArgs{.expiry = expiry, .rule = rule}), {});
        const std::int64_t kept = held_working_bytes() - before;
        set_cpu_threads(1);
        CHECK(kept <= many);
    }
}
