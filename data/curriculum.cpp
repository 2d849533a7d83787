#include "data/curriculum.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/core/philox.h"

namespace stoa {
namespace {

constexpr std::int64_t kLargestWindow = 1000;

/// How a window of `size` slots is dealt: source k (of config.data.sources) gets counts[k] of them.
struct Deal {
    std::int64_t size = 0;
    std::vector<std::int64_t> counts;
};

std::vector<double> source_weights(const StageConfig& stage, const RunConfig& config) {
    std::vector<double> weights;
    for (const SourceConfig& source : config.data.sources) {
        const auto it = stage.mix.find(source.name);
        weights.push_back(it == stage.mix.end() ? 0.0 : it->second);
    }
    return weights;
}

/// The smallest window in which every share is whole (0.333333 counts as 1/3). Weights that need
/// more than 1000 slots are rounded to thousandths, largest remainder first.
Deal make_deal(const StageConfig& stage, const RunConfig& config) {
    const std::vector<double> weights = source_weights(stage, config);
    for (std::int64_t size = 1; size <= kLargestWindow; ++size) {
        Deal deal{size, {}};
        bool whole = true;
        for (const double w : weights) {
            const double share = w * static_cast<double>(size);
            whole = whole && std::abs(share - std::round(share)) < 1e-5;
            deal.counts.push_back(std::llround(share));
        }
        if (whole &&
            std::accumulate(deal.counts.begin(), deal.counts.end(), std::int64_t{0}) == size)
            return deal;
    }
    Deal deal{kLargestWindow, {}};
    std::vector<std::pair<double, std::size_t>> remainders;  // negated: the largest sorts first
    for (std::size_t k = 0; k < weights.size(); ++k) {
        const double share = weights[k] * static_cast<double>(kLargestWindow);
        deal.counts.push_back(static_cast<std::int64_t>(std::floor(share)));
        remainders.emplace_back(std::floor(share) - share, k);
    }
    std::sort(remainders.begin(), remainders.end());
    std::int64_t left =
        kLargestWindow - std::accumulate(deal.counts.begin(), deal.counts.end(), std::int64_t{0});
    for (std::size_t r = 0; left > 0 && !remainders.empty();
         r = (r + 1) % remainders.size(), --left)
        ++deal.counts[remainders[r].second];
    return deal;
}

/// The sources of the slots of one window, in slot order.
std::vector<std::int64_t> deal_window(const Deal& deal, std::uint64_t seed, std::int64_t stage,
                                      std::int64_t window) {
    std::vector<std::int64_t> cards;
    for (std::size_t k = 0; k < deal.counts.size(); ++k)
        cards.insert(cards.end(), static_cast<std::size_t>(deal.counts[k]),
                     static_cast<std::int64_t>(k));
    const std::uint64_t key = mix_key(mix_key(seed, static_cast<std::uint64_t>(stage)),
                                      static_cast<std::uint64_t>(window));
    std::vector<std::int64_t> slots;
    for (std::uint64_t i = 0; i < cards.size(); ++i)
        slots.push_back(cards[static_cast<std::size_t>(permute(key, cards.size(), i))]);
    return slots;
}

/// How many of the first `slots` slots of a stage each source gets.
std::vector<std::int64_t> slots_per_source(const Deal& deal, std::uint64_t seed, std::int64_t stage,
                                           std::int64_t slots) {
    const std::int64_t windows = slots / deal.size;
    std::vector<std::int64_t> counts = deal.counts;
    for (std::int64_t& n : counts)
        n *= windows;
    if (slots % deal.size == 0) return counts;
    const auto last = deal_window(deal, seed, stage, windows);
    for (std::int64_t i = 0; i < slots % deal.size; ++i)
        ++counts[static_cast<std::size_t>(last[static_cast<std::size_t>(i)])];
    return counts;
}

}  // namespace

CurriculumState initial_curriculum(const RunConfig& config) {
    CurriculumState state;
    state.source_tokens.assign(config.data.sources.size(), 0);
    return state;
}

bool run_finished(const CurriculumState& state, const RunConfig& config) {
    return state.stage >= static_cast<std::int64_t>(config.stages.size());
}

const StageConfig& stage_at(const CurriculumState& state, const RunConfig& config) {
    return config.stages.at(static_cast<std::size_t>(state.stage));
}

CurriculumState advance(const CurriculumState& state, const RunConfig& config) {
    const StageConfig& stage = stage_at(state, config);
    CurriculumState next = state;
    next.step += 1;
    next.tokens += config.batch.global_batch * stage.seq_len;
    const std::int64_t steps = next.step - next.stage_begin_step;
    if (steps < stage_steps(stage, config.batch.global_batch)) return next;
    const auto slots = slots_per_source(make_deal(stage, config), config.run.seed, state.stage,
                                        steps * config.batch.global_batch);
    for (std::size_t k = 0; k < slots.size(); ++k)
        next.source_tokens[k] += slots[k] * stage.seq_len;
    next.stage += 1;
    next.stage_begin_step = next.step;
    next.stage_begin_tokens = next.tokens;
    return next;
}

std::int64_t total_steps(const RunConfig& config) {
    std::int64_t steps = 0;
    for (const StageConfig& stage : config.stages)
        steps += stage_steps(stage, config.batch.global_batch);
    return steps;
}

std::int64_t total_tokens(const RunConfig& config) {
    std::int64_t tokens = 0;
    for (const StageConfig& stage : config.stages)
        tokens += stage_steps(stage, config.batch.global_batch) * config.batch.global_batch *
                  stage.seq_len;
    return tokens;
}

std::vector<SlotAssignment> assign_slots(const RunConfig& config, const CurriculumState& state,
                                         std::int64_t begin, std::int64_t count) {
    const StageConfig& stage = stage_at(state, config);
    const Deal deal = make_deal(stage, config);
    const std::int64_t first =
        (state.step - state.stage_begin_step) * config.batch.global_batch + begin;
    std::vector<SlotAssignment> out;
    out.reserve(static_cast<std::size_t>(count));
    for (std::int64_t window = first / deal.size; window * deal.size < first + count; ++window) {
        // Next ordinal of each source: what earlier stages and this stage's earlier windows used.
        std::vector<std::int64_t> ordinal;
        for (std::size_t k = 0; k < deal.counts.size(); ++k)
            ordinal.push_back((state.source_tokens.at(k) + stage.seq_len - 1) / stage.seq_len +
                              window * deal.counts[k]);
        const auto sources = deal_window(deal, config.run.seed, state.stage, window);
        for (std::int64_t i = 0; i < deal.size; ++i) {
            const std::int64_t slot = window * deal.size + i;
            const auto source = static_cast<std::size_t>(sources[static_cast<std::size_t>(i)]);
            const std::int64_t n = ordinal[source]++;
            if (slot >= first && slot < first + count)
                out.push_back({static_cast<std::int64_t>(source), n});
        }
    }
    return out;
}

SlotAssignment assign_slot(const RunConfig& config, const CurriculumState& state,
                           std::int64_t slot) {
    return assign_slots(config, state, slot, 1).front();
}

}  // namespace stoa
