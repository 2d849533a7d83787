#include <limits>

#include "kernels/attention.h"
#include "tests/conformance/conformance.h"
#include "tests/support/execs.h"

using namespace stoa;
using namespace stoa::test;

namespace {

struct Case {
    std::int64_t batch, q_len, k_len, n_heads, n_kv_heads, dim, document;  // tokens per document
};

/// Packed documents of `document` tokens, shifted per batch entry so that entries differ; query t
/// is key k_len - q_len + t (q_len < k_len is decoding).
struct Keys {
    Tensor begin, end;
};
Keys make_keys(const Case& s) {
    std::vector<std::int32_t> begin, end;
    for (std::int64_t b = 0; b < s.batch; ++b)
        for (std::int64_t t = 0; t < s.q_len; ++t) {
            const std::int64_t key = s.k_len - s.q_len + t;
            const std::int64_t start = (key + b) / s.document * s.document - b;
            begin.push_back(static_cast<std::int32_t>(std::max<std::int64_t>(0, start)));
            end.push_back(static_cast<std::int32_t>(key + 1));
        }
    return {int_tensor(begin), int_tensor(end)};
}

struct Inputs {
    Tensor q, k, v;
    Keys keys;
    double scale;
    bool causal;  // the promise of AttentionArgs
};
Inputs make_inputs(const Case& s, DType dtype) {
    return {random_tensor({s.batch, s.q_len, s.n_heads, s.dim}, dtype, 1, 2.0),
            random_tensor({s.batch, s.k_len, s.n_kv_heads, s.dim}, dtype, 2, 2.0),
            random_tensor({s.batch, s.k_len, s.n_kv_heads, s.dim}, dtype, 3),
            make_keys(s),
            1.0 / std::sqrt(static_cast<double>(s.dim)),
            s.q_len == s.k_len};
}

struct Reference {
    std::vector<double> out, lse;
};
Reference attention_float64(const Case& s, const Inputs& in) {
    const auto q = to_double(in.q), k = to_double(in.k), v = to_double(in.v);
    const auto begin = in.keys.begin.as<std::int32_t>(), end = in.keys.end.as<std::int32_t>();
    const auto dim = static_cast<std::size_t>(s.dim);
    Reference r{std::vector<double>(q.size()),
                std::vector<double>(static_cast<std::size_t>(s.batch * s.n_heads * s.q_len))};
    for (std::int64_t b = 0; b < s.batch; ++b)
        for (std::int64_t h = 0; h < s.n_heads; ++h)
            for (std::int64_t t = 0; t < s.q_len; ++t) {
                const std::int64_t kv_head = h / (s.n_heads / s.n_kv_heads);
                const auto row = static_cast<std::size_t>(b * s.q_len + t);
                const auto q_at =
                    static_cast<std::size_t>(((b * s.q_len + t) * s.n_heads + h) * s.dim);
                const auto kv_at = [&](std::int64_t j) {
                    return static_cast<std::size_t>(((b * s.k_len + j) * s.n_kv_heads + kv_head) *
                                                    s.dim);
                };
                double sum = 0.0;
                for (std::int64_t j = begin[row]; j < end[row]; ++j) {
                    double score = 0.0;
                    for (std::size_t c = 0; c < dim; ++c)
                        score += q[q_at + c] * k[kv_at(j) + c];
                    const double p = std::exp(score * in.scale);
                    sum += p;
                    for (std::size_t c = 0; c < dim; ++c)
                        r.out[q_at + c] += p * v[kv_at(j) + c];
                }
                for (std::size_t c = 0; c < dim && sum > 0; ++c)
                    r.out[q_at + c] /= sum;
                r.lse[static_cast<std::size_t>((b * s.n_heads + h) * s.q_len + t)] = std::log(sum);
            }
    return r;
}

/// A place and a way there: the CPU's kernels, on CUDA our own, and what the op itself chooses.
struct Way {
    const char* name;
    Exec exec;
    void (*forward)(const AttentionArgs&, const Exec&);
    void (*backward)(const AttentionBackwardArgs&, const Exec&);
};
const Way kCpu{"cpu", {}, attention_forward, attention_backward};
/// `own`: only those where a row's bits depend on its own keys alone.
std::vector<Way> all_ways(bool own = false) {
    std::vector<Way> ways{kCpu};
    for (const Exec& exec : available_execs()) {
        if (!exec.device.is_cuda()) continue;
        ways.push_back({"own", exec, own_attention, own_attention_gradient});
        if (!own) ways.push_back({"op", exec, attention_forward, attention_backward});
    }
    return ways;
}

/// The largest case is the CPU's alone: elsewhere it takes long on the host, and shows no more.
std::vector<Way> ways_for(const Case& s) {
    return s.batch * s.n_heads * s.q_len * s.k_len > 70'000 ? std::vector<Way>{kCpu} : all_ways();
}
double allowed_error(DType dtype) { return dtype == DType::fp16 ? 1e-3 : tolerance(dtype); }

void forward(TensorView out, TensorView lse, const Inputs& in, const Way& way = kCpu) {
    run(way.forward,
        {.out = out,
         .lse = lse,
         .q = in.q,
         .k = in.k,
         .v = in.v,
         .key_begin = in.keys.begin,
         .key_end = in.keys.end,
         .scale = in.scale,
         .causal = in.causal},
        way.exec);
}

Shape lse_shape(const Case& s) { return {s.batch, s.n_heads, s.q_len}; }

struct Gradients {
    PoisonedTensor d_q, d_k, d_v;
};
Gradients backward(const Case& s, const Inputs& in, const Tensor& d_out, const Way& way = kCpu) {
    const DType dtype = in.q.view.dtype;
    const Tensor out(in.q.view.shape, dtype), lse(lse_shape(s), wide_dtype(dtype));
    forward(out, lse, in, way);
    Gradients g{poisoned_tensor(in.q.view.shape, dtype), poisoned_tensor(in.k.view.shape, dtype),
                poisoned_tensor(in.v.view.shape, dtype)};
    run(way.backward,
        {.d_q = g.d_q,
         .d_k = g.d_k,
         .d_v = g.d_v,
         .d_out = d_out,
         .out = out,
         .lse = lse,
         .q = in.q,
         .k = in.k,
         .v = in.v,
         .key_begin = in.keys.begin,
         .key_end = in.keys.end,
         .scale = in.scale,
         .causal = in.causal},
        way.exec);
    CHECK(g.d_q.guards_intact());
    CHECK(g.d_k.guards_intact());
    CHECK(g.d_v.guards_intact());
    return g;
}

const std::vector<Case> kCases = {
    {1, 1, 1, 1, 1, 2, 100},     {2, 7, 7, 4, 2, 8, 3},        {2, 130, 130, 2, 1, 32, 50},
    {1, 65, 65, 3, 3, 18, 1000}, {3, 1, 40, 4, 2, 16, 1000},   {1, 300, 300, 2, 2, 34, 7},
    {2, 2, 300, 4, 1, 64, 170},  {1, 40, 600, 2, 1, 20, 1000}, {1, 600, 600, 4, 2, 8, 350}};

}  // namespace

