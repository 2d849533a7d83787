// Decoding and chunked prefill: whatever way the tokens come, a query gets the bits of the forward,
// on the CPU and on a GPU or with its kernels on the host.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/core/convert.h"
#include "kernels/core/thread_pool.h"
#include "kernels/tree_cache.h"
#include "tests/conformance/tree_reference.h"

using namespace stoa;
using namespace stoa::test;
using namespace stoa::test::tree;

namespace {

/// Tokens [begin, begin + count) of a (1, len, ...) tensor, without the batch.
ConstTensorView tokens_of(const Tensor& t, std::int64_t begin, std::int64_t count) {
    if (t.view.empty()) return {};
    Shape rows;
    for (int i = 1; i < t.view.shape.rank; ++i)
        rows.dims[static_cast<std::size_t>(rows.rank++)] = t.view.shape[i];
    return t.view.view().reshaped(rows).slice_rows(begin, count);
}

TreeCache make_cache(const Case& s, const Inputs& in, std::int64_t capacity,
                     std::int64_t together = 0) {
    return make_tree_cache(s.rule, s.n_kv_heads, s.dim, capacity, in.q.view.dtype, in.exec.device,
                           together);
}
void append(TreeCache& cache, const Inputs& in, std::int64_t begin, std::int64_t count) {
    run_append(cache,
               {tokens_of(in.k, begin, count), tokens_of(in.v, begin, count),
                tokens_of(in.gate, begin, count)},
               in.exec);
}
void attend(const TreeCache& cache, const Inputs& in, const Tensor& out, std::int64_t begin,
            std::int64_t count) {
    const ConstTensorView rows = tokens_of(out, begin, count);
    run_attend(cache,
               {.out = {const_cast<std::byte*>(rows.data), rows.dtype, rows.shape, {}},
                .q = tokens_of(in.q, begin, count),
                .sink_logit = in.sink_logit,
                .begin = begin,
                .scale = in.scale},
               in.exec);
}

/// Outputs of all tokens that come in steps of the given sizes, over and over.
std::vector<std::byte> decode(const Case& s, const Inputs& in, std::int64_t capacity,
                              const std::vector<std::int64_t>& steps, std::int64_t together = 0) {
    TreeCache cache = make_cache(s, in, capacity, together);
    const Tensor out(in.q.view.shape, in.q.view.dtype);
    std::size_t i = 0;
    for (std::int64_t begin = 0; begin < s.len;) {
        const std::int64_t count = std::min(steps[i++ % steps.size()], s.len - begin);
        append(cache, in, begin, count);
        attend(cache, in, out, begin, count);
        begin += count;
    }
    return bytes_of(out);
}

}  // namespace

TEST_CASE("decoding gives the bits of the forward, token by token and in any chunks") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    const Case s = GENERATE(Case{1, 230, 4, 2, 20, 1000, {16, 8, 3, 2, 4}},
                            Case{1, 150, 1, 1, 5, 1000, {6, 3, 9, 2, 0}},
                            Case{1, 200, 2, 1, 16, 1000, {16, 16, 2, 2, 1}},
                            Case{1, 9, 2, 1, 8, 1000, {16, 4, 2, 2, 0}});
    const Inputs in = make_inputs(s, dtype);
    const auto whole = bytes_of(run_forward(s, in).out);
    CAPTURE(dtype_name(dtype), s.len);
    CHECK(decode(s, in, s.len, {1}) == whole);
    CHECK(decode(s, in, 4 * s.len, {1}) == whole);  // room for more levels
    CHECK(decode(s, in, s.len + 7, {s.len}) == whole);
    CHECK(decode(s, in, s.len, {17, 1, 64, 5, 100}) == whole);
    set_cpu_threads(2);
    const auto two = decode(s, in, s.len, {50});
    set_cpu_threads(1);
    CHECK(two == whole);
    check_same_bits([&] { return decode(s, in, s.len, {1, 2, 40}); });
}

