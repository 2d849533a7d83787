#include <xxhash.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "data/reasoning/engine.h"
#include "data/reasoning/exact.h"
#include "kernels/core/error.h"
#include "tests/support/catch.h"
#include "tests/support/reasoning_mutations.h"

using namespace stoa;

namespace {

constexpr ReasoningSplit kTrain = ReasoningSplit::train;
constexpr ReasoningSplit kHoldout = ReasoningSplit::holdout;
#ifdef __SANITIZE_ADDRESS__  // slow, and the same code for every sample
constexpr int kSlowness = 4;
#else
constexpr int kSlowness = 1;
#endif

bool accepts(const char* family, const char* question, std::string_view answer) {
    std::string why;
    return reasoning_family(family).verify(question, answer, why);
}

std::optional<Rational> x_is(std::int64_t x, const char* text) {
    return evaluate(text, {.x = x, .f = nullptr});
}

}  // namespace

TEST_CASE("every generated sample is sound", "[reasoning]") {
    for (const ReasoningFamily& family : reasoning_families())
        for (std::int64_t difficulty = 1; difficulty <= 10; ++difficulty) {
            const bool many = difficulty == 1 || difficulty == 5 || difficulty == 10;
            const int samples = (many ? 2000 : 200) / kSlowness;
            int sound = 0;
            std::string why;
            for (int i = 0; i < samples; ++i) {
                const auto sample =
                    make_sample(family, difficulty, 11, i % 8 == 0 ? kHoldout : kTrain, i);
                if (verify_sample(sample, why))
                    ++sound;
                else
                    UNSCOPED_INFO(sample.question << " | " << sample.answer << " | " << why);
            }
            CAPTURE(family.name, difficulty);
            CHECK(sound == samples);
        }
}

TEST_CASE("wrong answers are refused", "[reasoning]") {
    for (const ReasoningFamily& family : reasoning_families()) {
        std::int64_t tried = 0, accepted = 0;
        for (std::int64_t i = 0; i < 2000 / kSlowness; ++i) {
            auto sample = make_sample(family, 1 + i % 10, 12, kTrain, i);
            Draws draws(mix_key(12, 13), static_cast<std::uint64_t>(i));
            for (const std::string& wrong : test::wrong_answers(sample.answer, draws)) {
                std::string why;
                ++tried;
                if (!family.verify(sample.question, wrong, why)) continue;
                ++accepted;
                UNSCOPED_INFO(sample.question << " | " << sample.answer << " | " << wrong);
            }
        }
        CAPTURE(family.name, tried);
        CHECK(accepted == 0);
        CHECK(tried >= 5 * 2000 / kSlowness);
    }
}

TEST_CASE("wrong steps are refused", "[reasoning]") {
    for (const ReasoningFamily& family : reasoning_families()) {
        std::int64_t tried = 0, accepted = 0;
        for (std::int64_t i = 0; i < 500; ++i) {
            const auto sample = make_sample(family, 1 + i % 10, 14, kTrain, i);
            Draws draws(mix_key(14, 15), static_cast<std::uint64_t>(i));
            std::vector<ReasoningSample> bad(4, sample);
            const std::size_t n = sample.steps.size();
            std::string& step = bad[0].steps[draws.below(static_cast<std::uint32_t>(n))];
            const auto runs = test::digit_runs(step);
            if (runs.empty())  // a boolean step: deny its result
                step.replace(step.rfind(' ') + 1, std::string::npos,
                             step.ends_with("true") ? "false" : "true");
            else {
                const auto [begin, end] =
                    runs[draws.below(static_cast<std::uint32_t>(runs.size()))];
                char& digit = step[begin + draws.below(static_cast<std::uint32_t>(end - begin))];
                digit = static_cast<char>('0' + (digit - '0' + draws.between(1, 9)) % 10);
            }
            bad[1].steps.pop_back();
            bad[2].steps.back() += " 1";
            bad[3].steps.clear();
            for (const ReasoningSample& b : bad) {
                std::string why;
                ++tried;
                if (!verify_sample(b, why)) continue;
                ++accepted;
                UNSCOPED_INFO(nlohmann::json(b.steps).dump() << " for " << sample.question);
            }
        }
        CAPTURE(family.name, tried);
        CHECK(accepted == 0);
    }
}

