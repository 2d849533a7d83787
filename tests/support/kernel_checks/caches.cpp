#include <algorithm>

#include "tests/support/attention_cases.h"
#include "tests/support/kernel_checks/checker.h"

namespace stoa::test {
namespace {

/// Rows [begin, begin + count) of (tokens, ...).
ConstTensorView rows_of(const Tensor& t, std::int64_t begin, std::int64_t count) {
    return t.view.empty() ? ConstTensorView{} : t.view.view().slice_rows(begin, count);
}
/// A sequence in parts of these lengths, over and over: of every fifth part only the keys.
/// step(begin, count, attends)
template <class Step>
void in_parts(std::int64_t len, const std::vector<std::int64_t>& parts, const Step& step) {
    std::size_t i = 0;
    for (std::int64_t begin = 0, count = 0; begin < len; begin += count, ++i) {
        count = std::min(parts[i % parts.size()], len - begin);
        step(begin, count, i % 5 != 3);
    }
}

struct CacheCase {
    std::int64_t len, n_heads, n_kv_heads, dim;
    KeyRule rule;
    std::vector<std::int64_t> parts;
    bool gated = true;
};
void check_importance_cache_case(Checker& c, const CacheCase& s, DType t) {
    const DType wide = wide_dtype(t);
    const Tensor q = random_tensor({s.len, s.n_heads, s.dim}, t, 1, 2.0),
                 k = random_tensor({s.len, s.n_kv_heads, s.dim}, t, 2, 2.0),
                 v = random_tensor({s.len, s.n_kv_heads, s.dim}, t, 3),
                 importance = random_tensor({s.len, s.n_kv_heads}, wide, 4),
                 gate = s.gated ? random_gates({s.len, s.n_kv_heads}, wide, 5) : Tensor{},
                 sink = s.gated ? random_tensor({s.n_heads}, wide, 6) : Tensor{};
    ImportanceCache on_cpu = make_importance_cache(s.rule, s.n_kv_heads, s.dim, t),
                    there = make_importance_cache(s.rule, s.n_kv_heads, s.dim, t, c.exec.device);
    in_parts(s.len, s.parts, [&](std::int64_t begin, std::int64_t count, bool attends) {
        const auto of = [&](const Tensor& x) { return rows_of(x, begin, count); };
        const ImportanceCacheKeys keys{of(k), of(v), of(gate), of(importance)};
        if (!attends) {
            importance_cache_append(on_cpu, keys, {});
            return run_append(there, keys, c.exec);
        }
        const Shape shape{count, s.n_heads, s.dim};
        const Tensor expected(shape, t), got(shape, t);
        ImportanceCacheArgs a{.out = expected,
                              .q = of(q),
                              .k = keys.k,
                              .v = keys.v,
                              .gate = keys.gate,
                              .importance = keys.importance,
                              .sink_logit = sink,
                              .scale = 0.3};
        importance_cache_attend(on_cpu, a, {});
        a.out = got;
        run_attend(there, a, c.exec);
        ++c.now().runs;
        compare_written(c.now(), got.view, expected.view, library_tolerance(t),
                        named(t, shape) + " at " + std::to_string(begin));
    });
}
void check_importance_cache(Checker& c) {
    c.begin("importance_cache");
    for (const CacheCase& s :
         c.large ? std::vector<CacheCase>{{3000, 8, 2, 64, {512, 4, 128}, {2000, 1, 1, 1, 60}}}
                 : std::vector<CacheCase>{{90, 4, 2, 18, {16, 2, 5}, {1, 7, 1, 33, 1, 1}},
                                          {70, 9, 1, 8, {8, 0, 7}, {40, 1, 1}, false},
                                          {50, 2, 2, 300, {5, 3, 0}, {1, 1, 20}},
                                          {40, 2, 1, 8, {300, 4, 8}, {1, 13}}})
        for (const DType t : kTypes)
            check_importance_cache_case(c, s, t);
}

struct TreeCacheCase {
    std::int64_t len, n_heads, n_kv_heads, dim;
    TreeRule rule;
    std::vector<std::int64_t> parts;
    bool gated = true;
};
void check_tree_cache_case(Checker& c, const TreeCacheCase& s, DType t) {
    const DType wide = wide_dtype(t);
    const Tensor q = random_tensor({s.len, s.n_heads, s.dim}, t, 1, 2.0),
                 k = random_tensor({s.len, s.n_kv_heads, s.dim}, t, 2, 2.0),
                 v = random_tensor({s.len, s.n_kv_heads, s.dim}, t, 3),
                 gate = s.gated ? random_gates({s.len, s.n_kv_heads}, wide, 5) : Tensor{},
                 sink = s.gated ? random_tensor({s.n_heads}, wide, 6) : Tensor{};
    const std::int64_t capacity = s.len + 20;
    TreeCache on_cpu = make_tree_cache(s.rule, s.n_kv_heads, s.dim, capacity, t),
              there = make_tree_cache(s.rule, s.n_kv_heads, s.dim, capacity, t, c.exec.device);
    in_parts(s.len, s.parts, [&](std::int64_t begin, std::int64_t count, bool attends) {
        const auto of = [&](const Tensor& x) { return rows_of(x, begin, count); };
        tree_cache_append(on_cpu, of(k), of(v), of(gate), {});
        run_append(there, {of(k), of(v), of(gate)}, c.exec);
        if (!attends) return;
        const Shape shape{count, s.n_heads, s.dim};
        const Tensor expected(shape, t), got(shape, t);
        TreeCacheAttendArgs a{
            .out = expected, .q = of(q), .sink_logit = sink, .begin = begin, .scale = 0.3};
        tree_cache_attend(on_cpu, a, {});
        a.out = got;
        run_attend(there, a, c.exec);
        ++c.now().runs;
        compare_written(c.now(), got.view, expected.view, library_tolerance(t),
                        named(t, shape) + " at " + std::to_string(begin));
    });
}
void check_tree_cache(Checker& c) {
    c.begin("tree_cache");
    for (const TreeCacheCase& s :
         c.large
             ? std::vector<TreeCacheCase>{{4000, 8, 2, 64, {512, 64, 8, 4, 4}, {3000, 1, 1, 1, 60}}}
             : std::vector<TreeCacheCase>{{120, 4, 2, 18, {16, 8, 3, 2, 4}, {1, 31, 1, 17, 1, 1}},
                                          {80, 9, 1, 5, {4, 1, 2, 3, 1}, {50, 1}, false},
                                          {90, 1, 1, 300, {6, 3, 9, 2, 0}, {1, 1, 40}}})
        for (const DType t : kTypes)
            check_tree_cache_case(c, s, t);
}

}  // namespace

void check_caches(Checker& c) {
    check_importance_cache(c);
    check_tree_cache(c);
}

}  // namespace stoa::test
