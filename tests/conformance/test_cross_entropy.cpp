#include <limits>

#include "kernels/cross_entropy.h"
#include "tests/conformance/conformance.h"
#include "tests/support/execs.h"

using namespace stoa;
using namespace stoa::test;

namespace {

constexpr double kDLoss = 0.37;

/// One rank's part: columns [begin, begin + cols) of which `valid` are tokens.
struct Shard {
    ConstTensorView logits;
    std::int64_t begin, valid;
};

struct Result {
    double loss = 0.0;
    std::vector<PoisonedTensor> d_logits;
};

/// The three steps over all shards, with the reductions that the caller does over tp.
Result run(const std::vector<Shard>& shards, const Tensor& targets, const Exec& exec = {}) {
    const std::int64_t rows = targets.view.numel();
    const DType dtype = shards[0].logits.dtype, wide = wide_dtype(dtype);
    Result result;
    dispatch_dtype(wide, [&]<Element W>(W) {
        if constexpr (std::is_same_v<W, Wide<W>>) {
            const Tensor max({rows}, wide), sum({rows}, wide), target_logit({rows}, wide);
            for (W& x : max.as<W>())
                x = std::numeric_limits<W>::lowest();
            const auto each_row = [&](const PoisonedTensor& part, const Tensor& whole,
                                      auto combine) {
                REQUIRE(part.guards_intact());
                for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r)
                    whole.as<W>()[r] = combine(whole.as<W>()[r], part.view.as<W>()[r]);
            };
            for (const Shard& s : shards) {
                const PoisonedTensor part = poisoned_tensor({rows}, wide);
                test::run(cross_entropy_row_max,
                          {.row_max = part, .logits = s.logits, .vocab_valid = s.valid}, exec);
                each_row(part, max, [](W a, W b) { return std::max(a, b); });
            }
            for (const Shard& s : shards) {
                const PoisonedTensor part_sum = poisoned_tensor({rows}, wide);
                const PoisonedTensor part_target = poisoned_tensor({rows}, wide);
                test::run(cross_entropy_exp_sum,
                          {.exp_sum = part_sum,
                           .target_logit = part_target,
                           .logits = s.logits,
                           .row_max = max,
                           .targets = targets,
                           .vocab_begin = s.begin,
                           .vocab_valid = s.valid},
                          exec);
                each_row(part_sum, sum, [](W a, W b) { return a + b; });
                each_row(part_target, target_logit, [](W a, W b) { return a + b; });
            }
            for (const Shard& s : shards) {
                const Tensor loss({1}, DType::fp64);
                loss.as<double>()[0] = 10.0;  // it is added to
                result.d_logits.push_back(poisoned_tensor(s.logits.shape, dtype));
                CrossEntropyArgs args{.d_logits = result.d_logits.back(),
                                      .loss_sum = loss,
                                      .logits = s.logits,
                                      .row_max = max,
                                      .exp_sum = sum,
                                      .target_logit = target_logit,
                                      .targets = targets,
                                      .vocab_begin = s.begin,
                                      .vocab_valid = s.valid,
                                      .d_loss = kDLoss};
                test::run(cross_entropy_finish, args, exec);
                CHECK(result.d_logits.back().guards_intact());
                result.loss = loss.as<double>()[0] - 10.0;
                const Tensor in_place = copy_of(s.logits);
                args.d_logits = in_place;
                args.logits = in_place;
                test::run(cross_entropy_finish, args, exec);
                CHECK(bytes_of(in_place) == bytes_of(result.d_logits.back()));
                loss.as<double>()[0] = 0.0;
                args.logits = s.logits;
                args.d_logits = {};  // evaluation
                test::run(cross_entropy_finish, args, exec);
                CHECK(std::abs(loss.as<double>()[0] - result.loss) < 1e-9);
            }
        }
    });
    return result;
}