TEST_CASE("verifiers on answers chosen by hand", "[reasoning]") {
    CHECK(accepts("chain_sum", "Compute 3 + 5 - 14.", "-6"));
    CHECK(accepts("chain_sum", "Compute 3 + 5 - 14.", "  -6 "));
    for (const char* wrong : {"6", "- 6", "+6", "-06", "-6.0", "-6\n", "-6 7", "-0", "", " "})
        CHECK_FALSE(accepts("chain_sum", "Compute 3 + 5 - 14.", wrong));
    CHECK_FALSE(accepts("chain_sum", "Compute 3 + 5 - 14. ", "-6"));
    CHECK_FALSE(accepts("chain_sum", "Compute 3.", "3"));

    for (const char* right : {"x = 5", "x=5", "5", " x  =  5 "})
        CHECK(accepts("linear_equation", "Solve 3x + 4 = 19.", right));
    for (const char* wrong : {"x = 4", "y = 5", "x = 5 or 6", "x 5", "x == 5", "= 5", "x = 15/3"})
        CHECK_FALSE(accepts("linear_equation", "Solve 3x + 4 = 19.", wrong));
    CHECK(accepts("linear_equation", "Solve -x + 4 = 2x - 5.", "x = 3"));
    CHECK_FALSE(accepts("linear_equation", "Solve 3x + 4 = 3x + 4.", "x = 1"));  // any x solves it

    CHECK(accepts("compare_sort", "Sort 7, 3, 7, -1 in ascending order.", "-1, 3, 7, 7"));
    CHECK(accepts("compare_sort", "Sort 7, 3, 7, -1 in descending order.", "7,7,3,-1"));
    for (const char* wrong : {"-1, 3, 7", "-1, 3, 3, 7", "-1, 3, 7, 7,", "7, 7, 3, -1", "-1 3 7 7"})
        CHECK_FALSE(accepts("compare_sort", "Sort 7, 3, 7, -1 in ascending order.", wrong));

    const char* shift = "Given f(x) = x^2 + 3x + 2, expand f(x+1) - f(x).";
    for (const char* right : {"2x + 4", "4 + 2x", "2x+4", "x + x + 4", "2x^1 + 4x^0"})
        CHECK(accepts("polynomial_shift", shift, right));
    for (const char* wrong :
         {"2x", "2x - 4", "4x + 2", "2x + 4 +", "2x + 4 + 0x^9", "2(x + 2)", "8"})
        CHECK_FALSE(accepts("polynomial_shift", shift, wrong));

    CHECK(accepts("gcd", "Find gcd(48, 18).", "6"));
    for (const char* wrong : {"3", "12", "-6", "0", "18"})
        CHECK_FALSE(accepts("gcd", "Find gcd(48, 18).", wrong));
    CHECK(accepts("base_conversion", "Write 255 in base 16.", "ff"));
    for (const char* wrong : {"FF", "0ff", "f", "fg", "f f", "0xff"})
        CHECK_FALSE(accepts("base_conversion", "Write 255 in base 16.", wrong));
    CHECK(accepts("modular_power", "Compute 7^13 mod 11.", "2"));  // 7^10 = 1, 7^3 = 343 = 2
    CHECK_FALSE(accepts("modular_power", "Compute 7^13 mod 11.", "13"));

    CHECK(accepts("boolean_evaluation", "Evaluate p or q and not q for p = true, q = false.",
                  "true"));
    CHECK_FALSE(accepts("boolean_evaluation", "Evaluate p and q for p = true.", "true"));
    CHECK(accepts("fraction_sum", "Compute 1/6 + 1/3 in lowest terms.", "1/2"));
    CHECK(accepts("fraction_sum", "Compute 1/2 - 1/2 in lowest terms.", "0"));
    for (const char* wrong : {"2/4", "3/6", "-1/-2", "1/2/1", "0.5", "1/-2"})
        CHECK_FALSE(accepts("fraction_sum", "Compute 1/6 + 1/3 in lowest terms.", wrong));
    CHECK_FALSE(accepts("fraction_sum", "Compute 1/0 + 1/3 in lowest terms.", "1/3"));
    CHECK(accepts("long_multiplication", "Compute 347 * 26.", "9022"));
    CHECK(
        accepts("program_trace", "Run: a = 3; b = a + 4; a = b * 2. What is a at the end?", "14"));
    CHECK_FALSE(accepts("program_trace", "Run: a = b + 1. What is a at the end?", "1"));
    CHECK(accepts("calendar", "What date is 2 days after 2024-02-28?", "2024-03-01"));
    CHECK(accepts("calendar", "What date is 2 days after 1900-02-28?", "1900-03-02"));
    for (const char* wrong : {"2024-02-30", "2024-3-1", "2024-03-1", "2024-03-02"})
        CHECK_FALSE(accepts("calendar", "What date is 2 days after 2024-02-28?", wrong));
}