TEST_CASE("attention_forward meets float64") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp16, DType::fp64);
    for (const Case& s : kCases) {
        const Inputs in = make_inputs(s, dtype);
        const Reference expected = attention_float64(s, in);
        for (const Way& way : ways_for(s)) {
            const PoisonedTensor out = poisoned_tensor(in.q.view.shape, dtype);
            const PoisonedTensor lse = poisoned_tensor(lse_shape(s), wide_dtype(dtype));
            forward(out, lse, in, way);
            CAPTURE(way.name, dtype_name(dtype), s.batch, s.q_len, s.k_len, s.dim);
            CHECK(relative_error(to_double(out), expected.out) < allowed_error(dtype));
            CHECK(relative_error(to_double(lse), expected.lse) < tolerance(wide_dtype(dtype)));
            CHECK(out.guards_intact());
            CHECK(lse.guards_intact());
        }
    }
}

TEST_CASE("attention_backward meets central differences of the forward in fp64") {
    const Case s = GENERATE(Case{2, 9, 9, 4, 2, 4, 4}, Case{1, 70, 70, 2, 1, 2, 31},
                            Case{2, 3, 8, 2, 2, 4, 100});
    const Inputs in = make_inputs(s, DType::fp64);
    const Tensor d_out = random_tensor(in.q.view.shape, DType::fp64, 9);
    const Tensor out(in.q.view.shape, DType::fp64), lse(lse_shape(s), DType::fp64);
    const auto loss = [&] {
        forward(out, lse, in);
        return weighted_sum(out, d_out);
    };
    const auto d_q = central_differences(in.q, loss), d_k = central_differences(in.k, loss),
               d_v = central_differences(in.v, loss);
    for (const Way& way : all_ways()) {
        const Gradients g = backward(s, in, d_out, way);
        CAPTURE(way.name, s.batch, s.q_len, s.k_len);
        CHECK(relative_error(to_double(g.d_q), d_q) < kDifferenceTolerance);
        CHECK(relative_error(to_double(g.d_k), d_k) < kDifferenceTolerance);
        CHECK(relative_error(to_double(g.d_v), d_v) < kDifferenceTolerance);
    }
}

