#include "kernels/core/error.h"
#include "tests/support/catch.h"
#include "trainer/loss_scale.h"

using namespace stoa;

TEST_CASE("the loss scale doubles after 1,000 clean steps, up to 2^24") {
    LossScale s = initial_loss_scale(true);
    for (int i = 0; i < 999; ++i)
        update(s, false);
    CHECK(s.value == 65536.0);
    update(s, false);
    CHECK(s.value == 131072.0);
    for (int i = 0; i < 20000; ++i)
        update(s, false);
    CHECK(s.value == 16777216.0);
}

TEST_CASE("the second overflow halves the loss scale, the next ones at once, down to 1") {
    LossScale s = initial_loss_scale(true);
    update(s, true);
    CHECK(s.value == 65536.0);
    update(s, true);
    CHECK(s.value == 32768.0);
    update(s, false);
    update(s, true);
    CHECK(s.value == 16384.0);
    for (int i = 0; i < 1000; ++i)
        update(s, false);  // growth refills the patience
    CHECK(s.value == 32768.0);
    update(s, true);
    CHECK(s.value == 32768.0);
    for (int i = 0; i < 40; ++i)
        update(s, true);
    CHECK(s.value == 1.0);
}

TEST_CASE("without fp16 the loss scale is 1 and stays") {
    LossScale s = initial_loss_scale(false);
    for (int i = 0; i < 3000; ++i)
        update(s, i % 5 == 0);
    CHECK(s.value == 1.0);
}

TEST_CASE("a loss scale survives its checkpoint, and damage is refused") {
    LossScale s = initial_loss_scale(true);
    for (int i = 0; i < 7; ++i)
        update(s, i % 2 == 0);
    CHECK(loss_scale_from_text(to_text(s)) == s);
    for (const char* damaged : {"", "16 x", "16 3"})
        CHECK_THROWS_AS(loss_scale_from_text(damaged), CheckpointError);
}