TEST_CASE("verifiers of far answers on answers chosen by hand", "[reasoning]") {
    const char* note = "Note: birch is 38; the sky is clear; amber is 417. Recall birch, amber.";
    for (const char* family : {"associative_recall", "needle", "multi_needle"}) {
        CHECK(accepts(family, note, " 417 "));
        for (const char* wrong : {"38", "41", "4 17", "amber is 417", "0417", ""})
            CHECK_FALSE(accepts(family, note, wrong));
    }
    CHECK(accepts("needle", "Note: the code is 0417. Recall the code.", "0417"));
    CHECK_FALSE(accepts("needle", "Note: the code is 0417. Recall the code.", "417"));
    for (const char* unclear :
         {"Note: birch is 417; birch is 417. Recall birch.", "Note: birch is 417. Recall amber.",
          "Note: the birch is 417. Recall birch.", "Note: birch is wet. Recall birch.",
          "Note: birch is 417. Recall ."})
        CHECK_FALSE(accepts("associative_recall", unclear, "417"));

    const char* copy = "Copy the numbers from: the sky is clear; 41; the lake is frozen; 7.";
    CHECK(accepts("selective_copy", copy, "41, 7"));
    CHECK(accepts("selective_copy", copy, "41,7"));
    for (const char* wrong : {"7, 41", "41", "41, 7, 7", "41 7", "417", "41, 7,"})
        CHECK_FALSE(accepts("selective_copy", copy, wrong));

    const char* text =
        "Text: elm; birch; amber; birch; cedar; dune; elm. Go on after cedar with 2 "
        "words each.";
    CHECK(accepts("induction", text, "dune, elm"));
    for (const char* wrong : {"dune", "elm, dune", "dune, elm, elm", "dune elm", "dune, birch"})
        CHECK_FALSE(accepts("induction", text, wrong));
    CHECK_FALSE(accepts("induction", "Text: elm; amber; elm. Go on after elm with 1 words each.",
                        "amber"));  // read twice

    const char* chain =
        "Program: let k = 17; the sky is clear; let m = k; let q = m; let p = 9. "
        "What is p, q?";
    CHECK(accepts("variable_tracking", chain, "17"));
    for (const char* wrong : {"9", "m", "k", "-17"})
        CHECK_FALSE(accepts("variable_tracking", chain, wrong));
    CHECK_FALSE(accepts("variable_tracking", "Program: let k = m; let m = k. What is k?", "17"));

    const char* given = "Given: a = 17; c = 4; the bread is warm; k = 30. What is a - k + c?";
    CHECK(accepts("far_arithmetic", given, "-9"));
    for (const char* wrong : {"9", "51", "-17", "17 - 30 + 4"})
        CHECK_FALSE(accepts("far_arithmetic", given, wrong));
    CHECK_FALSE(accepts("far_arithmetic", "Given: a = 17. What is a + b?", "17"));

    const char* code =
        "Code: const int k1 = 7; int f1(int n) { return n * 3 + k1; } bool empty3(int size) { "
        "return size == 0; } int f2(int n) { return f1(n) - 2; } What do the calls f1(9), f2(4) "
        "return?";
    CHECK(accepts("far_code", code, "17"));  // 4 * 3 + 7 - 2
    for (const char* wrong : {"34", "19", "f1(4) - 2", "-17"})
        CHECK_FALSE(accepts("far_code", code, wrong));
    CHECK_FALSE(accepts("far_code",
                        "Code: int f1(int n) { return f1(n) + 1; } What do the calls f1(1) return?",
                        "1"));
}

