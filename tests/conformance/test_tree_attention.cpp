// The key tree: what a query reads covers its past once, the selection is the one that the rule
// says, and attention over it meets float64.
#include "kernels/core/thread_pool.h"
#include "kernels/importance_attention.h"
#include "tests/conformance/tree_reference.h"

using namespace stoa;
using namespace stoa::test;
using namespace stoa::test::tree;

namespace {

// Leaves that share a pack of 16 keys, that are one, several or parts of several; one document and
// packed ones; shorter than a leaf and than the window; groups of heads; wide fanouts.
const std::vector<Case> kCases = {
    {1, 1, 1, 1, 2, 100, {4, 2, 2, 1, 0}},      {2, 30, 4, 2, 8, 17, {4, 2, 2, 1, 1}},
    {1, 200, 2, 1, 16, 1000, {16, 4, 3, 2, 4}}, {1, 230, 1, 1, 18, 1000, {8, 8, 2, 3, 0}},
    {2, 130, 4, 2, 8, 90, {8, 1, 4, 2, 1}},     {1, 100, 2, 2, 4, 1000, {200, 4, 2, 2, 0}},
    {1, 260, 1, 1, 8, 1000, {12, 6, 9, 2, 3}},  {1, 210, 2, 1, 4, 1000, {40, 20, 2, 2, 5}},
    {1, 300, 1, 1, 4, 1000, {32, 32, 2, 1, 0}}, {1, 11, 2, 1, 4, 1000, {16, 16, 8, 8, 4}}};

void set_all(const Tensor& t, double value) {
    if (t.view.dtype == DType::fp64)
        std::ranges::fill(t.as<double>(), value);
    else
        std::ranges::fill(t.as<float>(), static_cast<float>(value));
}

/// Every past token is read once or lies under one summary, and nothing is selected twice; of the
/// first document and kv head.
std::int64_t uncovered_tokens(const Case& s, ConstTensorView selection) {
    std::int64_t wrong = 0;
    const std::int64_t levels = selection.shape[2], slots = selection.shape[3];
    for (std::int64_t t = 0; t < s.len; ++t) {
        const std::int32_t* const chosen = selection.as<std::int32_t>().data() + t * levels * slots;
        const std::int64_t far =
            std::max<std::int64_t>(0, t / s.rule.leaf - s.rule.window / s.rule.leaf);
        std::vector<int> times(static_cast<std::size_t>(far));
        const auto cover = [&](std::int64_t node, std::int64_t span) {
            for (std::int64_t j = node * span; j < (node + 1) * span; ++j)
                if (j < far)
                    ++times[static_cast<std::size_t>(j)];
                else
                    ++wrong;
        };
        std::int64_t span = 1;
        for (std::int64_t l = 0; span <= far; ++l, span *= s.rule.fanout) {
            const auto is_expanded = [&](std::int64_t level, std::int64_t node) {
                for (std::int64_t i = 0; i < slots && level < levels; ++i)
                    if (chosen[level * slots + i] == node) return true;
                return false;
            };
            for (std::int64_t j = 0; j < far / span; ++j) {
                const std::int64_t parent = j / s.rule.fanout;
                const bool orphan = (parent + 1) * span * s.rule.fanout > far;
                if (!orphan && !is_expanded(l + 1, parent)) continue;  // no candidate
                if (l == 0 || !is_expanded(l, j)) cover(j, span);
            }
        }
        wrong += std::ranges::count_if(times, [](int n) { return n != 1; });
    }
    return wrong;
}

}  // namespace

TEST_CASE("a query's reading covers its past once, and is what the rule selects") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const bool alike = GENERATE(false, true);  // keys: only the rule for equals decides
    for (const Case& s : kCases) {
        const Inputs in = make_inputs(s, DType::fp64, exec);
        if (alike) set_all(in.k, 0.5);
        const Outputs o = run_forward(s, in);
        const Reference r = tree_attention_float64(s, in, o.selection);
        CAPTURE(alike, s.len, s.rule.window, s.rule.leaf, s.rule.fanout, s.rule.beam);
        CHECK(r.uncovered == 0);
        CHECK(r.other_nodes == 0);
        CHECK(relative_error(to_double(o.out), r.out) < 1e-12);
        CHECK(relative_error(to_double(o.lse), r.lse) < 1e-12);
    }
}

