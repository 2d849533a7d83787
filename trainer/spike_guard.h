#pragma once
// Keeps one bad batch out of the weights: decides, before the optimizer runs, whether a step's loss
// or gradient norm stands out of the recent ones.
#include <cstdint>
#include <string>
#include <vector>

namespace stoa {

struct SpikeLimits {
    std::int64_t window = 128;      // accepted steps that are remembered
    std::int64_t min_samples = 32;  // with fewer, every finite step is accepted
    double z = 6.0;                 // in robust standard deviations, upward only
    // Least standard deviations: neither noise after a very quiet history nor the larger gradients
    // of a model that has just understood something are spikes. With z = 6 the loss must rise by
    // 0.3 nats or the norm by a factor exp(2.4) = 11, whatever the history.
    double least_sigma_loss = 0.05;
    double least_sigma_log_norm = 0.4;
    std::int64_t rewind_after = 3;  // spikes in a row
};

/// Saved in every checkpoint. The history is of accepted steps only, oldest first.
struct SpikeGuard {
    std::vector<double> loss;      // <= window
    std::vector<double> log_norm;  // natural logarithm of the gradient norm; as long as `loss`
    std::int64_t in_a_row = 0;     // spikes since the last accepted step
    bool operator==(const SpikeGuard&) const = default;
};

enum class SpikeAction {
    accept,  // update the weights
    skip,    // leave them; go on with the next batch
    rewind,  // load the last checkpoint and go on behind the batches that led here
};
struct SpikeVerdict {
    SpikeAction action = SpikeAction::accept;
    double z_loss = 0.0;  // 0 while there are fewer than min_samples
    double z_log_norm = 0.0;
};

/// With h the history of x (x = loss, and x = log(grad_norm)):
///   m(h) = median(h),  sigma(h) = max(1.4826 * median(|h - m(h)|), least_sigma)
///   z(x) = (x - m(h)) / sigma(h);  a spike is z(loss) > limit or z(log_norm) > limit
/// 1.4826 makes the median absolute deviation a Gaussian's standard deviation [Rousseeuw & Croux
/// 1993]. Half the history may be outliers before m and sigma follow them, so that one accepted
/// jump does not hide the next.
///   accept: x enters the history, the oldest beyond `window` leaves it; in_a_row = 0
///   spike:  in_a_row += 1, x is forgotten; rewind and in_a_row = 0 when it reaches rewind_after
/// A non-finite loss or norm is skipped and leaves the state as it is: overflow is the loss scale's
/// and the precision policy's business, and its own count ends the run.
/// loss: mean over all ranks' tokens; grad_norm: before clipping, unscaled; both all-reduced, so
/// that every rank decides alike.  comm: none, a pure function of its arguments
SpikeVerdict judge_step(SpikeGuard& guard, double loss, double grad_norm,
                        const SpikeLimits& limits = {});

/// For a stage switch: another data mix has another loss level.
void forget_history(SpikeGuard& guard);

/// "in_a_row n loss[0..n) log_norm[0..n)", reals in hexadecimal; exact both ways.
std::string to_text(const SpikeGuard& guard);
/// errors: CheckpointError when the text is not such a guard
SpikeGuard spike_guard_from_text(const std::string& text);

}  // namespace stoa
