#include <limits>

#include "kernels/attention.h"
#include "tests/conformance/conformance.h"

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
};
Inputs make_inputs(const Case& s, DType dtype) {
    return {random_tensor({s.batch, s.q_len, s.n_heads, s.dim}, dtype, 1, 2.0),
            random_tensor({s.batch, s.k_len, s.n_kv_heads, s.dim}, dtype, 2, 2.0),
            random_tensor({s.batch, s.k_len, s.n_kv_heads, s.dim}, dtype, 3), make_keys(s),
            1.0 / std::sqrt(static_cast<double>(s.dim))};
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

void forward(TensorView out, TensorView lse, const Inputs& in) {
    attention_forward({.out = out,
                       .lse = lse,
                       .q = in.q,
                       .k = in.k,
                       .v = in.v,
                       .key_begin = in.keys.begin,
                       .key_end = in.keys.end,
                       .scale = in.scale},
                      {});
}

Shape lse_shape(const Case& s) { return {s.batch, s.n_heads, s.q_len}; }

struct Gradients {
    PoisonedTensor d_q, d_k, d_v;
};
Gradients backward(const Case& s, const Inputs& in, const Tensor& d_out) {
    const DType dtype = in.q.view.dtype;
    const Tensor out(in.q.view.shape, dtype), lse(lse_shape(s), wide_dtype(dtype));
    forward(out, lse, in);
    Gradients g{poisoned_tensor(in.q.view.shape, dtype), poisoned_tensor(in.k.view.shape, dtype),
                poisoned_tensor(in.v.view.shape, dtype)};
    attention_backward({.d_q = g.d_q,
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
                        .scale = in.scale},
                       {});
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
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    for (const Case& s : kCases) {
        const Inputs in = make_inputs(s, dtype);
        const Reference expected = attention_float64(s, in);
        const PoisonedTensor out = poisoned_tensor(in.q.view.shape, dtype);
        const PoisonedTensor lse = poisoned_tensor(lse_shape(s), wide_dtype(dtype));
        forward(out, lse, in);
        CAPTURE(dtype_name(dtype), s.batch, s.q_len, s.k_len, s.dim);
        CHECK(relative_error(to_double(out), expected.out) < tolerance(dtype));
        CHECK(relative_error(to_double(lse), expected.lse) < tolerance(wide_dtype(dtype)));
        CHECK(out.guards_intact());
        CHECK(lse.guards_intact());
    }
}

TEST_CASE("attention_backward meets central differences of the forward in fp64") {
    const Case s = GENERATE(Case{2, 9, 9, 4, 2, 4, 4}, Case{1, 70, 70, 2, 1, 2, 31},
                            Case{2, 3, 8, 2, 2, 4, 100});
    const Inputs in = make_inputs(s, DType::fp64);
    const Tensor d_out = random_tensor(in.q.view.shape, DType::fp64, 9);
    const Gradients g = backward(s, in, d_out);
    const Tensor out(in.q.view.shape, DType::fp64), lse(lse_shape(s), DType::fp64);
    const auto loss = [&] {
        forward(out, lse, in);
        return weighted_sum(out, d_out);
    };
    CAPTURE(s.batch, s.q_len, s.k_len);
    CHECK(relative_error(to_double(g.d_q), central_differences(in.q, loss)) < kDifferenceTolerance);
    CHECK(relative_error(to_double(g.d_k), central_differences(in.k, loss)) < kDifferenceTolerance);
    CHECK(relative_error(to_double(g.d_v), central_differences(in.v, loss)) < kDifferenceTolerance);
}

TEST_CASE("attention_backward in fp32 and bf16 meets fp64") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16);
    for (const Case& s : kCases) {
        const Inputs in = make_inputs(s, dtype);
        const Tensor d_out = random_tensor(in.q.view.shape, dtype, 9);
        const auto widened = [](const Tensor& t) {
            Tensor wide(t.view.shape, DType::fp64);
            const auto values = to_double(t);
            std::copy(values.begin(), values.end(), wide.as<double>().begin());
            return wide;
        };
        const Inputs wide_in{widened(in.q), widened(in.k), widened(in.v), make_keys(s), in.scale};
        const Gradients g = backward(s, in, d_out), wide = backward(s, wide_in, widened(d_out));
        // bf16: `out` was rounded, and delta is a sum over it.
        const double allowed = dtype == DType::bf16 ? 3e-2 : 1e-4;
        CAPTURE(dtype_name(dtype), s.batch, s.q_len, s.k_len, s.dim);
        if (s.q_len > 1 || s.k_len > 1) {
            CHECK(relative_error(to_double(g.d_q), to_double(wide.d_q)) < allowed);
            CHECK(relative_error(to_double(g.d_k), to_double(wide.d_k)) < allowed);
        }
        CHECK(relative_error(to_double(g.d_v), to_double(wide.d_v)) < allowed);
    }
}

