// Decoding from a cache of constant size: the bits of the whole sequence, on the CPU and on a GPU
// or with its kernels on the host.
#include <limits>

#include "kernels/core/thread_pool.h"
#include "kernels/importance_cache.h"
#include "tests/conformance/conformance.h"
#include "tests/support/execs.h"

using namespace stoa;
using namespace stoa::test;

namespace {

struct Case {
    std::int64_t len, n_heads, n_kv_heads, dim;
    KeyRule rule;
    bool gated = true;
};
struct Inputs {
    Tensor q, k, v, importance, gate, sink_logit;
};
Inputs make_inputs(const Case& s, DType dtype) {
    const DType wide = wide_dtype(dtype);
    Inputs in{random_tensor({s.len, s.n_heads, s.dim}, dtype, 1, 2.0),
              random_tensor({s.len, s.n_kv_heads, s.dim}, dtype, 2, 2.0),
              random_tensor({s.len, s.n_kv_heads, s.dim}, dtype, 3),
              random_tensor({s.len, s.n_kv_heads}, DType::fp32, 4),
              s.gated ? random_tensor({s.len, s.n_kv_heads}, wide, 5, 3.0) : Tensor{},
              s.gated ? random_tensor({s.n_heads}, wide, 6) : Tensor{}};
    auto u = in.importance.as<float>();
    for (std::size_t i = 0; i < u.size(); ++i)
        u[i] = i % 11 == 0 ? NAN : std::round(u[i] * 4.0f);  // ties, no numbers
    return in;
}

Tensor whole_forward(const Case& s, const Inputs& in, DType dtype, const Exec& exec = {}) {
    const Tensor expiry({1, s.n_kv_heads, s.len}, DType::int32), key_begin({s.len}, DType::int32);
    run(select_keys,
        {.expiry = expiry,
         .importance = in.importance.view.reshaped({1, s.len, s.n_kv_heads}),
         .key_begin = key_begin,
         .rule = s.rule},
        exec);
    const Shape q_shape{1, s.len, s.n_heads, s.dim}, kv_shape{1, s.len, s.n_kv_heads, s.dim};
    Tensor out(in.q.view.shape, dtype);
    const Tensor lse({1, s.n_heads, s.len}, wide_dtype(dtype));
    run(importance_attention_forward,
        {.out = out.view.reshaped(q_shape),
         .lse = lse,
         .q = in.q.view.reshaped(q_shape),
         .k = in.k.view.reshaped(kv_shape),
         .v = in.v.view.reshaped(kv_shape),
         .expiry = expiry,
         .key_begin = key_begin,
         .gate = s.gated ? in.gate.view.reshaped({1, s.len, s.n_kv_heads}) : TensorView{},
         .sink_logit = in.sink_logit,
         .rule = s.rule,
         .scale = 0.25},
        exec);
    return out;
}

/// The sequence in parts of the lengths given, again and again.
Tensor in_parts(const Case& s, const Inputs& in, DType dtype,
                const std::vector<std::int64_t>& parts, std::int64_t* bytes = nullptr,
                const Exec& exec = {}) {
    ImportanceCache cache = make_importance_cache(s.rule, s.n_kv_heads, s.dim, dtype, exec.device);
    Tensor out(in.q.view.shape, dtype);
    std::size_t part = 0;
    for (std::int64_t t = 0; t < s.len; ++part) {
        const std::int64_t count = std::min(parts[part % parts.size()], s.len - t);
        const auto rows = [&](const TensorView& x) {
            return x.empty() ? TensorView{} : x.slice_rows(t, count);
        };
        run_attend(cache,
                   {.out = rows(out.view),
                    .q = rows(in.q.view),
                    .k = rows(in.k.view),
                    .v = rows(in.v.view),
                    .gate = rows(in.gate.view),
                    .importance = rows(in.importance.view),
                    .sink_logit = in.sink_logit,
                    .scale = 0.25},
                   exec);
        t += count;
    }
    CHECK(cache.length == s.len);
    if (bytes != nullptr) *bytes = importance_cache_bytes(cache);
    return out;
}

const std::vector<Case> kCases = {{200, 2, 1, 16, {20, 4, 5}},       {130, 4, 2, 18, {16, 0, 0}},
                                  {150, 1, 1, 64, {8, 0, 7}, false}, {90, 3, 3, 4, {5, 3, 100}},
                                  {70, 2, 1, 8, {300, 4, 8}},        {60, 2, 2, 8, {1, 2, 3}},
                                  {700, 2, 1, 64, {300, 4, 40}}};

/// Kernels on the host are slow.
const std::vector<Case> kDeviceCases = {
    {90, 4, 2, 18, {16, 2, 5}}, {70, 1, 1, 8, {8, 0, 7}, false}, {60, 9, 1, 4, {5, 3, 100}},
    {50, 2, 2, 8, {1, 2, 3}},   {40, 2, 1, 40, {300, 4, 8}},     {60, 2, 1, 300, {16, 0, 0}}};

}  // namespace

TEST_CASE("decoding token by token or in parts has the bits of the whole sequence") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    for (const Case& s : kCases) {
        const Inputs in = make_inputs(s, dtype);
        const auto whole = bytes_of(whole_forward(s, in, dtype));
        for (const auto& parts : std::vector<std::vector<std::int64_t>>{
                 {1}, {1000}, {37, 1, 1, 2}, {3}, {1, 64, 1, 33}}) {
            CAPTURE(dtype_name(dtype), s.len, s.rule.window, s.rule.keep, parts[0]);
            CHECK(bytes_of(in_parts(s, in, dtype, parts)) == whole);
        }
    }
}

