#include "data/reasoning/steps.h"

#include <fmt/format.h>

namespace stoa {
namespace {

bool refuse(std::string& why, std::string reason) {
    why = std::move(reason);
    return false;
}

}  // namespace

bool chain_holds(std::string_view step, const Letters& letters, std::string& why) {
    const std::size_t label = step.rfind(": ");
    if (label != std::string_view::npos) step.remove_prefix(label + 2);
    std::optional<Rational> first;
    int pieces = 0;
    while (true) {
        const std::size_t equals = step.find(" = ");
        const std::string_view piece = step.substr(0, equals);
        const auto value = evaluate(piece, letters);
        if (!value) return refuse(why, fmt::format("\"{}\" has no value", piece));
        if (!first) first = value;
        if (*value != *first)
            return refuse(why, fmt::format("\"{}\" differs from the piece before it", piece));
        ++pieces;
        if (equals == std::string_view::npos) break;
        step.remove_prefix(equals + 3);
    }
    return pieces >= 2 || refuse(why, "no \"=\"");
}

bool ends_in(const std::vector<std::string>& steps, std::string_view text, std::string& why) {
    if (steps.empty()) return refuse(why, "there are no steps");
    const std::string_view last = steps.back();
    const bool ok = last.ends_with(text) &&
                    (last.size() == text.size() || last[last.size() - text.size() - 1] == ' ');
    return ok || refuse(why, "the last step does not end in the answer");
}

bool chains_lead_to(const std::vector<std::string>& steps, std::string_view answer,
                    std::string& why) {
    for (std::size_t i = 0; i < steps.size(); ++i)
        if (!chain_holds(steps[i], {}, why))
            return refuse(why, fmt::format("step {}: {}", i + 1, why));
    return ends_in(steps, answer, why);
}

}  // namespace stoa
