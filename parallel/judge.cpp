// The verdict: who keeps the others waiting. See parallel/monitor.h.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "parallel/monitor.h"

namespace stoa {
namespace {

constexpr double kQuiet = 1.0;  // seconds without a heartbeat: no stall is judged while they last
constexpr double kDisconnected = 2.0;  // seconds without a connection: its process has gone

using Reports = std::vector<RankReport>;

/// Which group this is, for all its ranks.
using GroupKey = std::pair<std::int32_t, std::int32_t>;
GroupKey key_of(const GroupMark& g) { return {g.ordinal, g.first}; }

std::string count_text(std::int64_t n) {
    if (n < 0) return "";
    if (n >= 10'000'000'000) return fmt::format("{:.0f}G", static_cast<double>(n) * 1e-9);
    if (n >= 1'000'000'000) return fmt::format("{:.1f}G", static_cast<double>(n) * 1e-9);
    if (n >= 10'000'000) return fmt::format("{:.0f}M", static_cast<double>(n) * 1e-6);
    if (n >= 1'000'000) return fmt::format("{:.1f}M", static_cast<double>(n) * 1e-6);
    if (n >= 10'000) return fmt::format("{:.0f}k", static_cast<double>(n) * 1e-3);
    return std::to_string(n);
}

std::string name_text(const Stamp& s) {
    return fmt::format("{}({}) #{}", s.op, s.group, s.sequence);
}
// "all_reduce(dp) #481, 4.2M fp32 sum, trainer/train_step.cpp:118"
std::string stamp_text(const Stamp& s) {
    const std::string count = count_text(s.count), how = s.how;
    return fmt::format("{}, {}{}{}{}{}, {}:{}", name_text(s), count, count.empty() ? "" : " ",
                       s.dtype, how.empty() ? "" : " ", how, s.file, s.line);
}
std::string site_text(const Stamp& s) {
    return fmt::format("{} at {}:{}", name_text(s), s.file, s.line);
}

bool judged(const RankReport& r) { return r.known && !r.finished; }
double silence(const RankReport& r, double now) { return now - r.heard_at; }

// The rank's latest collective of any lane.
const Stamp* last_stamp(const RankReport& r) {
    const Stamp* last = nullptr;
    for (const std::vector<Stamp>& lane : r.lanes)
        if (!lane.empty() && (last == nullptr || lane.back().begin_ns > last->begin_ns))
            last = &lane.back();
    return last;
}

// "ranks 0,1,3 wait in all_reduce(dp) #481, ...; rank 4 waits in ...", without those of
// `not_these`.
std::string waiting_text(const Reports& reports, const std::vector<int>& not_these) {
    std::vector<std::pair<std::string, std::vector<int>>> sets;
    for (const RankReport& r : reports) {
        const Stamp* s = judged(r) ? r.waits_in() : nullptr;
        if (s == nullptr || std::ranges::count(not_these, r.rank) > 0) continue;
        const std::string text = stamp_text(*s);
        auto set = std::ranges::find(sets, text, &std::pair<std::string, std::vector<int>>::first);
        if (set == sets.end()) set = sets.insert(sets.end(), {text, {}});
        set->second.push_back(r.rank);
    }
    std::ranges::stable_sort(
        sets, [](const auto& a, const auto& b) { return a.second.size() > b.second.size(); });
    std::string text;
    for (const auto& [stamp, ranks] : sets)
        text += fmt::format("{}{} {} in {}", text.empty() ? "" : "; ", rank_list(ranks),
                            ranks.size() == 1 ? "waits" : "wait", stamp);
    return text;
}

Verdict about(const RankReport& r, Verdict::Kind kind) {
    Verdict v{.kind = kind, .rank = r.rank, .host = r.host, .phase = r.phase, .step = r.step};
    if (const Stamp* s = last_stamp(r)) v.site = site_text(*s);
    return v;
}

void finish_text(Verdict& v, const std::string& what) {
    v.text = what + (v.waiting.empty() ? "" : "; " + v.waiting);
}

// ---- collectives that do not match --------------------------------------------------------

/// What all ranks of a group must give alike.
struct Signature {
    std::string op, how, dtype, file;
    std::int64_t count;
    std::int32_t line;
    explicit Signature(const Stamp& s)
        : op(s.op), how(s.how), dtype(s.dtype), file(s.file), count(s.count), line(s.line) {}
    auto operator<=>(const Signature&) const = default;
};

struct Seen {
    const RankReport* report;
    const Stamp* stamp;
};

// Of the ranks that gave different things, those that are the fewest; all when there is no
// majority.
std::vector<Seen> minority(const std::vector<Seen>& all) {
    std::map<Signature, std::vector<Seen>> by_signature;
    for (const Seen& s : all)
        by_signature[Signature(*s.stamp)].push_back(s);
    std::size_t most = 0, with_most = 0;
    for (const auto& [signature, seen] : by_signature) {
        if (seen.size() > most) with_most = 0;
        most = std::max(most, seen.size());
        with_most += seen.size() == most;
    }
    if (with_most > 1) return all;
    std::vector<Seen> few;
    for (const auto& [signature, seen] : by_signature)
        if (seen.size() < most) few.insert(few.end(), seen.begin(), seen.end());
    return few;
}

std::vector<int> ranks_of(const std::vector<Seen>& seen) {
    std::vector<int> ranks;
    for (const Seen& s : seen)
        ranks.push_back(s.report->rank);
    std::ranges::sort(ranks);
    return ranks;
}

constexpr double kTieSeconds = 0.6;  // two heartbeats and a little

std::optional<Verdict> find_mismatch(const Reports& reports, double now) {
    std::map<std::tuple<std::int32_t, std::int32_t, std::uint64_t>, std::vector<Seen>> calls;
    for (const RankReport& r : reports)
        if (judged(r))
            for (const std::vector<Stamp>& lane : r.lanes)
                for (const Stamp& s : lane)
                    if (s.sequence > 0)
                        calls[{s.group_ordinal, s.group_first, s.sequence}].push_back({&r, &s});
    const std::vector<Seen>* first = nullptr;  // by when it began: what follows is its consequence
    std::int64_t first_begin = 0;
    for (const auto& [call, seen] : calls) {
        const Signature wanted(*seen.front().stamp);
        if (std::ranges::all_of(seen, [&](const Seen& s) { return Signature(*s.stamp) == wanted; }))
            continue;
        std::int64_t begin = seen.front().stamp->begin_ns;
        for (const Seen& s : seen)
            begin = std::min(begin, s.stamp->begin_ns);
        // As many say one thing as another: the next heartbeats of those still missing decide.
        const bool tie = minority(seen).size() == seen.size();
        const bool complete = std::ssize(seen) >= seen.front().stamp->group_size;
        if (tie && !complete && now - 1e-9 * static_cast<double>(begin) < kTieSeconds) continue;
        if (first != nullptr && begin >= first_begin) continue;
        first = &seen;
        first_begin = begin;
    }
    if (first == nullptr) return std::nullopt;
    const std::vector<Seen> few = minority(*first);
    const bool undecided = few.size() == first->size();
    std::vector<Seen> others;
    for (const Seen& s : *first)
        if (undecided
                ? s.report != few.front().report
                : std::ranges::none_of(few, [&](const Seen& f) { return f.report == s.report; }))
            others.push_back(s);
    const RankReport& culprit = *few.front().report;
    const Stamp& stamp = *few.front().stamp;
    Verdict v = about(culprit, Verdict::Kind::mismatched_collective);
    v.site = site_text(stamp);
    v.since_s = now - 1e-9 * static_cast<double>(first_begin);
    v.waiting =
        fmt::format("{} {} {}", rank_list(ranks_of(others)),
                    others.size() == 1 ? "is in" : "are in", stamp_text(*others.front().stamp));
    const std::vector<int> named = undecided ? std::vector<int>{culprit.rank} : ranks_of(few);
    finish_text(v, fmt::format("{} on {} {} not match the others' collective: step {}, phase {}, "
                               "{} {}{}",
                               rank_list(named), culprit.host, named.size() == 1 ? "does" : "do",
                               culprit.step, phase_name(culprit.phase),
                               named.size() == 1 ? "is in" : "are in", stamp_text(stamp),
                               undecided ? " (either side may be wrong)" : ""));
    return v;
}

const GroupMark* mark_of(const RankReport& r, const GroupKey& key) {
    for (const GroupMark& g : r.groups)
        if (key_of(g) == key) return &g;
    return nullptr;
}

// Two ranks that entered collectives of two groups in different orders wait for each other for
// ever. In one order, the one whose report is newer is ahead in every group, whenever the reports
// were made; so a crossing proves it.
bool crossed(const RankReport& a, const RankReport& b) {
    bool a_ahead = false, b_ahead = false;
    for (const GroupMark& g : a.groups) {
        const GroupMark* h = mark_of(b, key_of(g));
        if (h == nullptr || g.lane != Lane::main || h->lane != Lane::main) continue;
        a_ahead = a_ahead || g.sequence > h->sequence;
        b_ahead = b_ahead || g.sequence < h->sequence;
    }
    return a_ahead && b_ahead;
}

std::optional<Verdict> find_wrong_order(const Reports& reports, double now) {
    // Costs the square of the ranks, so: only where somebody waits.
    std::vector<const RankReport*> waiting;
    for (const RankReport& r : reports)
        if (judged(r) && r.waits_in() != nullptr && now - r.progress_at > 0.5)
            waiting.push_back(&r);
    std::map<int, int> crossings;
    for (std::size_t i = 0; i < waiting.size(); ++i)
        for (std::size_t j = i + 1; j < waiting.size(); ++j)
            if (crossed(*waiting[i], *waiting[j])) {
                ++crossings[waiting[i]->rank];
                ++crossings[waiting[j]->rank];
            }
    if (crossings.empty()) return std::nullopt;
    int most = 0;
    for (const auto& [rank, n] : crossings)
        most = std::max(most, n);
    std::vector<int> named;
    for (const auto& [rank, n] : crossings)
        if (n == most) named.push_back(rank);
    const RankReport& culprit =
        **std::ranges::find(waiting, named.front(), [](const RankReport* r) { return r->rank; });
    const bool undecided = named.size() > 1;
    Verdict v = about(culprit, Verdict::Kind::mismatched_collective);
    v.site = site_text(*culprit.waits_in());
    v.since_s = now - culprit.progress_at;
    v.waiting = waiting_text(reports, {culprit.rank});
    finish_text(
        v, fmt::format("rank {} on {} entered collectives in another order than others{}: "
                       "step {}, phase {}, waits in {}",
                       culprit.rank, culprit.host, undecided ? " (either side may be wrong)" : "",
                       culprit.step, phase_name(culprit.phase), stamp_text(*culprit.waits_in())));
    return v;
}

// ---- silence ------------------------------------------------------------------------------

struct Host {
    bool local = false;
    std::vector<const RankReport*> ranks;
    double heard_at = 0.0;  // any of them
};

std::map<std::string, Host> hosts_of(const Reports& reports) {
    std::map<std::string, Host> hosts;
    for (const RankReport& r : reports) {
        if (!judged(r)) continue;
        Host& h = hosts[r.host];
        h.local = h.local || r.local;
        h.heard_at = std::max(h.heard_at, r.heard_at);
        h.ranks.push_back(&r);
    }
    return hosts;
}

std::optional<Verdict> find_silent(const Reports& reports, const Limits& limits, double now) {
    const std::map<std::string, Host> hosts = hosts_of(reports);
    for (const auto& [name, host] : hosts) {
        if (host.local || now - host.heard_at <= limits.host) continue;
        std::vector<int> ranks;
        for (const RankReport* r : host.ranks)
            ranks.push_back(r->rank);
        Verdict v = about(*host.ranks.front(), Verdict::Kind::lost_host);
        v.since_s = now - host.heard_at;
        v.waiting = waiting_text(reports, ranks);
        finish_text(v, fmt::format("host {} is lost: no heartbeat of {} for {:.1f} s, step {}, "
                                   "phase {}",
                                   name, rank_list(ranks), v.since_s, v.step, phase_name(v.phase)));
        return v;
    }
    const RankReport* worst = nullptr;
    std::vector<int> stopped;
    for (const RankReport& r : reports) {
        if (!judged(r)) continue;
        const Host& host = hosts.at(r.host);
        const bool whole_host = !host.local && now - host.heard_at > kQuiet;
        // When a network comes back, the ranks of a host are heard again one after the other.
        const double silent = host.local ? limits.silent : std::max(limits.silent, limits.host);
        const double limit = r.connected ? silent : std::min(silent, kDisconnected);
        if (whole_host || silence(r, now) <= limit) continue;
        stopped.push_back(r.rank);
        if (worst == nullptr || r.heard_at < worst->heard_at) worst = &r;
    }
    if (worst != nullptr) {
        Verdict v = about(*worst, Verdict::Kind::silent_rank);
        v.since_s = silence(*worst, now);
        v.stopped = stopped;
        v.waiting = waiting_text(reports, stopped);
        const std::string why =
            worst->process_state == 'T'
                ? fmt::format(", process {} is stopped (SIGSTOP)", worst->pid)
            : worst->process_state == 'X' || worst->process_state == 'Z' || !worst->connected
                ? fmt::format(", process {} has ended without goodbye", worst->pid)
                : "";
        finish_text(v, fmt::format("rank {} on {} is silent: step {}, phase {}, no heartbeat for "
                                   "{:.1f} s{}{}",
                                   v.rank, v.host, v.step, phase_name(v.phase), v.since_s, why,
                                   v.site.empty() ? "" : ", last in " + v.site));
        return v;
    }
    std::vector<int> never;
    double since = 0.0;
    for (const RankReport& r : reports)
        if (!r.known && silence(r, now) > limits.start) {
            never.push_back(r.rank);
            since = std::max(since, silence(r, now));
        }
    if (never.empty()) return std::nullopt;
    Verdict v{.kind = Verdict::Kind::silent_rank, .rank = never.front(), .since_s = since};
    v.text = fmt::format("{} did not report within {:.1f} s of the start", rank_list(never), since);
    return v;
}

// ---- stalls -------------------------------------------------------------------------------

std::optional<Verdict> find_stall(const Reports& reports, const Limits& limits, double now) {
    const RankReport* oldest = nullptr;  // of those that wait for nobody, beyond their limit
    const RankReport* oldest_waiting = nullptr;
    bool somebody_works = false, all_beyond = true;
    for (const RankReport& r : reports) {
        if (!judged(r)) {
            somebody_works = somebody_works || !r.known;  // still starting
            continue;
        }
        // Stalls have a known reason while somebody is silent; that is judged by itself.
        if (silence(r, now) > kQuiet) return std::nullopt;
        const double stalled = now - r.progress_at;
        const bool beyond = stalled > limit_of(r.phase, limits);
        if (r.waits_in() != nullptr) {
            all_beyond = all_beyond && beyond;
            if (oldest_waiting == nullptr || r.progress_at < oldest_waiting->progress_at)
                oldest_waiting = &r;
        } else if (beyond) {
            if (oldest == nullptr || r.progress_at < oldest->progress_at) oldest = &r;
        } else {
            somebody_works = true;
        }
    }
    if (oldest != nullptr) {
        Verdict v = about(*oldest, Verdict::Kind::hang);
        v.since_s = now - oldest->progress_at;
        v.waiting = waiting_text(reports, {v.rank});
        const std::string queue =
            oldest->queue_waited_for == 0
                ? ""
                : fmt::format(", waits for its {} thread",
                              lane_name(static_cast<Lane>(oldest->queue_waited_for)));
        finish_text(
            v, fmt::format("rank {} on {} hangs: step {}, phase {}, no progress for {:.1f} s{}{}",
                           v.rank, v.host, v.step, phase_name(v.phase), v.since_s, queue,
                           v.site.empty() ? "" : ", last in " + v.site));
        return v;
    }
    if (somebody_works || oldest_waiting == nullptr || !all_beyond) return std::nullopt;
    // Everybody waits. A rank that is not where most are is the one to look at: one that has left,
    // or one that waits in a collective that most have not reached.
    std::map<std::string, std::vector<int>> places;
    for (const RankReport& r : reports)
        if (judged(r) && r.waits_in() != nullptr)
            places[name_text(*r.waits_in()) + std::to_string(r.waits_in()->group_first)].push_back(
                r.rank);
    std::size_t most = 0, fewest = reports.size() + 1;
    for (const auto& [place, ranks] : places) {
        most = std::max(most, ranks.size());
        fewest = std::min(fewest, ranks.size());
    }
    const RankReport* odd = nullptr;
    for (const auto& [place, ranks] : places)
        if (ranks.size() == fewest && fewest < most && odd == nullptr)
            odd = &*std::ranges::find(reports, ranks.front(), &RankReport::rank);
    std::vector<int> left;
    for (const RankReport& r : reports)
        if (r.finished) left.push_back(r.rank);
    Verdict v = about(odd != nullptr ? *odd : *oldest_waiting,
                      odd != nullptr ? Verdict::Kind::hang : Verdict::Kind::communication);
    if (odd == nullptr) v.rank = -1;
    v.since_s = now - oldest_waiting->progress_at;
    v.waiting =
        waiting_text(reports, odd != nullptr ? std::vector<int>{odd->rank} : std::vector<int>{});
    if (odd != nullptr)
        finish_text(v, fmt::format("rank {} on {} hangs: step {}, phase {}, no progress for {:.1f} "
                                   "s, alone in {}",
                                   v.rank, v.host, v.step, phase_name(v.phase), v.since_s,
                                   stamp_text(*odd->waits_in())));
    else
        finish_text(v, fmt::format("communication hangs: step {}, phase {}, no progress for {:.1f} "
                                   "s{}",
                                   v.step, phase_name(v.phase), v.since_s,
                                   left.empty() ? "" : ", " + rank_list(left) + " has left"));
    return v;
}

}  // namespace

const Stamp* RankReport::waits_in() const {
    const auto last_inside = [this](std::size_t lane) -> const Stamp* {
        return !lanes[lane].empty() && lanes[lane].back().inside() ? &lanes[lane].back() : nullptr;
    };
    if (const Stamp* main = last_inside(0)) return main;
    return queue_waited_for == 0 ? nullptr
                                 : last_inside(static_cast<std::size_t>(queue_waited_for));
}

const char* verdict_name(Verdict::Kind kind) {
    constexpr const char* kNames[] = {"hang", "silent_rank", "lost_host", "mismatched_collective",
                                      "communication"};
    return kNames[static_cast<int>(kind)];
}
const char* verdict_cause(Verdict::Kind kind) {
    return kind == Verdict::Kind::lost_host       ? "lost_host"
           : kind == Verdict::Kind::communication ? "communication"
                                                  : "hang";
}

std::optional<Verdict> judge(const std::vector<RankReport>& reports, const Limits& limits,
                             double now) {
    if (auto v = find_mismatch(reports, now)) return v;
    if (auto v = find_wrong_order(reports, now)) return v;
    if (auto v = find_silent(reports, limits, now)) return v;
    return find_stall(reports, limits, now);
}

std::string rank_list(const std::vector<int>& ranks) {
    std::string text = ranks.size() == 1 ? "rank " : "ranks ";
    for (std::size_t i = 0; i < ranks.size();) {
        std::size_t end = i + 1;
        while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1)
            ++end;
        if (i > 0) text += ",";
        text += std::to_string(ranks[i]);
        if (end - i > 2) text += "-" + std::to_string(ranks[end - 1]);
        if (end - i == 2) text += "," + std::to_string(ranks[end - 1]);
        i = end;
    }
    return text;
}

}  // namespace stoa