TEST_CASE("decoding on a device gives the bits of its forward") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    const Case s = GENERATE(Case{1, 130, 4, 2, 20, 1000, {16, 8, 3, 2, 4}},
                            Case{1, 100, 1, 1, 5, 1000, {6, 3, 9, 2, 0}},
                            Case{1, 90, 2, 2, 16, 1000, {4, 1, 2, 3, 1}},  // six levels
                            Case{1, 60, 9, 1, 8, 1000, {8, 8, 2, 2, 1}},
                            Case{1, 9, 2, 1, 8, 1000, {16, 4, 2, 2, 0}});
    const bool gated = s.len != 100;
    for (const Exec& exec : available_execs()) {
        Inputs in = make_inputs(s, dtype, exec);
        if (!gated) in.gate = Tensor(), in.sink_logit = Tensor();
        const auto whole = bytes_of(run_forward(s, in).out);
        CAPTURE(dtype_name(dtype), s.len, exec.device.is_cuda());
        CHECK(decode(s, in, s.len + 60, {1}) == whole);
        CHECK(decode(s, in, s.len, {s.len}) == whole);
        CHECK(decode(s, in, s.len + 1, {17, 1, 4, 64}) == whole);
    }
}

TEST_CASE("a cache answers earlier queries as if nothing had come since") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    const bool gated = GENERATE(true, false);
    const Case s = GENERATE(Case{1, 260, 2, 1, 8, 1000, {16, 4, 3, 2, 1}},
                            Case{1, 230, 4, 2, 20, 1000, {16, 8, 3, 2, 4}},
                            Case{1, 150, 1, 1, 5, 1000, {6, 3, 9, 2, 0}});
    for (const Exec& exec : available_execs()) {
        if (exec.device.is_cuda() && (dtype != DType::fp32 || gated)) continue;  // slow on the host
        Inputs in = make_inputs(s, dtype, exec);
        if (!gated) in.gate = Tensor(), in.sink_logit = Tensor();
        const auto whole = bytes_of(run_forward(s, in).out);
        for (const std::int64_t at_once : {1, 17, 100}) {
            if (exec.device.is_cuda() && at_once == 17) continue;
            TreeCache cache = make_cache(s, in, s.len + 9);
            append(cache, in, 0, s.len);
            const Tensor out(in.q.view.shape, dtype);
            for (std::int64_t end = s.len; end > 0; end -= std::min(end, at_once)) {
                const std::int64_t begin = std::max<std::int64_t>(0, end - at_once);
                attend(cache, in, out, begin, end - begin);
            }
            CAPTURE(dtype_name(dtype), gated, s.len, at_once, exec.device.is_cuda());
            CHECK(bytes_of(out) == whole);
        }
    }
}

namespace {

/// Every value becomes one of e4m3.
void round_to_codes(const Tensor& t) {
    dispatch_dtype(t.view.dtype, [&]<Element T>(T) {
        for (T& x : t.as<T>())
            x = convert<T>(to_float(to_e4m3(static_cast<float>(widen(x)))));
    });
}

}  // namespace

TEST_CASE("coded tokens lose nothing that e4m3 has, and give one answer whatever way they come") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16);
    const Case s = GENERATE(Case{1, 230, 4, 2, 20, 1000, {16, 8, 3, 2, 4}},
                            Case{1, 150, 1, 1, 5, 1000, {6, 3, 9, 2, 0}},
                            Case{1, 200, 2, 1, 16, 1000, {16, 16, 2, 2, 1}},
                            Case{1, 330, 2, 1, 33, 1000, {32, 32, 2, 2, 3}},
                            Case{1, 9, 2, 1, 8, 1000, {16, 4, 2, 2, 0}});
    Inputs in = make_inputs(s, dtype);
    CAPTURE(dtype_name(dtype), s.len);
    const auto coded = decode(s, in, s.len, {1}, 1);
    CHECK(decode(s, in, 2 * s.len, {1}, s.len) == coded);
    CHECK(decode(s, in, s.len, {s.len}, s.len) == coded);
    CHECK(decode(s, in, s.len, {17, 1, 64, 5, 100}, 100) == coded);
    CHECK(decode(s, in, s.len, {30, 2}, 30) == coded);
    set_cpu_threads(2);
    const auto two = decode(s, in, s.len, {50}, 50);
    set_cpu_threads(1);
    CHECK(two == coded);
    check_same_bits([&] { return decode(s, in, s.len, {1, 2, 40}, 40); });
    // Most values change, those of queries that have no far leaf do not.
    const auto whole = bytes_of(run_forward(s, in).out);
    CHECK((coded == whole) == (s.len < s.rule.window));
    const auto near =
        static_cast<std::ptrdiff_t>(s.rule.window * s.n_heads * s.dim * size_of(dtype));
    if (s.len > s.rule.window)
        CHECK(std::equal(coded.begin(), coded.begin() + near, whole.begin()));
    round_to_codes(in.k);
    round_to_codes(in.v);
    CHECK(decode(s, in, s.len, {1}, 1) == bytes_of(run_forward(s, in).out));
}

