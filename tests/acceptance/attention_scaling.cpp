// What attention over selected keys costs as sequences grow: one head of 64, one thread, CPU time.
// From 16k to 131k tokens the slope of log time against log length is at most 1.10, for the forward
// and for forward and backward, by importance and by the tree; so is that of the memory that a run
// adds (inputs and outputs included); and the nodes that the tree scores for a query are bounded by
// its levels, as counted from the saved selection. Every run is a process of its own; the lengths
// take turns, so that all see the same machine, and the best round counts.
//   attention_scaling [--quick]        --quick: 4k to 32k tokens beside other tests, bar 1.60: a
//   square more
// queries still have less than their full window and levels
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/support/attention_runs.h"

using namespace stoa;
using namespace stoa::test;
using nlohmann::json;

namespace {

constexpr double kMaxSlope = 1.10, kMaxQuickSlope = 1.60;
constexpr const char* kKinds[] = {"importance", "tree"};
constexpr int kRounds = 3, kQuickRounds = 2;

double resident_mb(const char* line) {
    std::ifstream status("/proc/self/status");
    for (std::string word; status >> word;)
        if (word == line) {
            double kb = 0.0;
            status >> kb;
            return kb / 1024.0;
        }
    return 0.0;
}

/// Candidates that the descent of query t scored, level by level, from what it expanded.
std::int64_t scored_nodes(const AttentionRun& r, std::int64_t t) {
    const TreeRule& rule = r.tree;
    const std::int64_t levels = tree_levels(rule, r.len), slots = tree_slots(rule);
    const std::int64_t far = std::max<std::int64_t>(0, t / rule.leaf - rule.window / rule.leaf);
    const auto all = r.selection.as<std::int32_t>();
    std::int64_t scored = 0, width = 1;
    for (std::int64_t level = 0; level < levels && far / width > 0; ++level, width *= rule.fanout) {
        const bool top = far / width / rule.fanout == 0;
        scored += far / width - (top ? 0 : far / (width * rule.fanout) * rule.fanout);
        for (std::int64_t i = 0; !top && i < slots; ++i)
            if (all[static_cast<std::size_t>((t * levels + level + 1) * slots + i)] >= 0)
                scored += rule.fanout;
    }
    return scored;
}

json measure(const std::string& kind, std::int64_t len) {
    constexpr int kRepeats = 2;  // the first finds cold memory
    const double before = resident_mb("VmRSS:");
    const AttentionRun r(len);
    const bool tree = kind == "tree";
    const Seconds forward =
        best_of(kRepeats, [&] { tree ? r.tree_forward() : r.importance_forward(); });
    const Seconds backward =
        best_of(kRepeats, [&] { tree ? r.tree_backward() : r.importance_backward(); });
    json out{{"kind", kind},
             {"tokens", len},
             {"forward_s", forward.cpu},
             {"forward_backward_s", forward.cpu + backward.cpu},
             {"memory_mb", resident_mb("VmHWM:") - before}};
    if (!tree) return out;
    std::int64_t most = 0, sum = 0;
    for (std::int64_t t = 0; t < len; ++t) {
        const std::int64_t scored = scored_nodes(r, t);
        most = std::max(most, scored);
        sum += scored;
    }
    // Leaf 0, which holds the sinks, is expanded beside the beam and counts like it.
    out["nodes_scored_bound"] =
        tree_levels(r.tree, len) * (r.tree.beam * r.tree.fanout + r.tree.fanout - 1);
    out["nodes_scored_most"] = most;
    out["nodes_scored_mean"] = static_cast<double>(sum) / static_cast<double>(len);
    return out;
}

/// `measure` in a child, so that no length finds the memory of another one.
json measure_apart(const std::string& kind, std::int64_t len) {
    int ends[2];
    if (pipe(ends) != 0) return {};
    const pid_t child = fork();
    if (child == 0) {
        const std::string text = measure(kind, len).dump();
        const auto written = write(ends[1], text.data(), text.size());
        _exit(written == static_cast<ssize_t>(text.size()) ? 0 : 1);
    }
    close(ends[1]);
    std::string text;
    char chunk[4096];
    for (ssize_t n = 0; (n = read(ends[0], chunk, sizeof chunk)) > 0;)
        text.append(chunk, static_cast<std::size_t>(n));
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    return json::parse(text);
}

/// The lengths in turns; of each the best times.
json measure_lengths(const std::string& kind, std::int64_t first, std::int64_t last, int rounds) {
    json best = json::array();
    for (int round = 0; round < rounds; ++round)
        for (std::int64_t len = first, i = 0; len <= last; len *= 2, ++i) {
            const json run = measure_apart(kind, len);
            fmt::print("{}\n", run.dump());
            std::fflush(stdout);
            if (round == 0) best.push_back(run);
            for (const char* value : {"forward_s", "forward_backward_s"})
                best[static_cast<std::size_t>(i)][value] =
                    std::min(best[static_cast<std::size_t>(i)][value].get<double>(),
                             run[value].get<double>());
        }
    return best;
}

/// Of log(value) against log(tokens), by least squares.
double slope(const json& rows, const char* value) {
    double n = 0.0, sx = 0.0, sy = 0.0, sxx = 0.0, sxy = 0.0;
    for (const json& row : rows) {
        const double x = std::log(row.at("tokens").get<double>()),
                     y = std::log(row.at(value).get<double>());
        n += 1.0, sx += x, sy += y, sxx += x * x, sxy += x * y;
    }
    return (n * sxy - sx * sy) / (n * sxx - sx * sx);
}

}  // namespace

int main(int argc, char** argv) {
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    const std::int64_t first = quick ? 4096 : 16384, last = 8 * first;
    const double bar = quick ? kMaxQuickSlope : kMaxSlope;
    bool holds = true;
    double load = 0.0;
    std::ifstream("/proc/loadavg") >> load;
    json out{{"quick", quick}, {"max_slope", bar}, {"load_average", load}};
    for (const char* kind : kKinds) {
        json& result = out[kind];
        result["runs"] = measure_lengths(kind, first, last, quick ? kQuickRounds : kRounds);
        for (const json& run : result["runs"])
            if (run.contains("nodes_scored_most"))
                holds = holds && run["nodes_scored_most"].get<std::int64_t>() <=
                                     run["nodes_scored_bound"].get<std::int64_t>();
        for (const char* value : {"forward_s", "forward_backward_s", "memory_mb"}) {
            const double s = slope(result["runs"], value);
            result["slope"][value] = s;
            holds = holds && s <= bar;
        }
    }
    out["holds"] = holds;
    fmt::print("{}\n", out.dump());
    return holds ? 0 : 1;
}
