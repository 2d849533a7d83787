#include "parallel/beat.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

namespace stoa {
namespace {

using nlohmann::json;

constexpr std::size_t kFewStamps = 4, kKeptSteps = 32, kKeptTimes = 16;

template <std::size_t N>
void copy_text(char (&to)[N], const std::string& from) {
    std::strncpy(to, from.c_str(), N - 1);
    to[N - 1] = '\0';
}

json stamp_json(const Stamp& s, std::int64_t now_ns) {
    return json::array({s.sequence, s.count, now_ns - s.begin_ns,
                        s.end_ns == 0 ? std::int64_t{-1} : now_ns - s.end_ns, s.group_ordinal,
                        s.group_first, s.group_size, s.line, s.op, s.how, s.group, s.dtype,
                        s.file});
}

Stamp stamp_of(const json& j, std::int64_t now_ns) {
    Stamp s;
    s.sequence = j.at(0).get<std::uint64_t>();
    s.count = j.at(1).get<std::int64_t>();
    s.begin_ns = now_ns - j.at(2).get<std::int64_t>();
    const auto end_age = j.at(3).get<std::int64_t>();
    s.end_ns = end_age < 0 ? 0 : now_ns - end_age;
    s.group_ordinal = j.at(4).get<std::int32_t>();
    s.group_first = j.at(5).get<std::int32_t>();
    s.group_size = j.at(6).get<std::int32_t>();
    s.line = j.at(7).get<std::int32_t>();
    copy_text(s.op, j.at(8).get<std::string>());
    copy_text(s.how, j.at(9).get<std::string>());
    copy_text(s.group, j.at(10).get<std::string>());
    copy_text(s.dtype, j.at(11).get<std::string>());
    copy_text(s.file, j.at(12).get<std::string>());
    return s;
}

template <class T>
void keep_last(std::vector<T>& values, std::size_t most) {
    if (values.size() > most) values.erase(values.begin(), values.end() - static_cast<long>(most));
}

}  // namespace

json beat_of(const BoardView& b, std::int64_t now_ns, bool all_stamps, std::uint64_t sent_steps) {
    json beat{{"t", "beat"},
              {"phase", phase_name(b.phase)},
              {"phase_age", now_ns - b.phase_begin_ns},
              {"idle", now_ns - b.progress_ns},
              {"step", b.step},
              {"queue", b.queue_waited_for}};
    if (!b.trouble.empty()) beat["trouble"] = b.trouble;
    json& groups = beat["groups"] = json::array();
    for (const GroupMark& g : b.groups)
        groups.push_back(json::array(
            {g.ordinal, g.first, g.size, static_cast<int>(g.lane), g.sequence, g.name}));
    json& lanes = beat["lanes"] = json::array();
    for (const std::vector<Stamp>& stamps : b.lanes) {
        json lane = json::array();
        const std::size_t n = all_stamps ? stamps.size() : std::min(stamps.size(), kFewStamps);
        for (std::size_t i = stamps.size() - n; i < stamps.size(); ++i)
            lane.push_back(stamp_json(stamps[i], now_ns));
        lanes.push_back(std::move(lane));
    }
    json& steps = beat["steps"] = json::array();
    const std::uint64_t unsent = b.steps_done - std::min(b.steps_done, sent_steps);
    for (std::size_t i = b.steps.size() - std::min<std::uint64_t>(unsent, b.steps.size());
         i < b.steps.size(); ++i)
        steps.push_back(json::array({b.steps[i].step, b.steps[i].total_ns, b.steps[i].own_ns}));
    json& took = beat["took"] = json::array();
    for (std::size_t p = 0; p < kPhases; ++p)
        took.push_back(json::array({b.took_count[p], b.took_ns[p]}));
    return beat;
}

void take_beat(const json& beat, double now, RankReport& r) {
    const auto now_ns = static_cast<std::int64_t>(now * 1e9);
    const auto since = [&](const char* key) {
        return now - 1e-9 * static_cast<double>(beat.at(key).get<std::int64_t>());
    };
    r.phase = phase_of(beat.at("phase").get<std::string>());
    r.phase_begin = since("phase_age");
    r.progress_at = since("idle");
    r.step = beat.at("step").get<std::int64_t>();
    r.queue_waited_for = std::clamp(beat.at("queue").get<int>(), 0, kBoardLanes - 1);
    r.trouble = beat.value("trouble", "");
    r.groups.clear();
    for (const json& g : beat.at("groups")) {
        GroupMark& mark = r.groups.emplace_back(
            GroupMark{.ordinal = g.at(0).get<std::int32_t>(),
                      .first = g.at(1).get<std::int32_t>(),
                      .size = g.at(2).get<std::int32_t>(),
                      .lane = static_cast<Lane>(std::clamp(g.at(3).get<int>(), 0, kBoardLanes - 1)),
                      .sequence = g.at(4).get<std::uint64_t>()});
        copy_text(mark.name, g.at(5).get<std::string>());
    }
    for (std::size_t lane = 0; lane < kBoardLanes; ++lane) {
        r.lanes[lane].clear();
        for (const json& s : beat.at("lanes").at(lane))
            r.lanes[lane].push_back(stamp_of(s, now_ns));
    }
    for (const json& s : beat.at("steps"))
        r.steps.push_back({s.at(0).get<std::int64_t>(), s.at(1).get<std::int64_t>(),
                           s.at(2).get<std::int64_t>()});
    keep_last(r.steps, kKeptSteps);
    for (std::size_t p = 0; p < kPhases; ++p) {
        // One time per beat at most: phases that pass faster than heartbeats need no limit.
        const json& took = beat.at("took").at(p);
        const auto count = took.at(0).get<std::uint64_t>();
        if (count == r.took_count[p]) continue;
        r.took_count[p] = count;
        r.took_s[p].push_back(1e-9 * took.at(1).get<double>());
        keep_last(r.took_s[p], kKeptTimes);
    }
}

}  // namespace stoa
