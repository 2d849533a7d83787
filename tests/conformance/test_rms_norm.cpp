#include "kernels/rms_norm.h"
#include "tests/conformance/conformance.h"
#include "tests/support/execs.h"

using namespace stoa;
using namespace stoa::test;

namespace {

constexpr double kEps = 1e-6;
const std::vector<Shape> kShapes = {{1, 1}, {3, 127}, {5, 16}, {2, 3, 96}, {4, 4096}};

struct Reference {
    std::vector<double> y, rstd;
};
Reference rms_norm_float64(const Tensor& x_in, const Tensor& w_in) {
    const auto x = to_double(x_in), w = to_double(w_in);
    Reference out{std::vector<double>(x.size()), {}};
    for (std::size_t at = 0; at < x.size(); at += w.size()) {
        double sum = 0.0;
        for (std::size_t c = 0; c < w.size(); ++c)
            sum += x[at + c] * x[at + c];
        const double rstd = 1.0 / std::sqrt(sum / static_cast<double>(w.size()) + kEps);
        out.rstd.push_back(rstd);
        for (std::size_t c = 0; c < w.size(); ++c)
            out.y[at + c] = x[at + c] * rstd * w[c];
    }
    return out;
}

struct Backward {
    Tensor d_x, d_weight;
};
Backward run_backward(const Tensor& x, const Tensor& weight, const Tensor& d_y, const Tensor& d_x,
                      const Tensor& d_weight, bool accumulate) {
    const DType wide = wide_dtype(x.view.dtype);
    const Tensor y(x.view.shape, x.view.dtype), rstd({x.view.rows()}, wide);
    rms_norm_forward({.y = y, .rstd = rstd, .x = x, .weight = weight, .eps = kEps}, {});
    Backward b{copy_of(d_x), copy_of(d_weight)};
    rms_norm_backward({.d_x = b.d_x,
                       .d_weight = b.d_weight,
                       .d_y = d_y,
                       .x = x,
                       .weight = weight,
                       .rstd = rstd,
                       .accumulate = accumulate},
                      {});
    return b;
}

}  // namespace

TEST_CASE("rms_norm_forward meets float64") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    for (const Shape& shape : kShapes) {
        const std::int64_t d = shape[shape.rank - 1];
        const Tensor x = random_tensor(shape, dtype, 7, 3.0),
                     w = random_tensor({d}, wide_dtype(dtype), 8);
        const Reference expected = rms_norm_float64(x, w);
        const PoisonedTensor y = poisoned_tensor(shape, dtype);
        const PoisonedTensor rstd = poisoned_tensor({shape.numel() / d}, wide_dtype(dtype));
        run(rms_norm_forward, {.y = y, .rstd = rstd, .x = x, .weight = w, .eps = kEps}, exec);
        CAPTURE(shape.str(), dtype_name(dtype));
        CHECK(relative_error(to_double(y), expected.y) < tolerance(dtype));
        CHECK(relative_error(to_double(rstd), expected.rstd) < tolerance(wide_dtype(dtype)));
        CHECK(y.guards_intact());
        CHECK(rstd.guards_intact());
        run(rms_norm_forward, {.y = x, .rstd = rstd, .x = x, .weight = w, .eps = kEps},
            exec);  // in place
        CHECK(bytes_of(x) == bytes_of(y));
    }
}

TEST_CASE("rms_norm_backward meets central differences") {
    const Tensor x = random_tensor({3, 37}, DType::fp64, 1),
                 w = random_tensor({37}, DType::fp64, 2);
    const Tensor d_y = random_tensor({3, 37}, DType::fp64, 3);
    const Tensor d_x_before = random_tensor({3, 37}, DType::fp64, 4);
    const Tensor d_w_before = random_tensor({37}, DType::fp64, 5);
    const Tensor y({3, 37}, DType::fp64), rstd({3}, DType::fp64);
    const auto loss = [&] {
        rms_norm_forward({.y = y, .rstd = rstd, .x = x, .weight = w, .eps = kEps}, {});
        return weighted_sum(y, d_y);
    };
    const bool accumulate = GENERATE(false, true);
    const Backward b = run_backward(x, w, d_y, d_x_before, d_w_before, accumulate);
    std::vector<double> d_x = central_differences(x, loss), d_w = central_differences(w, loss);
    for (std::size_t i = 0; i < d_x.size() && accumulate; ++i)
        d_x[i] += to_double(d_x_before)[i];
    for (std::size_t i = 0; i < d_w.size(); ++i)
        d_w[i] += to_double(d_w_before)[i];
    CHECK(relative_error(to_double(b.d_x), d_x) < kDifferenceTolerance);
    CHECK(relative_error(to_double(b.d_weight), d_w) < kDifferenceTolerance);
}

TEST_CASE("rms_norm_backward works in place and in fp32 and bf16") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16);
    const Shape shape{5, 133};
    const Tensor x = random_tensor(shape, dtype, 1), w = random_tensor({133}, DType::fp32, 2);
    const Tensor d_y = random_tensor(shape, dtype, 3), zero_x(shape, dtype);
    const Tensor zero_w({133}, DType::fp32);
    const auto widened = [](const Tensor& t) {
        Tensor wide(t.view.shape, DType::fp64);
        const auto values = to_double(t);
        std::copy(values.begin(), values.end(), wide.as<double>().begin());
        return wide;
    };
    const Backward narrow = run_backward(x, w, d_y, zero_x, zero_w, false);
    const Backward wide =
        run_backward(widened(x), widened(w), widened(d_y), widened(zero_x), widened(zero_w), false);
    CHECK(relative_error(to_double(narrow.d_x), to_double(wide.d_x)) < tolerance(dtype));
    CHECK(relative_error(to_double(narrow.d_weight), to_double(wide.d_weight)) < tolerance(dtype));

    const Tensor y(shape, dtype), rstd({5}, DType::fp32), d_w({133}, DType::fp32);
    rms_norm_forward({.y = y, .rstd = rstd, .x = x, .weight = w, .eps = kEps}, {});
    rms_norm_backward({.d_x = d_y, .d_weight = d_w, .d_y = d_y, .x = x, .weight = w, .rstd = rstd},
                      {});
    CHECK(bytes_of(d_y) == bytes_of(narrow.d_x));
}

