#include "parallel/machine_parts.h"
#include "parallel/node_map.h"
#include "tests/support/catch.h"

using namespace stoa;
using Ints = std::vector<int>;

TEST_CASE("ranks are numbered machine by machine, in the order of their first ranks") {
    CHECK(numbers_by_machine({0, 0, 1, 1}) == Ints{0, 1, 2, 3});
    CHECK(numbers_by_machine({0, 1, 0, 1}) == Ints{0, 2, 1, 3});  // mpirun --map-by node
    CHECK(numbers_by_machine({0, 1, 2, 0, 1, 0}) == Ints{0, 3, 5, 1, 4, 2});
    CHECK(numbers_by_machine({0}) == Ints{0});
}

TEST_CASE("groups that lie on several machines are counted") {
    CHECK(groups_across_machines({0, 0, 1, 1}, 2) == 0);
    CHECK(groups_across_machines({0, 0, 1, 1}, 4) == 1);
    CHECK(groups_across_machines({0, 0, 0, 1, 1, 1}, 2) == 1);
    CHECK(groups_across_machines({0, 0, 0, 1, 1, 1}, 3) == 0);
    CHECK(groups_across_machines({0, 1, 2, 3}, 1) == 0);
}

TEST_CASE("ranks of each machine count only where all have as many") {
    CHECK(ranks_per_machine({0, 0, 1, 1}) == 2);
    CHECK(ranks_per_machine({4, 4, 4, 7, 7, 7}) == 3);
    CHECK(ranks_per_machine({0, 1, 2}) == 1);
    CHECK(ranks_per_machine({0, 0, 0, 1}) == 0);
    CHECK(ranks_per_machine({0, 0, 1, 1, 1, 1}) == 0);
    CHECK(ranks_per_machine({}) == 0);
}

TEST_CASE("the chain over machines is taken where it carries less") {
    constexpr std::int64_t kMb = 1 << 20;
    CHECK(chain_pays(4, 8, 100 * kMb));
    CHECK(chain_pays(64, 8, 400 * kMb));
    CHECK_FALSE(chain_pays(2, 2, 100 * kMb));  // a half of two ranks' values is as much
    CHECK_FALSE(chain_pays(64, 8, 10 * kMb));  // 64 machines wait in turn for little
    CHECK_FALSE(chain_pays(4, 8, 1 << 14));
}