TEST_CASE("exact arithmetic refuses to wrap", "[reasoning]") {
    CHECK(evaluate("2 + 3 * 4") == Rational{14, 1});
    CHECK(evaluate("-3 + 5") == Rational{2, 1});
    CHECK(evaluate("(1/2 - 1/3) * 3") == Rational{1, 2});
    CHECK(evaluate("7 * 7 mod 11") == Rational{5, 1});
    CHECK(evaluate("48 / -4") == Rational{-12, 1});
    CHECK(x_is(5, "3x + 2(x+1)^2") == Rational{87, 1});
    CHECK(x_is(3, "-x^2") == Rational{-9, 1});
    for (const char* bad :
         {"", "2 +", "1/0", "2 3", "x", "2^65", "10^19", "(1", "1)", "9999999999999999999"})
        CHECK_FALSE(evaluate(bad));
    CHECK_FALSE(evaluate(std::string(5000, '(')));
    CHECK_FALSE(evaluate(std::string(200, '(') + "1" + std::string(200, ')')));
    CHECK_THROWS_AS(checked_mul(std::int64_t{1} << 40, std::int64_t{1} << 40), Error);
    CHECK_THROWS_AS(checked_add(kExactLimit - 1, 1), Error);
    CHECK(floor_mod(-7, 3) == 2);
    CHECK(coprime(35, 18));
    CHECK_FALSE(coprime(35, 21));
}

TEST_CASE("hostile text is refused, not obeyed", "[reasoning]") {
    const std::string pieces[] = {"\0",   "\xff\xfe", "\xe2\x82", "99999999999999999999",
                                  "x",    "^64",      "-",        "=",
                                  "((((", "not ",     "/0",       "mod 0",
                                  ", ",   "true",     "0",        "\n"};
    for (const ReasoningFamily& family : reasoning_families()) {
        std::int64_t accepted = 0;
        for (std::int64_t i = 0; i < 3000 / kSlowness; ++i) {
            auto sample = make_sample(family, 1 + i % 10, 16, kTrain, i % 50);
            Draws draws(mix_key(16, 17), static_cast<std::uint64_t>(i));
            const bool in_answer = i % 2 == 0;
            std::string& text = in_answer ? sample.answer : sample.question;
            const std::string original = test::value_of(text);
            for (std::int64_t edits = draws.between(1, 3); edits > 0; --edits) {
                const std::size_t at = draws.below(static_cast<std::uint32_t>(text.size() + 1));
                switch (draws.below(4)) {
                    case 0:
                        text.insert(at, pieces[draws.below(std::size(pieces))]);
                        break;
                    case 1:
                        text.insert(at, 1, static_cast<char>(draws.below(256)));
                        break;
                    case 2:
                        text.erase(at, draws.below(4));
                        break;
                    default:
                        if (at < text.size()) text[at] = static_cast<char>(draws.below(256));
                }
            }
            std::string why;
            const bool ok = family.verify(sample.question, sample.answer, why);
            (void)verify_sample(sample, why);
            if (!in_answer || !ok) continue;
            // An edit can write the same value another way; it must still be the same value.
            accepted += test::value_of(text) != original ? 1 : 0;
            if (test::value_of(text) != original)
                UNSCOPED_INFO(sample.question << " accepts " << text << ", not only " << original);
        }
        CAPTURE(family.name);
        CHECK(accepted == 0);
    }
}