TEST_CASE("attention never sees keys outside the row's range") {
    const Case s{1, 20, 20, 2, 1, 8, 5};
    const Inputs in = make_inputs(s, DType::fp32);
    const Tensor out(in.q.view.shape, DType::fp32), lse(lse_shape(s), DType::fp32);
    forward(out, lse, in);
    const auto document = bytes_of(out.view.reshaped({20, 16}).slice_rows(5, 5));
    for (const std::int64_t row : {0, 4, 10, 19})  // other documents
        for (float& x : in.v.view.reshaped({20, 8}).row<float>(row))
            x = 1e6f;
    forward(out, lse, in);
    CHECK(bytes_of(out.view.reshaped({20, 16}).slice_rows(5, 5)) == document);
}

TEST_CASE("attention lets no NaN or infinity through that a row does not see") {
    const Case s{1, 300, 300, 2, 1, 8, 100};
    const auto poison =
        GENERATE(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity());
    Inputs in = make_inputs(s, DType::fp32);
    Tensor d_out = random_tensor(in.q.view.shape, DType::fp32, 9);
    const Tensor out(in.q.view.shape, DType::fp32), lse(lse_shape(s), DType::fp32);
    // Rows [100, 170) lie in the middle document, before the poison at its end.
    const auto results = [&] {
        forward(out, lse, in);
        const Gradients g = backward(s, in, d_out);
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

TEST_CASE("a query has the same bits alone, in a prefill and in a batch") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    const Case whole{2, 400, 400, 4, 2, 24, 1000};
    const Inputs all = make_inputs(whole, dtype);
    // In the second entry a document begins after 21 tokens, in the middle of everybody's tiles.
    std::ranges::fill(all.keys.begin.as<std::int32_t>().subspan(421), 21);
    const Tensor out(all.q.view.shape, dtype), lse(lse_shape(whole), wide_dtype(dtype));
    forward(out, lse, all);
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
                      all.scale};
            std::memcpy(in.q.view.data, all.q.view.data + (batch * 400 + t) * q_row,
                        static_cast<std::size_t>(count * q_row));
            for (const auto& [to, from] : {std::pair{&in.k, &all.k}, {&in.v, &all.v}})
                std::memcpy(to->view.data, from->view.data + batch * 400 * kv_row,
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
            forward(alone, alone_lse, in);
            CAPTURE(dtype_name(dtype), batch, t, count);
            CHECK(bytes_of(alone) ==
                  bytes_of(out.view.reshaped({800, 96}).slice_rows(batch * 400 + t, count)));
            CHECK(to_double(alone_lse)[0] ==
                  to_double(lse)[static_cast<std::size_t>(batch * 4 * 400 + t)]);
        }
}

TEST_CASE("an attention row without keys is zero and moves no gradient") {
    const Case s{1, 4, 4, 1, 1, 4, 100};
    Inputs in = make_inputs(s, DType::fp32);
    in.keys = {int_tensor({0, 2, 0, 0}), int_tensor({1, 2, 0, 0})};  // only row 0 has a key
    const PoisonedTensor out = poisoned_tensor(in.q.view.shape, DType::fp32);
    const PoisonedTensor lse = poisoned_tensor(lse_shape(s), DType::fp32);
    forward(out, lse, in);
    const auto values = to_double(out);
    for (std::size_t i = 4; i < values.size(); ++i)
        CHECK(values[i] == 0.0);
    const Gradients g = backward(s, in, random_tensor(in.q.view.shape, DType::fp32, 9));
    for (const double x : to_double(g.d_q))
        CHECK(std::abs(x) < 1e-6);
    const auto d_v = to_double(g.d_v);
    for (std::size_t i = 4; i < d_v.size(); ++i)
        CHECK(d_v[i] == 0.0);
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
    in.k = Tensor({1, 4, 2, 4}, DType::fp32);  // 2 does not divide 3 heads
    in.v = Tensor({1, 4, 2, 4}, DType::fp32);
    CHECK_THROWS_AS(forward(out, lse, in), ShapeError);
}
