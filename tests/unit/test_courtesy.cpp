// How long a saving thread stands back, and that it stops doing so when it is waited for.
#include <thread>

#include "checkpoints/courtesy.h"
#include "tests/support/catch.h"

using namespace stoa;

namespace {
constexpr std::int64_t kMs = 1'000'000;
}

TEST_CASE("a free core is used, a wanted one is left to others") {
    CHECK(Courtesy::pause_ns(10 * kMs, 0, 0.01) == 0);
    CHECK(Courtesy::pause_ns(10 * kMs, 10 * kMs, 0.01) == 0);  // a neighbour's short visit
    CHECK(Courtesy::pause_ns(5 * kMs, 100 * kMs, 0.01) == 400 * kMs);
    CHECK(Courtesy::pause_ns(5 * kMs, 600 * kMs, 0.01) == 0);  // has waited long enough
    CHECK(Courtesy::pause_ns(50 * kMs, 100 * kMs, 0.01) == 1000 * kMs);
    CHECK(Courtesy::pause_ns(0, 100 * kMs, 0.01) == 0);
}

TEST_CASE("who is waited for does not stand back, or no longer") {
    constexpr std::int64_t kHours = 36'000'000'000'000;  // the test's own time limit would end it
    Courtesy courtesy;
    courtesy.begin();
    courtesy.hurry();
    courtesy.stand_back(kHours);
    courtesy.begin();
    std::thread other([&] { courtesy.hurry(); });
    courtesy.stand_back(kHours);
    other.join();
    SUCCEED();
}