struct Reference {
    double loss = 0.0;
    std::vector<double> d_logits;
};
Reference cross_entropy_float64(const Tensor& logits, const Tensor& targets, std::int64_t valid) {
    const auto x = to_double(logits);
    const auto cols = static_cast<std::size_t>(logits.view.cols()),
               n = static_cast<std::size_t>(valid);
    Reference out{0.0, std::vector<double>(x.size())};
    for (std::size_t r = 0; r < x.size() / cols; ++r) {
        const std::int32_t target = targets.as<std::int32_t>()[r];
        if (target < 0) continue;
        double sum = 0.0;
        for (std::size_t c = 0; c < n; ++c)
            sum += std::exp(x[r * cols + c]);
        out.loss += std::log(sum) - x[r * cols + static_cast<std::size_t>(target)];
        for (std::size_t c = 0; c < n; ++c)
            out.d_logits[r * cols + c] = kDLoss * (std::exp(x[r * cols + c]) / sum);
        out.d_logits[r * cols + static_cast<std::size_t>(target)] -= kDLoss;
    }
    return out;
}

Tensor columns(const Tensor& t, std::int64_t begin, std::int64_t count) {
    Tensor part({t.view.rows(), count}, t.view.dtype);
    const std::int64_t size = size_of(t.view.dtype);
    for (std::int64_t r = 0; r < t.view.rows(); ++r)
        std::memcpy(part.view.data + r * count * size,
                    t.view.data + (r * t.view.cols() + begin) * size,
                    static_cast<std::size_t>(count * size));
    return part;
}

struct Case {
    std::int64_t rows, cols, valid;
};

}  // namespace

TEST_CASE("cross entropy meets float64, with padding and rows without a target") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const DType dtype = GENERATE(DType::fp32, DType::bf16, DType::fp64);
    for (const Case& s : {Case{1, 1, 1}, Case{5, 40, 37}, Case{3, 16, 16}, Case{9, 1100, 1031}}) {
        const Tensor logits = random_tensor({s.rows, s.cols}, dtype, 1, 6.0);
        std::vector<std::int32_t> target;
        for (std::int64_t r = 0; r < s.rows; ++r)
            target.push_back(r % 3 == 1 ? -1 : static_cast<std::int32_t>((r * 17) % s.valid));
        const Tensor targets = int_tensor(target);
        const Reference expected = cross_entropy_float64(logits, targets, s.valid);
        const Result got = run({{logits, 0, s.valid}}, targets, exec);
        CAPTURE(dtype_name(dtype), s.rows, s.cols, s.valid);
        CHECK(std::abs(got.loss - expected.loss) < 1e-5 * (1.0 + expected.loss));
        const double scale =
            s.cols == 1 ? 0.0 : relative_error(to_double(got.d_logits[0]), expected.d_logits);
        CHECK(scale < tolerance(dtype));
    }
}

TEST_CASE("two halves of the vocabulary give the whole") {
    const DType dtype = GENERATE(DType::fp32, DType::fp64);
    const Tensor logits = random_tensor({6, 48}, dtype, 1, 6.0);
    const Tensor targets = int_tensor({0, 23, 24, 40, -1, 7});
    const std::int64_t valid = GENERATE(41, 48, 20);  // 20: the second half is all padding
    if (valid == 20) targets.as<std::int32_t>()[1] = targets.as<std::int32_t>()[2] = 19;
    if (valid == 20) targets.as<std::int32_t>()[3] = -1;
    const Result whole = run({{logits, 0, valid}}, targets);
    const Tensor first = columns(logits, 0, 24), second = columns(logits, 24, 24);
    const Result halves = run({{first, 0, std::min<std::int64_t>(24, valid)},
                               {second, 24, std::max<std::int64_t>(0, valid - 24)}},
                              targets);
    CHECK(std::abs(whole.loss - halves.loss) < 1e-5);
    const auto d = to_double(whole.d_logits[0]);
    const auto left = to_double(halves.d_logits[0]), right = to_double(halves.d_logits[1]);
    std::vector<double> joined;
    for (std::ptrdiff_t r = 0; r < 6; ++r) {
        joined.insert(joined.end(), left.begin() + r * 24, left.begin() + r * 24 + 24);
        joined.insert(joined.end(), right.begin() + r * 24, right.begin() + r * 24 + 24);
    }
    CHECK(relative_error(joined, d) < 1e-5);
}

