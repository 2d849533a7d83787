#include "trainer/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace stoa {
namespace {

// Share of the peak at position p of `total` tokens, after a warm-up of `warmup` tokens.
double shape_at(const ScheduleConfig& c, double p, double warmup, double total) {
    if (p < warmup) return p / warmup;
    const double progress = total > warmup ? std::min(1.0, (p - warmup) / (total - warmup)) : 1.0;
    switch (c.kind) {
        case ScheduleKind::constant:
            return 1.0;
        case ScheduleKind::linear:
            return 1.0 + (c.final_lr - 1.0) * progress;
        case ScheduleKind::cosine:
            return c.final_lr +
                   (1.0 - c.final_lr) * 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
        case ScheduleKind::wsd: {
            const double decay = c.decay * total;
            if (decay <= 0.0 || p <= total - decay) return 1.0;
            return 1.0 + (c.final_lr - 1.0) * std::min(1.0, (p - (total - decay)) / decay);
        }
    }
    return 1.0;
}

}  // namespace

double learning_rate(const RunConfig& config, const CurriculumState& state) {
    const StageConfig& stage = stage_at(state, config);
    const auto step_tokens = static_cast<double>(config.batch.global_batch * stage.seq_len);
    const double p = static_cast<double>(state.tokens) + step_tokens;
    const auto total = static_cast<double>(total_tokens(config));
    const ScheduleConfig& schedule = config.schedule;
    const double warmup = schedule.warmup_tokens >= 0 ? static_cast<double>(schedule.warmup_tokens)
                                                      : schedule.warmup * total;
    double lr = config.optimizer.lr * shape_at(schedule, p, warmup, total) * stage.lr_scale;
    const double into_stage = p - static_cast<double>(state.stage_begin_tokens);
    if (stage.lr_warmup_tokens > 0)
        lr *= std::min(1.0, into_stage / static_cast<double>(stage.lr_warmup_tokens));
    return lr;
}

}  // namespace stoa
