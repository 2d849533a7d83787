#include <cmath>
#include <limits>

#include "kernels/core/error.h"
#include "kernels/core/philox.h"
#include "tests/support/catch.h"
#include "trainer/spike_guard.h"

using namespace stoa;

namespace {

// A falling loss with noise of 0.02 nats, and norms with noise of 10 %.
struct Stream {
    Draws draws{3, 0};
    double noise() { return static_cast<double>(draws.between(-1000, 1000)) / 1000.0; }
    double loss(int step) { return 3.0 + 2.0 * std::exp(-step / 200.0) + 0.02 * noise(); }
    double norm() { return 0.8 * std::exp(0.1 * noise()); }
};

SpikeGuard warm_guard(int steps, Stream& stream) {
    SpikeGuard guard;
    for (int i = 0; i < steps; ++i)
        REQUIRE(judge_step(guard, stream.loss(i), stream.norm()).action == SpikeAction::accept);
    return guard;
}

}  // namespace

TEST_CASE("the spike guard accepts a quiet run, and remembers its window") {
    Stream stream;
    const SpikeGuard guard = warm_guard(3000, stream);
    CHECK(guard.loss.size() == 128);
    CHECK(guard.log_norm.size() == 128);
}

TEST_CASE("the spike guard judges nothing before it has seen enough") {
    Stream stream;
    SpikeGuard guard = warm_guard(31, stream);
    CHECK(judge_step(guard, 100.0, 100.0).action == SpikeAction::accept);
    CHECK(judge_step(guard, 100.0, 1.0).action == SpikeAction::skip);
}

TEST_CASE("a spike of the loss or of the norm is skipped and forgotten, the third rewinds") {
    Stream stream;
    SpikeGuard guard = warm_guard(300, stream);
    const auto history = guard.loss;
    const bool of_loss = GENERATE(true, false);
    const SpikeVerdict v =
        of_loss ? judge_step(guard, 6.0, 0.8) : judge_step(guard, stream.loss(300), 20.0);
    CHECK(v.action == SpikeAction::skip);
    CHECK((of_loss ? v.z_loss : v.z_log_norm) > 6.0);
    CHECK(guard.loss == history);
    CHECK(judge_step(guard, 6.0, 0.8).action == SpikeAction::skip);
    SECTION("an accepted step between them starts the count again") {
        CHECK(judge_step(guard, stream.loss(300), 0.8).action == SpikeAction::accept);
        CHECK(judge_step(guard, 6.0, 0.8).action == SpikeAction::skip);
    }
    SECTION("three in a row") {
        CHECK(judge_step(guard, 6.0, 0.8).action == SpikeAction::rewind);
        CHECK(guard.in_a_row == 0);
    }
}

TEST_CASE("a falling loss is no spike, and the limits are the documented ones") {
    SpikeGuard guard;
    for (int i = 0; i < 64; ++i)
        judge_step(guard, 3.0, 1.0);  // no spread at all: the least deviations hold
    SpikeGuard copy = guard;
    CHECK(judge_step(copy, 1.0, 0.01).action == SpikeAction::accept);
    copy = guard;
    CHECK(judge_step(copy, 3.0 + 0.299, std::exp(2.399)).action == SpikeAction::accept);
    CHECK(judge_step(copy, 3.0 + 0.301, 1.0).action == SpikeAction::skip);
    CHECK(judge_step(copy, 3.0, std::exp(2.401)).action == SpikeAction::skip);
}

TEST_CASE("a non-finite step is skipped and leaves the guard as it is") {
    Stream stream;
    SpikeGuard guard = warm_guard(100, stream);
    judge_step(guard, 9.0, 1.0);
    const SpikeGuard before = guard;
    for (const double x : {std::numeric_limits<double>::infinity(), std::nan("")}) {
        CHECK(judge_step(guard, x, 1.0).action == SpikeAction::skip);
        CHECK(judge_step(guard, 3.0, x).action == SpikeAction::skip);
    }
    CHECK(guard == before);
}

TEST_CASE("a spike guard survives its checkpoint to the bit, and damage is refused") {
    Stream stream;
    SpikeGuard guard = warm_guard(77, stream);
    judge_step(guard, 9.0, 1.0);
    const std::string text = to_text(guard);
    CHECK(spike_guard_from_text(text) == guard);
    CHECK(spike_guard_from_text(to_text(SpikeGuard{})) == SpikeGuard{});
    for (const std::string& damaged :
         {std::string(), std::string("x"), text.substr(0, text.size() / 2), text + " 0x1p+0",
          std::string("0 -1"), std::string("0 1 nan nan")})
        CHECK_THROWS_AS(spike_guard_from_text(damaged), CheckpointError);
}