TEST_CASE("rms_norm_backward keeps the gains' gradients of groups apart") {
    constexpr std::int64_t kTokens = 7, kHeads = 3, kDim = 40;
    const Tensor x = random_tensor({kTokens * kHeads, kDim}, DType::fp32, 1);
    const Tensor w = random_tensor({kDim}, DType::fp32, 2);
    const Tensor d_y = random_tensor({kTokens * kHeads, kDim}, DType::fp32, 3);
    const Tensor y(x.view.shape, DType::fp32), rstd({kTokens * kHeads}, DType::fp32);
    const Tensor d_x(x.view.shape, DType::fp32), d_w({kHeads, kDim}, DType::fp32);
    rms_norm_forward({.y = y, .rstd = rstd, .x = x, .weight = w, .eps = kEps}, {});
    rms_norm_backward({.d_x = d_x, .d_weight = d_w, .d_y = d_y, .x = x, .weight = w, .rstd = rstd},
                      {});
    for (std::int64_t h = 0; h < kHeads; ++h) {  // the rows of one head alone
        const Tensor x_h({kTokens, kDim}, DType::fp32), d_y_h({kTokens, kDim}, DType::fp32);
        for (std::int64_t t = 0; t < kTokens; ++t) {
            const std::int64_t from = (t * kHeads + h) * kDim;
            std::copy_n(x.as<float>().data() + from, kDim, x_h.as<float>().data() + t * kDim);
            std::copy_n(d_y.as<float>().data() + from, kDim, d_y_h.as<float>().data() + t * kDim);
        }
        const Tensor zero_x({kTokens, kDim}, DType::fp32), zero_w({kDim}, DType::fp32);
        const Backward alone = run_backward(x_h, w, d_y_h, zero_x, zero_w, false);
        const auto mine = to_double(alone.d_weight);
        const auto all = to_double(d_w);
        CHECK(std::equal(mine.begin(), mine.end(), all.begin() + h * kDim));
    }
}

TEST_CASE("rms_norm_backward keeps the gains' gradients of segments apart") {
    constexpr std::int64_t kRows = 12, kSegment = 4, kDim = 40;
    const Tensor x = random_tensor({kRows, kDim}, DType::fp32, 1);
    const Tensor w = random_tensor({kDim}, DType::fp32, 2);
    const Tensor d_y = random_tensor({kRows, kDim}, DType::fp32, 3);
    const Tensor y(x.view.shape, DType::fp32), rstd({kRows}, DType::fp32);
    const Tensor d_x(x.view.shape, DType::fp32), d_w({kRows / kSegment, kDim}, DType::fp32);
    rms_norm_forward({.y = y, .rstd = rstd, .x = x, .weight = w, .eps = kEps}, {});
    rms_norm_backward({.d_x = d_x,
                       .d_weight = d_w,
                       .d_y = d_y,
                       .x = x,
                       .weight = w,
                       .rstd = rstd,
                       .segment_rows = kSegment},
                      {});
    for (std::int64_t s = 0; s < kRows / kSegment; ++s) {
        Tensor x_s({kSegment, kDim}, DType::fp32), d_y_s({kSegment, kDim}, DType::fp32);
        std::ranges::copy(to_double(x.view.slice_rows(s * kSegment, kSegment)),
                          x_s.as<float>().begin());
        std::ranges::copy(to_double(d_y.view.slice_rows(s * kSegment, kSegment)),
                          d_y_s.as<float>().begin());
        const Tensor zero_x({kSegment, kDim}, DType::fp32), zero_w({kDim}, DType::fp32);
        const Backward alone = run_backward(x_s, w, d_y_s, zero_x, zero_w, false);
        CHECK(to_double(alone.d_weight) == to_double(d_w.view.slice_rows(s, 1)));
    }
    CHECK_THROWS_AS(rms_norm_backward({.d_x = d_x,
                                       .d_weight = d_w,
                                       .d_y = d_y,
                                       .x = x,
                                       .weight = w,
                                       .rstd = rstd,
                                       .segment_rows = 5},
                                      {}),
                    ShapeError);
}

TEST_CASE("rms_norm gives the same bits on every instruction set") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16);
    const Tensor x = random_tensor({9, 211}, dtype, 1), w = random_tensor({211}, DType::fp32, 2);
    const Tensor d_y = random_tensor({9, 211}, dtype, 3), zero_w({211}, DType::fp32);
    check_same_bits([&] {
        const Backward b = run_backward(x, w, d_y, d_y, zero_w, true);
        auto bytes = bytes_of(b.d_x);
        const auto more = bytes_of(b.d_weight);
        bytes.insert(bytes.end(), more.begin(), more.end());
        return bytes;
    });
}

TEST_CASE("rms_norm refuses what does not fit") {
    const Tensor x({2, 8}, DType::fp32), w({8}, DType::fp32), w7({7}, DType::fp32);
    const Tensor rstd({2}, DType::fp32), rstd64({2}, DType::fp64);
    CHECK_THROWS_AS(rms_norm_forward({.y = x, .rstd = rstd, .x = x, .weight = w7}, {}), ShapeError);
    CHECK_THROWS_AS(rms_norm_forward({.y = x, .rstd = rstd64, .x = x, .weight = w}, {}),
                    ShapeError);
}