TEST_CASE("chunks of the vocabulary give the same sums on one rank and on two") {
    constexpr std::int64_t kRows = 5, kChunk = 24, kChunks = 4;
    const std::int64_t valid = GENERATE(96, 90, 70, 20);  // padding, also of whole chunks
    const Tensor logits = random_tensor({kRows, kChunk * kChunks}, DType::fp32, 1);
    const Tensor max({kRows}, DType::fp32), sum({kRows}, DType::fp32), target({kRows}, DType::fp32);
    const Tensor targets({kRows}, DType::int32);
    cross_entropy_row_max({.row_max = max, .logits = logits, .vocab_valid = valid}, {});
    const auto sums = [&](const Tensor& part, std::int64_t part_valid) {
        cross_entropy_exp_sum({.exp_sum = sum,
                               .target_logit = target,
                               .logits = part,
                               .row_max = max,
                               .targets = targets,
                               .vocab_valid = part_valid,
                               .chunk = kChunk},
                              {});
        return std::vector(sum.as<float>().begin(), sum.as<float>().end());
    };
    const auto whole = sums(logits, valid);
    const Tensor half({kRows, 2 * kChunk}, DType::fp32);
    std::vector<std::vector<float>> halves;
    for (const std::int64_t h : {0, 1}) {
        for (std::int64_t r = 0; r < kRows; ++r)
            std::copy_n(logits.as<float>().data() + r * kChunk * kChunks + h * 2 * kChunk,
                        2 * kChunk, half.as<float>().data() + r * 2 * kChunk);
        halves.push_back(
            sums(half, std::clamp<std::int64_t>(valid - h * 2 * kChunk, 0, 2 * kChunk)));
    }
    for (std::size_t r = 0; r < kRows; ++r)
        CHECK(whole[r] == halves[0][r] + halves[1][r]);
}

TEST_CASE("cross entropy gradients meet central differences") {
    const Exec exec = GENERATE(from_range(available_execs()));
    const Tensor logits = random_tensor({3, 11}, DType::fp64, 1, 2.0),
                 targets = int_tensor({4, -1, 8});
    const auto d = to_double(run({{logits, 0, 9}}, targets, exec).d_logits[0]);
    const auto loss = [&] { return kDLoss * run({{logits, 0, 9}}, targets, exec).loss; };
    CHECK(relative_error(d, central_differences(logits, loss)) < kDifferenceTolerance);
}

TEST_CASE("cross entropy holds for large logits and shows NaN") {
    const Tensor logits({1, 20}, DType::fp32), targets = int_tensor({3});
    for (float& x : logits.as<float>())
        x = -1e30f;
    logits.as<float>()[3] = 1e30f;
    CHECK(run({{logits, 0, 20}}, targets).loss == 0.0);
    logits.as<float>()[17] = std::numeric_limits<float>::quiet_NaN();
    const Tensor max({1}, DType::fp32), sum({1}, DType::fp32), target({1}, DType::fp32);
    cross_entropy_row_max({.row_max = max, .logits = logits, .vocab_valid = 20}, {});
    cross_entropy_exp_sum({.exp_sum = sum,
                           .target_logit = target,
                           .logits = logits,
                           .row_max = max,
                           .targets = targets,
                           .vocab_valid = 20},
                          {});
    CHECK(std::isnan(sum.as<float>()[0]));
}

TEST_CASE("cross entropy gives the same bits on every instruction set") {
    const DType dtype = GENERATE(DType::fp32, DType::bf16);
    const Tensor logits = random_tensor({7, 301}, dtype, 1, 8.0);
    const Tensor targets = int_tensor({0, 1, -1, 300, 7, 290, 13});
    check_same_bits([&] { return bytes_of(run({{logits, 0, 301}}, targets).d_logits[0]); });
}

TEST_CASE("cross entropy refuses what does not fit") {
    const Tensor logits({2, 8}, DType::fp32), max({2}, DType::fp32), max3({3}, DType::fp32);
    CHECK_THROWS_AS(
        cross_entropy_row_max({.row_max = max3, .logits = logits, .vocab_valid = 8}, {}),
        ShapeError);
    CHECK_THROWS_AS(cross_entropy_row_max({.row_max = max, .logits = logits, .vocab_valid = 9}, {}),
                    ShapeError);
}