TEST_CASE("tree_attention_forward meets float64") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const DType dtype = GENERATE(DType::fp32, DType::bf16);
    std::size_t compared = 0;
    for (const Case& s : kCases) {
        const Inputs in = make_inputs(s, dtype, exec);
        const Outputs o = run_forward(s, in);
        const Reference r = tree_attention_float64(s, in, o.selection);
        CAPTURE(dtype_name(dtype), s.len, s.dim, s.rule.window);
        if (r.other_nodes > 0) continue;  // two bounds closer than fp32 tells
        ++compared;
        CHECK(relative_error(to_double(o.out), r.out) < tolerance(dtype));
        CHECK(relative_error(to_double(o.lse), r.lse) < tolerance(wide_dtype(dtype)));
    }
    CHECK(compared + 1 >= kCases.size());
}

TEST_CASE("a beam that holds everything is dense attention with the same gates") {
    const auto [dtype, bound] =
        GENERATE(table<DType, double>({{DType::fp64, 1e-12}, {DType::fp32, 1e-5}}));
    const Case s{2, 140, 4, 2, 16, 90, {12, 4, 3, 1000, 2}};
    const Inputs in = make_inputs(s, dtype);
    const DType wide = wide_dtype(dtype);
    const Tensor dense(in.q.view.shape, dtype), dense_lse(lse_shape(s), wide),
        expiry({s.batch, s.n_kv_heads, s.len}, DType::int32),
        importance({s.batch, s.len, s.n_kv_heads}, wide);
    const Outputs o = run_forward(s, in);
    const KeyRule all{12, 2, 1000};
    select_keys(
        {.expiry = expiry, .importance = importance, .key_begin = in.key_begin, .rule = all}, {});
    importance_attention_forward({.out = dense,
                                  .lse = dense_lse,
                                  .q = in.q,
                                  .k = in.k,
                                  .v = in.v,
                                  .expiry = expiry,
                                  .key_begin = in.key_begin,
                                  .gate = in.gate,
                                  .sink_logit = in.sink_logit,
                                  .rule = all,
                                  .scale = in.scale},
                                 {});
    CHECK(relative_error(to_double(o.out), to_double(dense)) < bound);
    CHECK(relative_error(to_double(o.lse), to_double(dense_lse)) < bound);
}

TEST_CASE("a prefix gives what the whole gives") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16);
    const Case s{2, 300, 4, 2, 24, 270, {32, 8, 3, 2, 4}};
    const Inputs in = make_inputs(s, dtype);
    const Outputs whole = run_forward(s, in);
    const auto out = bytes_of(whole.out);
    for (const std::int64_t prefix : {1, 31, 33, 160, 197, 299}) {
        Case part = s;
        part.batch = 1;
        part.len = prefix;
        const Inputs first{first_tokens(in.q, prefix),
                           first_tokens(in.k, prefix),
                           first_tokens(in.v, prefix),
                           first_tokens(in.gate, prefix),
                           copy_of(in.sink_logit),
                           packed_documents(1, prefix, s.document),
                           in.rule,
                           in.scale};
        const auto cut = bytes_of(run_forward(part, first).out);
        CAPTURE(prefix);
        CHECK(std::equal(cut.begin(), cut.end(), out.begin()));
    }
}

TEST_CASE("NaN and infinite keys, and zeros of both signs, are selected by a fixed rule") {
    const Case s{1, 220, 2, 1, 4, 1000, {16, 4, 3, 2, 1}};
    Inputs in = make_inputs(s, DType::fp32);
    const auto k = in.k.as<float>();
    for (std::size_t i = 0; i < k.size(); ++i)
        k[i] = i % 3 == 0 ? 0.0f : -0.0f;
    const float odd = GENERATE(std::numeric_limits<float>::quiet_NaN(),
                               std::numeric_limits<float>::infinity(), 0.0f);
    const std::int64_t bad = 40;
    k[static_cast<std::size_t>(bad * s.dim)] = odd;
    check_same_bits([&] { return bytes_of(run_forward(s, in).selection); });
    const Outputs o = run_forward(s, in);
    CHECK(uncovered_tokens(s, o.selection) == 0);
    const auto out = to_double(o.out);
    // Nobody before the token sees it, and everybody after it.
    const auto from = out.begin() + bad * s.n_heads * s.dim;
    CHECK(std::none_of(out.begin(), from, [](double x) { return std::isnan(x); }));
    if (std::isnan(odd)) CHECK(std::all_of(from, out.end(), [](double x) { return x != x; }));
}