namespace {

Tensor widened(const Tensor& t) {
    Tensor wide(t.view.shape, DType::fp64);
    const auto values = to_double(t);
    std::copy(values.begin(), values.end(), wide.as<double>().begin());
    return wide;
}

/// Every way's gradients against those of the CPU in fp64.
void check_gradients(const Case& s, DType dtype, const std::vector<Way>& ways) {
    const Inputs in = make_inputs(s, dtype);
    const Tensor d_out = random_tensor(in.q.view.shape, dtype, 9);
    const Inputs wide_in{widened(in.q), widened(in.k), widened(in.v),
                         make_keys(s),  in.scale,      in.causal};
    const Gradients wide = backward(s, wide_in, widened(d_out));
    // `out` was rounded, and delta is a sum over it.
    const double allowed = dtype == DType::bf16 ? 3e-2 : dtype == DType::fp16 ? 4e-3 : 1e-4;
    for (const Way& way : ways) {
        const Gradients g = backward(s, in, d_out, way);
        CAPTURE(way.name, dtype_name(dtype), s.batch, s.q_len, s.k_len, s.dim);
        if (s.q_len > 1 || s.k_len > 1) {
            CHECK(relative_error(to_double(g.d_q), to_double(wide.d_q)) < allowed);
            CHECK(relative_error(to_double(g.d_k), to_double(wide.d_k)) < allowed);
        }
        CHECK(relative_error(to_double(g.d_v), to_double(wide.d_v)) < allowed);
    }
}

}  // namespace

TEST_CASE("attention_backward in fp32, bf16 and fp16 meets fp64") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp16);
    for (const Case& s : kCases)
        check_gradients(s, dtype, ways_for(s));
}

