#pragma once
// Whether attention that selects keys holds beside dense attention: what attention_quality judges
// its runs by.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace stoa::test {

inline constexpr const char* kKinds[] = {"tree", "importance_helped", "importance", "dense",
                                         "window"};  // longest first

// In points of accuracy, and bits as a share.
struct Lines {
    double dense = 0.98;   // at least: else the task proves nothing
    double window = 20.0;  // window-only is at least this far below dense
    double mean = 1.0;     // the tree below dense: over all tasks and seeds ...
    double worst = 2.0;    // ... of any seed of a task
    double longest = 3.0;  // ... at 8 times the length, of any task
    double bits = 0.005;
};
// For few steps and one seed: a selection that is broken is further off.
constexpr Lines kQuickLines{
    .dense = 0.9, .window = 30.0, .mean = 6.0, .worst = 6.0, .longest = 15.0, .bits = 0.02};

// One figure of all seeds of a task and kind, in the order of the seeds; without runs of a case.
struct Figures {
    std::vector<double> values;
    double mean() const {
        double sum = 0.0;
        for (const double v : values)
            sum += v;
        return sum / static_cast<double>(values.size());
    }
    double worst_below(const Figures& reference) const {
        double worst = -1.0;
        for (std::size_t i = 0; i < values.size(); ++i)
            worst = std::max(worst, reference.values[i] - values[i]);
        return worst;
    }
};
inline Figures figures(std::vector<nlohmann::json> runs, const std::string& task,
                       const std::string& kind, const char* figure, const char* times) {
    std::erase_if(runs, [](const nlohmann::json& r) { return !r.is_object(); });  // died
    std::ranges::sort(runs, {}, [](const nlohmann::json& r) { return r.value("seed", 0); });
    Figures f;
    for (const nlohmann::json& r : runs)
        if (!r.contains("case") && r["task"] == task && r["kind"] == kind && r.contains(figure))
            f.values.push_back(r[figure].value(times, NAN));
    return f;
}

// Every comparison of one task with dense, in points of accuracy; NaN where a run is missing fails
// every line, since no comparison holds for it.
inline nlohmann::json task_verdict(const std::vector<nlohmann::json>& runs, const std::string& task,
                                   const Lines& lines) {
    nlohmann::json out{{"task", task}};
    const auto compared = [&](const char* kind, const char* figure, const char* times) {
        const Figures dense = figures(runs, task, "dense", figure, times),
                      other = figures(runs, task, kind, figure, times);
        const bool whole = !dense.values.empty() && dense.values.size() == other.values.size();
        return whole ? std::pair{100.0 * (dense.mean() - other.mean()),
                                 100.0 * other.worst_below(dense)}
                     : std::pair{double{NAN}, double{NAN}};
    };
    const Figures dense = figures(runs, task, "dense", "accuracy", "1x");
    out["dense"] = dense.values;
    for (const char* kind : {"window", "tree", "importance", "importance_helped"})
        for (const char* times : {"1x", "2x", "4x", "8x"}) {
            const auto [mean, worst] = compared(kind, "accuracy", times);
            if (!std::isnan(mean))
                out[kind][times] = {{"below_dense", mean}, {"worst_seed", worst}};
        }
    const auto [mean, worst] = compared("tree", "accuracy", "1x");
    const double at_longest = compared("tree", "accuracy", "8x").first;
    const double decoded = compared("tree", "decoded", "1x").first;
    out["tree_decoded_below_dense"] = decoded;
    out["mean"] = mean;
    const bool solved = !dense.values.empty() && std::ranges::min(dense.values) >= lines.dense;
    const bool far = compared("window", "accuracy", "1x").first >= lines.window;
    out["dense_solves"] = solved;
    out["window_fails"] = far;
    out["holds"] = solved && far && worst <= lines.worst && at_longest <= lines.longest &&
                   decoded <= lines.worst;
    return out;
}

// Bits per byte against dense, as a share of dense's.
inline nlohmann::json code_verdict(const std::vector<nlohmann::json>& runs, const Lines& lines) {
    nlohmann::json out{{"task", "code"}};
    bool holds = true;
    for (const char* figure : {"bits", "last_quarter"})
        for (const char* kind : kKinds) {
            const Figures dense = figures(runs, "code", "dense", figure, "1x"),
                          other = figures(runs, "code", kind, figure, "1x");
            const double gap = other.mean() / dense.mean() - 1.0;
            out[figure][kind] = {{"bits_per_byte", other.mean()}, {"above_dense", gap}};
            if (std::strcmp(kind, "tree") == 0)
                holds = holds && other.values.size() == dense.values.size() && gap <= lines.bits;
        }
    out["holds"] = holds;
    return out;
}

}  // namespace stoa::test