TEST_CASE("every place selects the same nodes, whatever the keys") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16);
    const int keys = GENERATE(0, 1, 2, 3);
    for (const Case& s : kCases) {
        Inputs in = make_inputs(s, dtype);
        dispatch_dtype(dtype, [&]<Element T>(T) {
            const auto k = in.k.as<T>();
            for (std::size_t i = 0; i < k.size(); ++i) {
                const auto x = static_cast<float>(i % 7) - 3.0f;
                if (keys == 1) k[i] = narrow_to<T>(i % 3 == 0 ? 0.0f : -0.0f);  // equals
                if (keys == 2) k[i] = narrow_to<T>(i % 53 == 0 ? NAN : x);      // ties
                if (keys == 3) k[i] = narrow_to<T>(i % 61 == 0 ? INFINITY : -x);
            }
        });
        const auto expected = bytes_of(run_forward(s, in).selection);
        for (const Exec& exec : available_execs()) {
            in.exec = exec;
            CAPTURE(dtype_name(dtype), keys, s.len, s.rule.leaf, s.rule.fanout, s.rule.beam);
            CHECK(bytes_of(run_forward(s, in).selection) == expected);
        }
    }
}

TEST_CASE("a row of logits far below zero has a finite softmax") {
    const Case s{1, 160, 2, 1, 4, 1000, {16, 4, 3, 2, 2}};
    const Inputs in = make_inputs(s, DType::fp32);
    for (std::int64_t r = 0; r < s.len; ++r)
        for (std::int64_t c = 0; c < s.dim; ++c) {
            in.k.as<float>()[static_cast<std::size_t>(r * s.dim + c)] =
                10.0f + 0.01f * float(r % 7);
            for (std::int64_t h = 0; h < s.n_heads; ++h)
                in.q.as<float>()[static_cast<std::size_t>((r * s.n_heads + h) * s.dim + c)] = -6.0f;
        }
    set_all(in.sink_logit, -400.0);
    const Outputs o = run_forward(s, in);
    const Reference r = tree_attention_float64(s, in, o.selection);
    CHECK(*std::ranges::max_element(r.lse) < -90.0);
    CHECK(relative_error(to_double(o.lse), r.lse) < 1e-5);
    CHECK(relative_error(to_double(o.out), r.out) < 1e-4);  // logits of 120 have 7 digits
}

TEST_CASE("without gates and sinks the tree is that of closed gates at zero") {
    const Case s{1, 150, 2, 1, 8, 1000, {8, 4, 2, 2, 0}};
    Inputs in = make_inputs(s, DType::fp32);
    set_all(in.gate, 0.0);
    set_all(in.sink_logit, -std::numeric_limits<double>::infinity());
    const auto given = run_forward(s, in).bytes();
    in.gate = Tensor();
    in.sink_logit = Tensor();
    CHECK(run_forward(s, in).bytes() == given);
}

TEST_CASE("tree_attention refuses what does not fit") {
    const Case s{1, 40, 2, 1, 4, 100, {8, 4, 2, 2, 1}};
    Inputs in = make_inputs(s, DType::fp32);
    const Outputs o = run_forward(s, in);
    for (const TreeRule& wrong :
         {TreeRule{10, 4, 2, 2, 1}, TreeRule{8, 0, 2, 2, 0}, TreeRule{8, 4, 1, 2, 1},
          TreeRule{8, 4, 2, 0, 1}, TreeRule{8, 4, 2, 2, 5}, TreeRule{8, 4, 2, 3, 1}}) {
        in.rule = wrong;
        CHECK_THROWS_AS(forward(o.out, o.lse, o.selection, in), ShapeError);
    }
}
