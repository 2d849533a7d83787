#include "data/reasoning/families/far_text.h"

#include <fmt/format.h>

#include <algorithm>

namespace stoa::families {
namespace {

constexpr const char* kWords[kFarWords] = {
    "amber",  "anchor",  "apple",   "arrow",  "basin",  "beacon", "birch",  "blade",
    "bridge", "button",  "cabin",   "candle", "castle", "cedar",  "chain",  "cliff",
    "cloud",  "coral",   "cotton",  "crane",  "dagger", "desert", "drum",   "eagle",
    "engine", "falcon",  "feather", "fern",   "flint",  "forest", "garden", "glacier",
    "hammer", "harbor",  "hazel",   "island", "ivory",  "jacket", "jungle", "kettle",
    "ladder", "lantern", "lemon",   "marble", "meadow", "mirror", "needle", "oasis",
    "orchid", "otter",   "paddle",  "pearl",  "pepper", "planet", "quartz", "ribbon",
    "saddle", "silver",  "spider",  "temple", "timber", "valley", "walnut", "willow"};
constexpr const char* kAdjectives[kFarAdjectives] = {
    "red",  "blue",  "green", "old",  "new",   "small", "large", "round",
    "flat", "heavy", "light", "dark", "clean", "dusty", "quiet", "loud"};
constexpr const char* kFillers[kFarFillers] = {
    "the grass is wet",         "the sky is clear",         "the road is long",
    "a dog sleeps in the sun",  "the train has left",       "rain falls on the roof",
    "the bread is warm",        "the shop opens late",      "two birds sit on a wire",
    "the lake is frozen",       "a boat drifts away",       "the music has stopped",
    "the window stays open",    "snow covers the hill",     "the clock is slow",
    "the tea is cold",          "a letter came today",      "the market is empty",
    "the children play ball",   "the wall is white",        "a cat jumps down",
    "the wind turns north",     "the lights are off",       "the garden gate creaks",
    "the soup needs salt",      "a bell rings far away",    "the river is calm",
    "the paint is still fresh", "nobody waits at the gate", "the moon is bright",
    "the floor was swept",      "leaves lie on the path"};

}  // namespace

const char* far_word(std::int64_t i) { return kWords[i]; }
const char* far_adjective(std::int64_t i) { return kAdjectives[i]; }
const char* far_filler(std::int64_t i) { return kFillers[i]; }

std::vector<Text> split(Text text, Text separator) {
    std::vector<Text> parts;
    while (true) {
        const std::size_t at = text.find(separator);
        parts.push_back(text.substr(0, at));
        if (at == Text::npos) return parts;
        text.remove_prefix(at + separator.size());
    }
}

Text trim(Text text) {
    const std::size_t begin = text.find_first_not_of(' ');
    if (begin == Text::npos) return {};
    return text.substr(begin, text.find_last_not_of(' ') - begin + 1);
}

bool parse_far(Text question, Text head, Text middle, Text tail, FarText& far) {
    const std::size_t at = question.find(middle);
    if (!question.starts_with(head) || !question.ends_with(tail) || at == Text::npos ||
        at < head.size() || at + middle.size() + tail.size() >= question.size())
        return false;
    far.phrases = split(question.substr(head.size(), at - head.size()), "; ");
    question.remove_prefix(at + middle.size());
    question.remove_suffix(tail.size());
    far.queries = split(question, ", ");
    return std::ranges::find(far.queries, Text{}) == far.queries.end();
}

std::string find_phrase(Text question, Text key) {
    std::string found;
    int count = 0;
    for (const char* before : {": ", "; "}) {
        const std::string begin = fmt::format("{}{}", before, key);
        for (std::size_t at = question.find(begin); at != Text::npos;
             at = question.find(begin, at + 1)) {
            const Text rest = question.substr(at + begin.size());
            found = std::string(rest.substr(0, rest.find_first_of(";.")));
            ++count;
        }
    }
    return count == 1 ? found : std::string();
}

bool steps_are(const std::vector<std::string>& steps, const std::vector<std::string>& expected,
               std::string& why) {
    if (steps.size() != expected.size())
        return refuse(why, fmt::format("{} steps are needed", expected.size()));
    for (std::size_t i = 0; i < steps.size(); ++i)
        if (steps[i] != expected[i])
            return refuse(why,
                          fmt::format("step {} is not \"{}\"", i + 1, expected[i].substr(0, 80)));
    return true;
}

}  // namespace stoa::families
