#pragma once
// Rules between keys.
#include <map>
#include <set>
#include <string>
#include <vector>

#include "configs/config_tree.h"
#include "configs/run_config.h"

namespace stoa {

/// What loading knows about each dotted key: where it was given, and whether it is known to be
/// wrong (its rules are then left out, so that one mistake is reported once).
struct KeyPlaces {
    std::map<std::string, Place> given;
    std::set<std::string> wrong;
    /// The key itself or a section around it.
    bool is_wrong(const std::string& key) const;
};

/// Every rule between keys that needs neither files nor ranks.
void check_rules(const RunConfig& config, const KeyPlaces& places, std::vector<Problem>& problems);

}  // namespace stoa
