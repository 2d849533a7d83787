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

TEST_CASE("who is waited for does not pause") {
    Courtesy courtesy(1e-9);  // any wait for a core: the longest pause there is
    courtesy.begin();
    courtesy.hurry();
    for (int i = 0; i < 10'000; ++i)  // hours, if it did
        courtesy.pause();
    std::thread other([&] { courtesy.hurry(); });
    courtesy.pause();
    other.join();
    SUCCEED();
}
