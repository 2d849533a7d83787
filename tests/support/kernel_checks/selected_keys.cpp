#include "tests/support/attention_cases.h"
#include "tests/support/kernel_checks/checker.h"

namespace stoa::test {
namespace {

struct SparseCase {
    std::int64_t batch, len, q_len, n_heads, n_kv_heads, dim, document, dense;
    KeyRule rule;
};
void check_importance_case(Checker& c, const SparseCase& s, DType t) {
    const DType wide = wide_dtype(t);
    const std::string where = named(t, {s.len, s.n_heads, s.n_kv_heads, s.dim});
    const Shape columns{s.batch, s.len, s.n_kv_heads}, keys{s.batch, s.len, s.n_kv_heads, s.dim},
        queries{s.batch, s.q_len, s.n_heads, s.dim};
    const Tensor key_begin = packed_documents(s.batch, s.len, s.document),
                 importance = random_tensor(columns, wide, 4),
                 expiry({s.batch, s.n_kv_heads, s.len}, DType::int32);
    both(c, select_keys,
         {.expiry = expiry, .importance = importance, .key_begin = key_begin, .rule = s.rule},
         where);
    Tensor dense_rows;
    if (s.dense > 0) {
        dense_rows = Tensor({s.batch, s.dense}, DType::int32);
        for (std::int64_t i = 0; i < s.batch * s.dense; ++i)
            dense_rows.as<std::int32_t>()[static_cast<std::size_t>(i)] =
                static_cast<std::int32_t>((i % s.dense + 1) * s.len / (s.dense + 1));
    }
    const Tensor q = random_tensor(queries, t, 1, 2.0), k = random_tensor(keys, t, 2, 2.0),
                 v = random_tensor(keys, t, 3), gate = random_gates(columns, wide, 5),
                 sink = random_tensor({s.n_heads}, wide, 6), out(queries, t),
                 lse({s.batch, s.n_heads, s.q_len}, wide);
    both(c, importance_attention_forward,
         {.out = out,
          .lse = lse,
          .q = q,
          .k = k,
          .v = v,
          .expiry = expiry,
          .key_begin = key_begin,
          .gate = gate,
          .sink_logit = sink,
          .dense_rows = dense_rows,
          .rule = s.rule,
          .scale = 0.3},
         where, library_tolerance(t));
    if (s.q_len < s.len) return;
    both(c, importance_attention_backward,
         {.d_q = Tensor(queries, t),
          .d_k = Tensor(keys, t),
          .d_v = Tensor(keys, t),
          .d_gate = Tensor(columns, wide),
          .d_sink = Tensor({s.batch, s.len, s.n_heads}, wide),
          .far_mass = s.dense > 0 ? Tensor(columns, wide).view : TensorView{},
          .d_out = random_tensor(queries, t, 9),
          .out = out,
          .lse = lse,
          .q = q,
          .k = k,
          .v = v,
          .expiry = expiry,
          .key_begin = key_begin,
          .gate = gate,
          .sink_logit = sink,
          .dense_rows = dense_rows,
          .rule = s.rule,
          .scale = 0.3},
         where + " backward", library_tolerance(t));
    both(c, importance_distil,
         {.d_importance = random_tensor(columns, wide, 7),
          .importance = importance,
          .key_begin = key_begin,
          .targets = ints(s.batch * s.len, 8, 3, -1),
          .rule = s.rule,
          .d_loss = 0.3},
         where + " distil", library_tolerance(t));
}

void check_importance(Checker& c) {
    c.begin("importance");
    for (const SparseCase& s :
         c.large ? std::vector<SparseCase>{{1, 4700, 4700, 2, 1, 40, 3100, 0, {200, 4, 50}}}
                 : std::vector<SparseCase>{{2, 7, 7, 4, 2, 8, 3, 0, {2, 1, 1}},
                                           {1, 150, 150, 2, 1, 32, 1000, 9, {20, 4, 5}},
                                           {2, 200, 200, 3, 3, 18, 90, 70, {16, 0, 0}},
                                           {1, 140, 60, 2, 2, 9, 110, 0, {8, 0, 40}},
                                           {1, 70, 70, 9, 1, 4, 50, 0, {5, 1, 3}},
                                           {1, 66, 66, 1, 1, 300, 60, 3, {5, 1, 3}}})
        for (const DType t : kTypes)
            check_importance_case(c, s, t);
    if (!c.large)  // queries of two chunks
        check_importance_case(c, {1, 2200, 2200, 1, 1, 2, 2150, 0, {20, 2, 4}}, DType::fp32);
    c.begin("importance_gate");
    for (const DType t : {DType::fp32, DType::fp64}) {
        const Tensor importance = random_tensor({70, 3}, t, 1, 20.0);
        both(c, importance_gate_forward,
             {.gate = Tensor({70, 3}, t),
              .importance = importance,
              .bias = random_tensor({3}, t, 2)},
             named(t, {70, 3}), library_tolerance(t));
        both(c, importance_gate_backward,
             {.d_gate = random_tensor({70, 3}, t, 3),
              .d_bias = random_tensor({3}, t, 4),
              .importance = importance},
             named(t, {70, 3}), library_tolerance(t));
    }
}

struct TreeCase {
    std::int64_t batch, len, n_heads, n_kv_heads, dim, document;
    TreeRule rule;
};
void check_tree_case(Checker& c, const TreeCase& s, DType t) {
    const DType wide = wide_dtype(t);
    const std::string where = named(t, {s.len, s.n_heads, s.n_kv_heads, s.dim});
    const Shape columns{s.batch, s.len, s.n_kv_heads}, keys{s.batch, s.len, s.n_kv_heads, s.dim},
        queries{s.batch, s.len, s.n_heads, s.dim};
    const Tensor key_begin = packed_documents(s.batch, s.len, s.document),
                 q = random_tensor(queries, t, 1, 2.0), k = random_tensor(keys, t, 2, 2.0),
                 v = random_tensor(keys, t, 3), gate = random_gates(columns, wide, 5),
                 sink = random_tensor({s.n_heads}, wide, 6), out(queries, t),
                 lse({s.batch, s.n_heads, s.len}, wide),
                 selection({s.batch * s.n_kv_heads, s.len, tree_levels(s.rule, s.len),
                            tree_slots(s.rule)},
                           DType::int32);
    both(c, tree_attention_forward,
         {.out = out,
          .lse = lse,
          .selection = selection,
          .q = q,
          .k = k,
          .v = v,
          .key_begin = key_begin,
          .gate = gate,
          .sink_logit = sink,
          .rule = s.rule,
          .scale = 0.3},
         where, library_tolerance(t));
    both(c, tree_attention_backward,
         {.d_q = Tensor(queries, t),
          .d_k = Tensor(keys, t),
          .d_v = Tensor(keys, t),
          .d_gate = Tensor(columns, wide),
          .d_sink = Tensor({s.batch, s.len, s.n_heads}, wide),
          .d_out = random_tensor(queries, t, 9),
          .out = out,
          .lse = lse,
          .selection = selection,
          .q = q,
          .k = k,
          .v = v,
          .key_begin = key_begin,
          .gate = gate,
          .sink_logit = sink,
          .rule = s.rule,
          .scale = 0.3},
         where + " backward", library_tolerance(t));
}

void check_tree(Checker& c) {
    c.begin("tree");
    for (const TreeCase& s :
         c.large ? std::vector<TreeCase>{{1, 3000, 2, 1, 40, 2200, {128, 16, 8, 4, 4}}}
                 : std::vector<TreeCase>{{2, 30, 4, 2, 8, 17, {4, 2, 2, 1, 1}},
                                         {1, 200, 2, 1, 16, 1000, {16, 4, 3, 2, 4}},
                                         {1, 130, 1, 1, 18, 1000, {8, 8, 2, 3, 0}},
                                         {2, 70, 4, 2, 8, 50, {8, 1, 4, 2, 1}},
                                         {1, 150, 9, 1, 4, 140, {12, 6, 9, 2, 3}},
                                         {1, 80, 2, 1, 300, 70, {10, 5, 2, 2, 5}}})
        for (const DType t : kTypes)
            if (s.len < 100 || t == DType::fp32 || t == DType::bf16) check_tree_case(c, s, t);
}

}  // namespace

void check_selected_keys(Checker& c) {
    check_importance(c);
    check_tree(c);
}

}  // namespace stoa::test
