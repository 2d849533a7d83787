#pragma once
// Checks of worked steps that hold for any family.
#include <string>
#include <string_view>
#include <vector>

#include "data/reasoning/exact.h"

namespace stoa {

/// "label: a = b = c": the label (up to the last ": ") is dropped; at least two pieces, all of them
/// expressions (see `evaluate`) of one value. why: the piece that is not.
bool chain_holds(std::string_view step, const Letters& letters, std::string& why);
/// The last step's text ends in " <text>" (or is it).
bool ends_in(const std::vector<std::string>& steps, std::string_view text, std::string& why);
/// Every step is a chain of numbers and the last ends in the answer: the rule for families without
/// a step check of their own.
bool chains_lead_to(const std::vector<std::string>& steps, std::string_view answer,
                    std::string& why);

}  // namespace stoa
