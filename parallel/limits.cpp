// What a run takes for normal: its limits, given and learned, and who is slower than the others.
// See parallel/monitor.h.
#include <algorithm>

#include "kernels/core/error.h"
#include "parallel/monitor.h"

namespace stoa {
namespace {

double median_of(std::vector<double> values) {
    if (values.empty()) return 0.0;
    const auto middle = values.begin() + static_cast<long>(values.size() / 2);
    std::ranges::nth_element(values, middle);
    return *middle;
}

}  // namespace

double limit_of(Phase phase, const Limits& limits) {
    switch (phase) {
        case Phase::start:
        case Phase::end:
            return limits.start;
        case Phase::restore:
            return limits.restore;
        case Phase::step:
            return limits.step;
        case Phase::evaluate:
            return limits.evaluate;
        case Phase::save:
            return limits.save;
        case Phase::drain:
            return limits.drain;
    }
    return limits.start;
}

Limits learned_limits(const Limits& floors, const std::vector<RankReport>& reports) {
    Limits now = floors;
    std::vector<double> steps_s, took_s;
    for (const RankReport& r : reports)
        for (const StepTime& t : r.steps)
            steps_s.push_back(1e-9 * static_cast<double>(t.total_ns));
    now.step = steps_s.empty() ? std::max(floors.step, floors.first_step)
                               : std::max(floors.step, floors.factor * median_of(steps_s));
    const auto learn = [&](Phase phase, double& limit) {
        took_s.clear();
        for (const RankReport& r : reports) {
            const auto& own = r.took_s[static_cast<std::size_t>(phase)];
            took_s.insert(took_s.end(), own.begin(), own.end());
        }
        limit = std::max(limit, floors.factor * median_of(took_s));
    };
    learn(Phase::evaluate, now.evaluate);
    learn(Phase::save, now.save);
    return now;
}

std::vector<Straggler> find_stragglers(const std::vector<RankReport>& reports) {
    constexpr std::size_t kWindow = 20, kLeast = 10;
    constexpr double kRatio = 1.5, kLeastExcessMs = 2.0;
    std::vector<std::pair<int, double>> own;  // rank, ms
    std::vector<double> all;
    for (const RankReport& r : reports) {
        if (!r.known || r.finished || r.steps.size() < kLeast) continue;
        std::vector<double> ms;
        for (std::size_t i = r.steps.size() - std::min(kWindow, r.steps.size()); i < r.steps.size();
             ++i)
            ms.push_back(1e-6 * static_cast<double>(r.steps[i].own_ns));
        own.emplace_back(r.rank, median_of(ms));
        all.push_back(own.back().second);
    }
    std::vector<Straggler> found;
    if (own.size() < 2) return found;
    // Of two ranks the median is the faster one.
    std::ranges::sort(all);
    const double median = all[(all.size() - 1) / 2];
    for (const auto& [rank, ms] : own)
        if (ms >= kRatio * median && ms - median >= kLeastExcessMs)
            found.push_back({rank, median > 0.0 ? ms / median : 0.0, ms, median});
    return found;
}

Limits parse_limits(const std::string& text) {
    Limits limits;
    const std::map<std::string, double*> fields{{"start", &limits.start},
                                                {"restore", &limits.restore},
                                                {"first_step", &limits.first_step},
                                                {"step", &limits.step},
                                                {"evaluate", &limits.evaluate},
                                                {"save", &limits.save},
                                                {"drain", &limits.drain},
                                                {"silent", &limits.silent},
                                                {"host", &limits.host},
                                                {"factor", &limits.factor}};
    std::map<std::string, double> given;
    for (std::size_t begin = 0; begin < text.size();) {
        const std::size_t end = std::min(text.find(',', begin), text.size());
        const std::string part = text.substr(begin, end - begin);
        begin = end + 1;
        if (part.empty()) continue;
        const std::size_t equal = part.find('=');
        const std::string name = part.substr(0, equal);
        std::string unit;
        double value = -1.0;
        if (equal != std::string::npos) {
            const std::string number = part.substr(equal + 1);
            std::size_t used = 0;
            try {
                value = std::stod(number, &used);
            } catch (const std::exception&) {
                value = -1.0;
            }
            unit = number.substr(std::min(used, number.size()));
        }
        const double scale = unit == "ms"                  ? 1e-3
                             : unit == "min"               ? 60.0
                             : unit == "s" || unit.empty() ? 1.0
                                                           : -1.0;
        if (!fields.contains(name) || value <= 0.0 || scale < 0.0) {
            std::string names;
            for (const auto& [n, field] : fields)
                names += (names.empty() ? "" : ", ") + n;
            throw ConfigError({.what = "not a limit",
                               .where = "limit '" + part + "'",
                               .expected = "NAME=SECONDS with one of: " + names,
                               .hint = "for example step=30s,save=5min"});
        }
        given[name] = value * scale;
        *fields.at(name) = given[name];
    }
    if (given.contains("step")) {
        if (!given.contains("first_step")) limits.first_step = limits.step;
        if (!given.contains("silent")) limits.silent = limits.step;
    }
    return limits;
}

}  // namespace stoa