TEST_CASE("a sample is a pure function of its coordinates", "[reasoning]") {
    for (const ReasoningFamily& family : reasoning_families()) {
        CAPTURE(family.name);
        std::vector<std::string> forward;
        for (std::int64_t i = 0; i < 50; ++i)
            forward.push_back(to_json_line(make_sample(family, 3, 5, kTrain, i)));
        for (std::int64_t i = 49; i >= 0; --i)
            CHECK(to_json_line(make_sample(family, 3, 5, kTrain, i)) ==
                  forward[static_cast<std::size_t>(i)]);
    }
}

TEST_CASE("neighbouring seeds do not share a stream", "[reasoning]") {
    for (const ReasoningFamily& family : reasoning_families()) {
        int shared = 0;  // a shifted stream would share all 200
        for (std::int64_t i = 0; i < 200; ++i) {
            const std::string question = make_sample(family, 8, 40, kTrain, i + 1).question;
            shared += question == make_sample(family, 8, 41, kTrain, i).question;
            shared += question == make_sample(family, 8, 41, kTrain, i + 1).question;
            shared += question == make_sample(family, 8, 40, kTrain, i).question;
        }
        CAPTURE(family.name);
        CHECK(shared <= 2);
    }
}

TEST_CASE("train and held-out problems are disjoint", "[reasoning]") {
    for (const ReasoningFamily& family : reasoning_families()) {
        std::set<std::string> train, holdout;
        for (std::int64_t i = 0; i < 5000; ++i) {
            train.insert(make_sample(family, 1, 1, kTrain, i).question);
            holdout.insert(make_sample(family, 1, 2, kHoldout, i).question);
        }
        int both = 0;
        for (const std::string& question : holdout)
            both += train.contains(question) ? 1 : 0;
        CAPTURE(family.name, train.size(), holdout.size());
        CHECK(both == 0);
        CHECK(train.size() >= 500);
        const std::string name = family.name;
        if (name == "chain_sum" || name == "linear_equation" || name == "compare_sort")
            CHECK(holdout.size() >= 100);  // enough to measure a small model on
    }
}

TEST_CASE("bad coordinates are one clear error", "[reasoning]") {
    const ReasoningFamily& family = reasoning_families()[0];
    CHECK_THROWS_AS(make_sample(family, 0, 1, kTrain, 0), DataError);
    CHECK_THROWS_AS(make_sample(family, 11, 1, kTrain, 0), DataError);
    CHECK_THROWS_AS(make_sample(family, 1, 1, kTrain, -1), DataError);
    const auto only_one = [](std::int64_t, Draws&, ReasoningSample& s) {
        s.question = "Compute 1 + 1.";
    };
    ReasoningFamily tiny = family;  // one problem only: one of the splits is empty
    tiny.generate = only_one;
    const ReasoningSplit other = split_of("Compute 1 + 1.") == kTrain ? kHoldout : kTrain;
    CHECK_THROWS_AS(make_sample(tiny, 1, 1, other, 0), DataError);
    try {
        (void)reasoning_family("chain_sums");
        FAIL("an unknown family was found");
    } catch (const DataError& e) {
        CHECK(e.fields().hint.find("chain_sum") != std::string::npos);
    }
}

TEST_CASE("JSON lines come back as they went", "[reasoning]") {
    for (const ReasoningFamily& family : reasoning_families())
        for (std::int64_t i = 0; i < 50; ++i) {
            const auto s =
                make_sample(family, 1 + i % 10, UINT64_MAX, i % 2 ? kTrain : kHoldout, i);
            const auto t = from_json_line(to_json_line(s), 1);
            CHECK(std::tie(s.family, s.difficulty, s.seed, s.split, s.index, s.question, s.steps,
                           s.answer) == std::tie(t.family, t.difficulty, t.seed, t.split, t.index,
                                                 t.question, t.steps, t.answer));
        }
    const std::string good = to_json_line(make_sample(reasoning_families()[0], 1, 1, kTrain, 0));
    for (const char* key :
         {"family", "difficulty", "seed", "split", "index", "question", "steps", "answer"})
        for (const nlohmann::json& value :
             {nlohmann::json(), nlohmann::json(-1.5), nlohmann::json({1})}) {
            auto object = nlohmann::json::parse(good);
            value.is_null() ? object.erase(key) : (object[key] = value, 1u);
            try {
                (void)from_json_line(object.dump(), 7);
                FAIL(key << " was not missed");
            } catch (const DataError& e) {
                CHECK(e.fields().where == "line 7");
                CHECK(e.fields().what.find(key) != std::string::npos);
            }
        }
    for (const char* bad : {"", "{", "[]", "3", "\"\xff\"", "{\"family\":\"\xff\"}"})
        CHECK_THROWS_AS(from_json_line(bad, 1), DataError);
    CHECK_THROWS_AS(from_json_line(std::string(100000, '['), 1), DataError);
}

