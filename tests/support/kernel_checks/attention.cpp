#include <algorithm>
#include <cmath>

#include "tests/support/kernel_checks/checker.h"

namespace stoa::test {
namespace {

struct AttentionCase {
    std::int64_t batch, q_len, k_len, n_heads, n_kv_heads, dim, document;
    bool causal() const { return q_len == k_len; }
};

/// Sums in another order, and the library's p and d_s in the elements' type: compared in value.
template <class Forward, class Backward>
void check_attention_case(Checker& c, const AttentionCase& s, DType t, Forward forward,
                          Backward backward) {
    const Shape queries{s.batch, s.q_len, s.n_heads, s.dim},
        keys{s.batch, s.k_len, s.n_kv_heads, s.dim}, rows{s.batch, s.n_heads, s.q_len};
    const double tolerance = t == DType::fp64   ? 1e-12
                             : t == DType::fp32 ? 1e-5
                             : t == DType::fp16 ? 3e-3
                                                : 2e-2;
    const Tensor begin({s.batch * s.q_len}, DType::int32), end({s.batch * s.q_len}, DType::int32);
    for (std::int64_t r = 0; r < s.batch * s.q_len; ++r) {
        const std::int64_t key = s.k_len - s.q_len + r % s.q_len, b = r / s.q_len;
        const std::int64_t start =
            std::max<std::int64_t>(0, (key + b) / s.document * s.document - b);
        begin.as<std::int32_t>()[static_cast<std::size_t>(r)] = static_cast<std::int32_t>(start);
        end.as<std::int32_t>()[static_cast<std::size_t>(r)] = static_cast<std::int32_t>(key + 1);
    }
    AttentionArgs a{.out = {},
                    .lse = {},
                    .key_begin = begin,
                    .key_end = end,
                    .scale = 1.0 / std::sqrt(static_cast<double>(s.dim)),
                    .causal = s.causal()};
    const Tensor out(queries, t), lse(rows, wide_dtype(t)), d_out = random_tensor(queries, t, 9);
    const Tensor q = random_tensor(queries, t, 1, 2.0), k = random_tensor(keys, t, 2, 2.0),
                 v = random_tensor(keys, t, 3);
    a.out = out, a.lse = lse, a.q = q, a.k = k, a.v = v;
    both(c, forward, a, named(t, queries), tolerance);
    attention_forward(a, {});
    both(c, backward,
         {.d_q = Tensor(queries, t),
          .d_k = Tensor(keys, t),
          .d_v = Tensor(keys, t),
          .d_out = d_out,
          .out = out,
          .lse = lse,
          .q = q,
          .k = k,
          .v = v,
          .key_begin = begin,
          .key_end = end,
          .scale = a.scale,
          .causal = a.causal},
         named(t, queries) + " backward", tolerance);
}

}  // namespace

void check_attention(Checker& c) {
    c.begin("attention");
    for (const AttentionCase& s : c.large
                                      ? std::vector<AttentionCase>{{2, 300, 300, 8, 2, 128, 200}}
                                      : std::vector<AttentionCase>{{2, 7, 7, 4, 2, 8, 3},
                                                                   {2, 70, 70, 2, 1, 34, 50},
                                                                   {1, 40, 40, 2, 2, 256, 100},
                                                                   {2, 3, 100, 4, 1, 20, 70}})
        for (const DType t : kTypes)
            check_attention_case(c, s, t, own_attention, own_attention_gradient);
}

/// On a GPU cuDNN, on the host its graphs' operations.
void check_library_attention(Checker& c) {
    c.begin("attention by cuDNN");
    const std::vector<AttentionCase> cases =
        c.large
            ? std::vector<AttentionCase>{{2, 256, 256, 4, 1, 128, 200}}
            : std::vector<AttentionCase>{{2, 130, 130, 4, 2, 64, 50}, {1, 64, 64, 2, 2, 8, 100}};
    for (const AttentionCase& s : cases)
        for (const DType t : {DType::bf16, DType::fp16})
            check_attention_case(c, s, t, library_attention,
                                 library_attention_gradient<cuda::kSdpaScoreBytes>);
}

}  // namespace stoa::test
