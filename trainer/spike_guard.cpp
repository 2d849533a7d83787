#include "trainer/spike_guard.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "kernels/core/error.h"

namespace stoa {
namespace {

double median(std::vector<double> x) {
    const std::size_t n = x.size();
    const auto middle = x.begin() + static_cast<std::ptrdiff_t>(n / 2);
    std::ranges::nth_element(x, middle);
    return n % 2 == 1 ? *middle : (*middle + *std::max_element(x.begin(), middle)) / 2.0;
}

double robust_z(const std::vector<double>& history, double x, double least_sigma) {
    const double m = median(history);
    std::vector<double> distance;
    for (const double h : history)
        distance.push_back(std::abs(h - m));
    return (x - m) / std::max(1.4826 * median(distance), least_sigma);
}

void remember(std::vector<double>& history, double x, std::int64_t window) {
    history.push_back(x);
    if (std::ssize(history) > window) history.erase(history.begin());
}

double hex_real(std::istringstream& in) {
    std::string word;
    in >> word;
    char* end = nullptr;
    const double x = std::strtod(word.c_str(), &end);
    if (word.empty() || *end != '\0' || !std::isfinite(x)) in.setstate(std::ios::failbit);
    return x;
}

}  // namespace

SpikeVerdict judge_step(SpikeGuard& guard, double loss, double grad_norm,
                        const SpikeLimits& limits) {
    const double log_norm = std::log(std::max(grad_norm, 1e-300));
    if (!std::isfinite(loss) || !std::isfinite(log_norm)) return {.action = SpikeAction::skip};
    SpikeVerdict verdict;
    if (std::ssize(guard.loss) >= limits.min_samples) {
        verdict.z_loss = robust_z(guard.loss, loss, limits.least_sigma_loss);
        verdict.z_log_norm = robust_z(guard.log_norm, log_norm, limits.least_sigma_log_norm);
    }
    if (verdict.z_loss <= limits.z && verdict.z_log_norm <= limits.z) {
        remember(guard.loss, loss, limits.window);
        remember(guard.log_norm, log_norm, limits.window);
        guard.in_a_row = 0;
        return verdict;
    }
    verdict.action = SpikeAction::skip;
    if (++guard.in_a_row >= limits.rewind_after) {
        guard.in_a_row = 0;
        verdict.action = SpikeAction::rewind;
    }
    return verdict;
}

void forget_history(SpikeGuard& guard) { guard = {}; }

std::string to_text(const SpikeGuard& guard) {
    std::string text = fmt::format("{} {}", guard.in_a_row, guard.loss.size());
    for (const auto* const history : {&guard.loss, &guard.log_norm})
        for (const double x : *history)
            text += fmt::format(" {:a}", x);
    return text;
}

SpikeGuard spike_guard_from_text(const std::string& text) {
    std::istringstream in(text);
    SpikeGuard guard;
    std::int64_t n = -1;
    in >> guard.in_a_row >> n;
    for (auto* const history : {&guard.loss, &guard.log_norm})
        for (std::int64_t i = 0; i < n && in; ++i)
            history->push_back(hex_real(in));
    std::string rest;
    if (!in || n < 0 || guard.in_a_row < 0 || in >> rest)
        throw CheckpointError({.what = "not the history of a spike guard", .actual = text});
    return guard;
}

}  // namespace stoa
