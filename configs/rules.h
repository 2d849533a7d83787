#pragma once
// How rules between keys report: check_config.cpp, check_attention.cpp.
#include <algorithm>
#include <string>
#include <vector>

#include "configs/check_config.h"

namespace stoa {

struct Rules {
    const KeyPlaces& places;
    std::vector<Problem>& problems;

    /// The first of the keys that was given; a default has no place.
    Place place_of(const std::vector<std::string>& keys) const {
        for (const std::string& key : keys)
            if (const auto it = places.given.find(key); it != places.given.end()) return it->second;
        return {};
    }
    /// Reports unless `ok`, or unless one of the keys is already known to be wrong.
    void require(bool ok, const std::vector<std::string>& keys, const std::string& what,
                 const std::string& fix) {
        if (ok || std::any_of(keys.begin(), keys.end(),
                              [&](const auto& k) { return places.is_wrong(k); }))
            return;
        problems.push_back({place_of(keys), what, fix});
    }
};

/// model.attention and stages[].attention.
void check_attention(const RunConfig& config, Rules& rules);

}  // namespace stoa