TEST_CASE("the library's attention_backward in pieces meets fp64") {
    const DType dtype = GENERATE(DType::bf16, DType::fp16);
    const Exec exec = available_execs().back();
    if (!exec.device.is_cuda()) return;
    // d_s of an entry has 4 heads * 300 * 300 * 2 bytes, of a kv head half of that.
    const Case s{2, 300, 300, 4, 2, 16, 170};
    check_gradients(s, dtype,
                    {{"entries", exec, library_attention, library_attention_gradient<800'000>},
                     {"heads", exec, library_attention, library_attention_gradient<400'000>},
                     {"queries", exec, library_attention, library_attention_gradient<160'000>}});
}

TEST_CASE("pieces of the library's attention_backward fit and are all there") {
    for (const std::int64_t len : {128, 4096, 8192, 32768, 131072})
        for (const std::int64_t kv : {1, 2, 7, 8, 32}) {
            const cuda::SdpaShape s{.batch = 3,
                                    .q_len = len,
                                    .k_len = len,
                                    .n_heads = 4 * kv,
                                    .n_kv_heads = kv,
                                    .head_dim = 128};
            const cuda::SdpaSplit split = cuda::sdpa_split(s, cuda::kSdpaScoreBytes);
            CAPTURE(len, kv, split.batch, split.kv_heads, split.q_len);
            CHECK(split.batch * split.kv_heads * 4 * split.q_len * len * 2 <=
                  cuda::kSdpaScoreBytes);
            CHECK((split.q_len == len || split.kv_heads == 1));
            CHECK(split.q_len % 128 == 0);
            std::int64_t plans = 0, last = 0;
            for (std::int64_t begin = 0; begin < len; begin += split.q_len) {
                const std::int64_t end = std::min(begin + split.q_len, len);
                const std::int64_t keys = cuda::sdpa_piece_keys(s, end);
                CHECK(keys >= end);
                CHECK(keys <= len);
                plans += keys != last;
                last = keys;
            }
            CHECK(last == len);
            CHECK(plans <= 4);
        }
}

TEST_CASE("attention never sees keys outside the row's range") {
    const Case s{1, 20, 20, 2, 1, 8, 5};
    const DType dtype = GENERATE(DType::fp32, DType::bf16);
    for (const Way& way : all_ways()) {
        const Inputs in = make_inputs(s, dtype);
        const Tensor out(in.q.view.shape, dtype), lse(lse_shape(s), DType::fp32);
        forward(out, lse, in, way);
        const auto document = bytes_of(out.view.reshaped({20, 16}).slice_rows(5, 5));
        for (const std::int64_t row : {0, 4, 10, 19})  // other documents
            dispatch_dtype(dtype, [&]<Element T>(T) {
                for (T& x : in.v.view.reshaped({20, 8}).row<T>(row))
                    x = narrow_to<T>(static_cast<Wide<T>>(1e6));
            });
        forward(out, lse, in, way);
        CAPTURE(way.name, dtype_name(dtype));
        CHECK(bytes_of(out.view.reshaped({20, 16}).slice_rows(5, 5)) == document);
    }
}

TEST_CASE("attention lets no NaN or infinity through that a row does not see") {
    const Case s{1, 300, 300, 2, 1, 8, 100};
    const auto poison =
        GENERATE(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity());
    for (const Way& way : all_ways(true)) {
        CAPTURE(way.name);
        Inputs in = make_inputs(s, DType::fp32);
        Tensor d_out = random_tensor(in.q.view.shape, DType::fp32, 9);
        const Tensor out(in.q.view.shape, DType::fp32), lse(lse_shape(s), DType::fp32);
        // Rows [100, 170) lie in the middle document, before the poison at its end.
        const auto results = [&] {
            forward(out, lse, in, way);
            const Gradients g = backward(s, in, d_out, way);
            std::vector<std::vector<std::byte>> rows;
            for (const TensorView& t : {out.view, TensorView(g.d_q)})
                rows.push_back(bytes_of(t.reshaped({300, 16}).slice_rows(100, 70)));
            // Keys that poisoned queries see have their gradients from them.
            rows.push_back(bytes_of(g.d_k.view.reshaped({300, 8}).slice_rows(200, 100)));
            rows.push_back(bytes_of(g.d_v.view.reshaped({300, 8}).slice_rows(200, 100)));
            return rows;
        };
        const auto clean = results();
        for (const std::int64_t row : {99, 170, 199}) {
            for (const Tensor* t : {&in.k, &in.v})
                for (float& x : t->view.reshaped({300, 8}).row<float>(row))
                    x = poison;
            for (const Tensor* t : {&in.q, &d_out})
                for (float& x : t->view.reshaped({300, 16}).row<float>(row))
                    x = poison;
        }
        const auto poisoned = results();
        for (std::size_t i = 0; i < clean.size(); ++i) {
            CAPTURE(i);
            CHECK(poisoned[i] == clean[i]);
        }
        const auto values = to_double(out);
        CHECK(std::isnan(values[16 * 180]));  // who sees it, has it
    }
}

TEST_CASE("a query has the same bits alone, in a prefill and in a batch") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    for (const Way& way : all_ways(true)) {
        const Case whole{2, 400, 400, 4, 2, 24, 1000};
        const Inputs all = make_inputs(whole, dtype);
        // In the second entry a document begins after 21 tokens, in the middle of everybody's
        // tiles.
        std::ranges::fill(all.keys.begin.as<std::int32_t>().subspan(421), 21);
        const Tensor out(all.q.view.shape, dtype), lse(lse_shape(whole), wide_dtype(dtype));
        forward(out, lse, all, way);
        const std::int64_t q_row = 4 * 24 * size_of(dtype), kv_row = 2 * 24 * size_of(dtype);
        for (const std::int64_t batch : {0, 1})
            for (const auto& [t, count] : {std::pair<std::int64_t, std::int64_t>{0, 1},
                                           {60, 1},
                                           {127, 2},
                                           {128, 1},
                                           {333, 1},
                                           {350, 3},
                                           {300, 90}}) {
                const std::int64_t k_len = t + count + 5;  // a cache has room for more
                Inputs in{Tensor({1, count, 4, 24}, dtype),
                          Tensor({1, k_len, 2, 24}, dtype),
                          Tensor({1, k_len, 2, 24}, dtype),
                          {},
                          all.scale,
                          false};
                std::memcpy(in.q.view.data, all.q.view.data + (batch * 400 + t) * q_row,
                            static_cast<std::size_t>(count * q_row));
                for (const auto& [to, from] : {std::pair{&in.k, &all.k}, {&in.v, &all.v}})
                    std::memcpy(
                        to->view.data, from->view.data + batch * 400 * kv_row,
                        static_cast<std::size_t>(std::min<std::int64_t>(k_len, 400) * kv_row));
                std::vector<std::int32_t> begin, end;
                for (std::int64_t r = 0; r < count; ++r) {
                    begin.push_back(
                        all.keys.begin
                            .as<std::int32_t>()[static_cast<std::size_t>(batch * 400 + t + r)]);
                    end.push_back(static_cast<std::int32_t>(t + r + 1));
                }
                in.keys = {int_tensor(begin), int_tensor(end)};
                const Tensor alone({1, count, 4, 24}, dtype),
                    alone_lse({1, 4, count}, wide_dtype(dtype));
                forward(alone, alone_lse, in, way);
                CAPTURE(way.name, dtype_name(dtype), batch, t, count);
                CHECK(bytes_of(alone) ==
                      bytes_of(out.view.reshaped({800, 96}).slice_rows(batch * 400 + t, count)));
                CHECK(to_double(alone_lse)[0] ==
                      to_double(lse)[static_cast<std::size_t>(batch * 4 * 400 + t)]);
            }
    }
}

TEST_CASE("an attention row without keys is zero and moves no gradient") {
    const Case s{1, 4, 4, 1, 1, 4, 100};
    Inputs in = make_inputs(s, DType::fp32);
    in.keys = {int_tensor({0, 2, 0, 0}), int_tensor({1, 2, 0, 0})};  // only row 0 has a key
    in.causal = false;
    for (const Way& way : all_ways()) {
        CAPTURE(way.name);
        const PoisonedTensor out = poisoned_tensor(in.q.view.shape, DType::fp32);
        const PoisonedTensor lse = poisoned_tensor(lse_shape(s), DType::fp32);
        forward(out, lse, in, way);
        const auto values = to_double(out);
        for (std::size_t i = 4; i < values.size(); ++i)
            CHECK(values[i] == 0.0);
        for (std::size_t i = 1; i < 4; ++i)
            CHECK(to_double(lse)[i] == -std::numeric_limits<double>::infinity());
        const Gradients g = backward(s, in, random_tensor(in.q.view.shape, DType::fp32, 9), way);
        for (const double x : to_double(g.d_q))
            CHECK(std::abs(x) < 1e-6);
        const auto d_v = to_double(g.d_v);
        for (std::size_t i = 4; i < d_v.size(); ++i)
            CHECK(d_v[i] == 0.0);
    }
}

TEST_CASE("attention gives the same bits on every instruction set") {
    const Case s{2, 70, 70, 4, 2, 24, 33};
    const DType dtype = GENERATE(DType::fp32, DType::bf16);
    const Inputs in = make_inputs(s, dtype);
    const Tensor d_out = random_tensor(in.q.view.shape, dtype, 9);
    check_same_bits([&] {
        const Gradients g = backward(s, in, d_out);
        auto bytes = bytes_of(g.d_q);
        for (const auto& more : {bytes_of(g.d_k), bytes_of(g.d_v)})
            bytes.insert(bytes.end(), more.begin(), more.end());
        return bytes;
    });
}

TEST_CASE("attention refuses what does not fit") {
    const Case s{1, 4, 4, 3, 1, 4, 100};
    Inputs in = make_inputs(s, DType::fp32);
    const Tensor out(in.q.view.shape, DType::fp32), lse(lse_shape(s), DType::fp32);
    in.keys.end.as<std::int32_t>()[3] = 5;
    CHECK_THROWS_AS(forward(out, lse, in), ShapeError);
    in.keys.end.as<std::int32_t>()[3] = 4;
    CHECK_NOTHROW(forward(out, lse, in));
    in.keys.end.as<std::int32_t>()[1] = 4;  // allowed, but not causal
    CHECK_THROWS_AS(forward(out, lse, in), ShapeError);
    in.causal = false;
    CHECK_NOTHROW(forward(out, lse, in));
    in.k = Tensor({1, 4, 2, 4}, DType::fp32);  // 2 does not divide 3 heads
    in.v = Tensor({1, 4, 2, 4}, DType::fp32);
    CHECK_THROWS_AS(forward(out, lse, in), ShapeError);
}
