#pragma once
// The heartbeat on the wire: the board as one line of JSON, times as ages so that clocks of
// different machines are never compared.
#include <nlohmann/json_fwd.hpp>

#include "parallel/monitor.h"

namespace stoa {

/// `all_stamps`: of each lane the last 16, else the last 4. Steps and phases since `sent_steps`.
nlohmann::json beat_of(const BoardView& board, std::int64_t now_ns, bool all_stamps,
                       std::uint64_t sent_steps);
/// Adds what a beat says to what is known; `now`: the monitor's clock.
/// errors: nlohmann::json::exception where it is no beat
void take_beat(const nlohmann::json& beat, double now, RankReport& report);

}  // namespace stoa