TEST_CASE("what a coded cache answers is as near as three bits of mantissa") {
    const Case s{1, 400, 2, 1, 32, 1000, {32, 16, 4, 2, 2}};
    const Inputs in = make_inputs(s, DType::fp32);
    const auto values = [](const std::vector<std::byte>& bytes) {
        std::vector<float> x(bytes.size() / sizeof(float));
        std::memcpy(x.data(), bytes.data(), bytes.size());
        return x;
    };
    const auto exact = values(decode(s, in, s.len, {50})),
               coded = values(decode(s, in, s.len, {50}, 50));
    double error = 0.0, size = 0.0;
    for (std::size_t i = 0; i < exact.size(); ++i) {
        error += std::pow(static_cast<double>(coded[i] - exact[i]), 2);
        size += std::pow(static_cast<double>(exact[i]), 2);
    }
    CAPTURE(std::sqrt(error / size));
    CHECK(std::sqrt(error / size) < 0.03);
    CHECK(std::sqrt(error / size) > 0.001);
    const std::int64_t capacity = 1 << 16;
    const auto bytes = [&](std::int64_t together) {
        return tree_cache_bytes({128, 64, 8, 4, 4}, 2, 64, capacity, DType::bf16, {}, together);
    };
    CHECK(bytes(256) < bytes(0) * 0.32);
}

TEST_CASE("a coded cache refuses more at once than it is for, and queries that it cannot answer") {
    const Case s{1, 90, 2, 1, 4, 100, {8, 4, 2, 2, 1}};
    const Inputs in = make_inputs(s, DType::fp32);
    const Tensor out(in.q.view.shape, DType::fp32);
    TreeCache cache = make_cache(s, in, 90, 8);
    CHECK(cache.memory.bytes() == tree_cache_bytes(s.rule, 1, 4, 90, DType::fp32, {}, 8));
    CHECK_THROWS_AS(append(cache, in, 0, 9), ShapeError);
    for (std::int64_t t = 0; t < 80; t += 8)
        append(cache, in, t, 8);
    CHECK_NOTHROW(attend(cache, in, out, 72, 8));
    CHECK_THROWS_AS(attend(cache, in, out, 8, 1), ShapeError);
    CHECK_THROWS_AS(make_cache(s, make_inputs(s, DType::fp64), 90, 8), ShapeError);
    CHECK_THROWS_AS(make_cache(s, in, 90, -1), ShapeError);
    const Device gpu{DeviceKind::cuda, 0};
    CHECK_THROWS_AS(make_tree_cache(s.rule, 1, 4, 90, DType::fp32, gpu, 8), ShapeError);
}

TEST_CASE("a tree cache refuses what does not fit") {
    const Case s{1, 40, 2, 1, 4, 100, {8, 4, 2, 2, 1}};
    const Exec exec = GENERATE(from_range(available_execs()));
    const Inputs in = make_inputs(s, DType::fp32, exec);
    const Tensor out(in.q.view.shape, DType::fp32);
    TreeCache cache = make_cache(s, in, 30);
    CHECK(cache.memory.bytes() == tree_cache_bytes(s.rule, 1, 4, 30, DType::fp32, exec.device));
    append(cache, in, 0, 20);
    CHECK_THROWS_AS(append(cache, in, 20, 11), ShapeError);  // one too many
    CHECK(cache.len == 20);
    CHECK_THROWS_AS(attend(cache, in, out, 15, 6), ShapeError);  // not there yet
    CHECK_NOTHROW(attend(cache, in, out, 15, 5));
    CHECK_THROWS_AS(make_cache(s, in, 0), ShapeError);
    CHECK_THROWS_AS(make_tree_cache({8, 3, 2, 2, 1}, 1, 4, 30, DType::fp32), ShapeError);
    const Inputs other = make_inputs(s, DType::bf16, exec);
    CHECK_THROWS_AS(append(cache, other, 20, 1), ShapeError);
    Inputs elsewhere = make_inputs(s, DType::fp32, exec);
    elsewhere.exec.device = {DeviceKind::cuda, exec.device.is_cuda() ? 1 : 0};
    if (available_execs().size() > 1) CHECK_THROWS_AS(append(cache, elsewhere, 20, 1), ShapeError);
}
