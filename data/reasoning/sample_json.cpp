// Samples as JSON lines.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "data/reasoning/engine.h"
#include "kernels/core/error.h"

namespace stoa {
namespace {

using nlohmann::json;

[[noreturn]] void bad_line(std::int64_t line_number, std::string what, std::string expected = "") {
    throw DataError({.what = std::move(what),
                     .where = fmt::format("line {}", line_number),
                     .expected = std::move(expected)});
}

const json& field(const json& object, const char* key, bool (*fits)(const json&), const char* type,
                  std::int64_t line_number) {
    const auto it = object.find(key);
    if (it == object.end()) bad_line(line_number, fmt::format("field \"{}\" is missing", key));
    if (!fits(*it))
        bad_line(line_number, fmt::format("field \"{}\" has the wrong type", key), type);
    return *it;
}

bool is_text(const json& v) { return v.is_string(); }
bool is_unsigned(const json& v) { return v.is_number_unsigned(); }
bool is_index(const json& v) {
    return v.is_number_unsigned() && v.get<std::uint64_t>() <= std::uint64_t{INT64_MAX};
}
bool is_split(const json& v) { return v == "train" || v == "holdout"; }
bool is_lines(const json& v) {
    return v.is_array() &&
           std::all_of(v.begin(), v.end(), [](const json& s) { return s.is_string(); });
}

}  // namespace

std::string to_json_line(const ReasoningSample& sample) {
    nlohmann::ordered_json object;
    object["family"] = sample.family;
    object["difficulty"] = sample.difficulty;
    object["seed"] = sample.seed;
    object["split"] = sample.split == ReasoningSplit::holdout ? "holdout" : "train";
    object["index"] = sample.index;
    object["question"] = sample.question;
    object["steps"] = sample.steps;
    object["answer"] = sample.answer;
    try {
        return object.dump();
    } catch (const json::exception&) {
        throw DataError({.what = "a sample's text is not valid UTF-8", .where = sample.family});
    }
}

ReasoningSample from_json_line(const std::string& line, std::int64_t line_number) {
    const json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (object.is_discarded()) bad_line(line_number, "not JSON in UTF-8");
    if (!object.is_object()) bad_line(line_number, "not a JSON object");
    const auto get = [&](const char* key, bool (*fits)(const json&),
                         const char* type) -> const json& {
        return field(object, key, fits, type, line_number);
    };
    ReasoningSample sample;
    sample.family = get("family", is_text, "a string");
    sample.difficulty = get("difficulty", is_index, "an integer >= 0").get<std::int64_t>();
    sample.seed = get("seed", is_unsigned, "an integer >= 0").get<std::uint64_t>();
    sample.split = get("split", is_split, "\"train\" or \"holdout\"") == "holdout"
                       ? ReasoningSplit::holdout
                       : ReasoningSplit::train;
    sample.index = get("index", is_index, "an integer >= 0").get<std::int64_t>();
    sample.question = get("question", is_text, "a string");
    sample.steps = get("steps", is_lines, "a list of strings").get<std::vector<std::string>>();
    sample.answer = get("answer", is_text, "a string");
    return sample;
}

}  // namespace stoa