TEST_CASE("decoding on a device has the bits of the whole sequence there") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    for (const Case& s : kDeviceCases) {
        const Inputs in = make_inputs(s, dtype);
        for (const Exec& exec : available_execs()) {
            const auto whole = bytes_of(whole_forward(s, in, dtype, exec));
            for (const auto& parts :
                 std::vector<std::vector<std::int64_t>>{{1}, {1000}, {37, 1, 1, 2, 5}}) {
                CAPTURE(dtype_name(dtype), s.len, s.rule.window, parts[0], exec.device.is_cuda());
                CHECK(bytes_of(in_parts(s, in, dtype, parts, nullptr, exec)) == whole);
            }
        }
    }
}

TEST_CASE("a cache that tokens were only appended to answers the next ones alike") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    const Exec exec = GENERATE(from_range(available_execs()));
    if (exec.device.is_cuda() && dtype != DType::fp32) return;  // slow on the host
    for (const Case& s : exec.device.is_cuda() ? kDeviceCases : kCases) {
        const Inputs in = make_inputs(s, dtype);
        const auto whole = bytes_of(whole_forward(s, in, dtype, exec));
        for (const auto& [parts, from] :
             std::vector<std::pair<std::vector<std::int64_t>, std::int64_t>>{
                 {{1}, 3}, {{1000}, s.len / 2}, {{5, 1, 30}, s.len - 7}, {{64, 2}, s.len - 1}}) {
            ImportanceCache cache =
                make_importance_cache(s.rule, s.n_kv_heads, s.dim, dtype, exec.device);
            Tensor out(in.q.view.shape, dtype);
            std::size_t part = 0;
            for (std::int64_t t = 0; t < s.len;) {
                const std::int64_t end = t < from ? from : s.len,
                                   count = std::min(parts[part++ % parts.size()], end - t);
                const auto rows = [&](const TensorView& x) {
                    return x.empty() ? TensorView{} : x.slice_rows(t, count);
                };
                const ImportanceCacheKeys keys{rows(in.k.view), rows(in.v.view), rows(in.gate.view),
                                               rows(in.importance.view)};
                if (t < from)
                    run_append(cache, keys, exec);
                else
                    run_attend(cache,
                               {.out = rows(out.view),
                                .q = rows(in.q.view),
                                .k = keys.k,
                                .v = keys.v,
                                .gate = keys.gate,
                                .importance = keys.importance,
                                .sink_logit = in.sink_logit,
                                .scale = 0.25},
                               exec);
                t += count;
            }
            CAPTURE(dtype_name(dtype), s.len, s.rule.window, s.rule.keep, parts[0], from);
            CHECK(cache.length == s.len);
            const auto tail = bytes_of(out);
            const auto skipped = static_cast<std::ptrdiff_t>(from * out.view.bytes() /
                                                             std::max<std::int64_t>(1, s.len));
            REQUIRE(tail.size() == whole.size());
            CHECK(std::equal(tail.begin() + skipped, tail.end(), whole.begin() + skipped));
        }
    }
}

TEST_CASE("decoding has the same bits on any instruction set and number of threads") {
    const Case s{200, 4, 2, 24, {40, 4, 12}};
    const Inputs in = make_inputs(s, DType::fp32);
    check_same_bits([&] { return bytes_of(in_parts(s, in, DType::fp32, {50, 1, 1, 1})); });
    const auto one = bytes_of(in_parts(s, in, DType::fp32, {50, 1, 1, 1}));
    set_cpu_threads(3);
    const auto many = bytes_of(in_parts(s, in, DType::fp32, {50, 1, 1, 1}));
    set_cpu_threads(1);
    CHECK(many == one);
}

TEST_CASE("an importance cache has the same size at any length") {
    const KeyRule rule{20, 4, 5};
    std::int64_t few = 0, many = 0;
    for (const auto& [len, bytes] : {std::pair{10, &few}, {500, &many}}) {
        const Case s{len, 2, 1, 16, rule};
        in_parts(s, make_inputs(s, DType::fp32), DType::fp32, {1}, bytes);
    }
    CHECK(many == few);
}

TEST_CASE("importance_cache refuses what does not fit") {
    CHECK_THROWS_AS(make_importance_cache({0, 0, 0}, 1, 4, DType::fp32), ShapeError);
    ImportanceCache cache = make_importance_cache({4, 1, 2}, 2, 4, DType::fp32);
    const Tensor q({1, 4, 4}, DType::fp32), kv({1, 2, 4}, DType::fp32), u({1, 2}, DType::fp32);
    CHECK_NOTHROW(
        importance_cache_attend(cache, {.out = q, .q = q, .k = kv, .v = kv, .importance = u}, {}));
    CHECK_THROWS_AS(importance_cache_attend(cache, {.out = q, .q = q, .k = kv, .v = kv}, {}),
                    ShapeError);
    const Tensor odd({1, 3, 4}, DType::fp32);
    CHECK_THROWS_AS(importance_cache_attend(
                        cache, {.out = odd, .q = odd, .k = kv, .v = kv, .importance = u}, {}),
                    ShapeError);
    CHECK_THROWS_AS(importance_cache_append(cache, {.k = kv, .v = kv}, {}), ShapeError);
    CHECK_THROWS_AS(importance_cache_append(cache, {.k = odd, .v = odd, .importance = u}, {}),
                    ShapeError);
    CHECK(cache.length == 1);
    CHECK_NOTHROW(importance_cache_append(cache, {.k = kv, .v = kv, .importance = u}, {}));
    CHECK(cache.length == 2);
}