TEST_CASE("render and extract_answer fit together", "[reasoning]") {
    const auto sample = make_sample(reasoning_families()[1], 1, 3, kTrain, 4);
    const RenderedSample text = render(sample);
    CHECK(text.prompt == "Problem: " + sample.question + "\n");
    CHECK(text.solution == "Step 1: " + sample.steps[0] + "\nStep 2: " + sample.steps[1] +
                               "\nAnswer: " + sample.answer);
    CHECK(extract_answer(text.solution) == sample.answer);
    CHECK(extract_answer("Answer: 1\nAnswer:  2 \nmore") == "2");
    CHECK(extract_answer("no answer").empty());
    CHECK(extract_answer("Answer:").empty());
    CHECK(extract_answer("Answer:   \nnext").empty());
}

TEST_CASE("verify_sample refuses what is not a sample", "[reasoning]") {
    auto sample = make_sample(reasoning_families()[0], 1, 3, kTrain, 4);
    std::string why;
    REQUIRE(verify_sample(sample, why));
    auto unknown = sample;
    unknown.family = "no_such_family";
    CHECK_FALSE(verify_sample(unknown, why));
    CHECK(why.find("no_such_family") != std::string::npos);
    sample.steps[0] += "\nStep 2: injected";
    CHECK_FALSE(verify_sample(sample, why));
}

// A change of a stream changes what every earlier run was trained on: it must be meant.
TEST_CASE("the streams are the ones that were published", "[reasoning]") {
    const std::map<std::string, std::uint64_t> golden = {
        {"chain_sum", 0xa1c7ff874a572e7b},
        {"linear_equation", 0xb1f0e15d6b022e80},
        {"compare_sort", 0xeed147c0a887ce9c},
        {"polynomial_shift", 0x34f70dc0d0001a7d},
        {"gcd", 0x4af38369dc83e633},
        {"base_conversion", 0xbd4c88d71660736a},
        {"modular_power", 0x1ac03c81d0432e8e},
        {"boolean_evaluation", 0x9fe1e8f6628f9b31},
        {"fraction_sum", 0xa6794aea7286d43e},
        {"long_multiplication", 0x29e71d1e078df11},
        {"program_trace", 0xc2bb2529a08cd553},
        {"word_problem", 0xf4e0c8c7f25bd0d1},
        {"calendar", 0x964b34199e727a8f},
        {"associative_recall", 0x995cf6eb07c1021a},
        {"selective_copy", 0x6eae97dbb33ba475},
        {"induction", 0x764b172bcaab6dc2},
        {"needle", 0x28d7ee1d675c5be6},
        {"multi_needle", 0x99f3cd9739a54e07},
        {"variable_tracking", 0x219e606eced99e96},
        {"far_arithmetic", 0xefc03df6a276385c},
        {"far_code", 0x7983dcb9ea2b7133},
    };
    for (const ReasoningFamily& family : reasoning_families()) {
        std::string all;
        for (std::int64_t i = 0; i < 200; ++i)
            all +=
                to_json_line(make_sample(family, 1 + i % 10, 2026, i % 4 ? kTrain : kHoldout, i)) +
                "\n";
        CAPTURE(family.name);
        const auto it = golden.find(family.name);
        const std::uint64_t digest = XXH3_64bits(all.data(), all.size());
        CHECK((it == golden.end() ? 0 : it->second) == digest);
    }
}
