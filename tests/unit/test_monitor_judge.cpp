// The verdict over tables of reports: what each kind of hang looks like to the monitor, and what
// is none.
#include <cstring>

#include "kernels/core/error.h"
#include "parallel/monitor.h"
#include "tests/support/catch.h"
#include "trainer/pre_flight.h"

using namespace stoa;

namespace {

constexpr double kNow = 1000.0;

struct Call {
    const char* op = "all_reduce";
    const char* group = "dp";
    int ordinal = 2, first = 0, size = 4;
    std::uint64_t sequence = 481;
    std::int64_t count = 4'200'000;
    const char* dtype = "fp32";
    const char* how = "sum";
    int line = 118;
};

void copy(char* to, const char* from, std::size_t size) { std::strncpy(to, from, size - 1); }

/// `begin`, `end`: seconds before kNow; end < 0: inside.
Stamp stamp(const Call& c, double begin, double end = -1.0) {
    Stamp s;
    s.sequence = c.sequence;
    s.count = c.count;
    s.begin_ns = static_cast<std::int64_t>((kNow - begin) * 1e9);
    s.end_ns = end < 0 ? 0 : static_cast<std::int64_t>((kNow - end) * 1e9);
    s.group_ordinal = c.ordinal;
    s.group_first = c.first;
    s.group_size = c.size;
    s.line = c.line;
    copy(s.op, c.op, sizeof s.op);
    copy(s.how, c.how, sizeof s.how);
    copy(s.group, c.group, sizeof s.group);
    copy(s.dtype, c.dtype, sizeof s.dtype);
    copy(s.file, "trainer/train_step.cpp", sizeof s.file);
    return s;
}

/// Four ranks on two hosts in step 120, all of them at work 0.1 s ago.
std::vector<RankReport> working(int ranks = 4) {
    std::vector<RankReport> all(static_cast<std::size_t>(ranks));
    for (int r = 0; r < ranks; ++r) {
        RankReport& report = all[static_cast<std::size_t>(r)];
        report.rank = r;
        report.known = report.connected = true;
        report.local = r < ranks / 2;
        report.host = r < ranks / 2 ? "node-17" : "node-18";
        report.pid = 4711 + r;
        report.heard_at = kNow - 0.1;
        report.phase = Phase::step;
        report.step = 120;
        report.progress_at = kNow - 0.1;
        report.steps.assign(20, {100, 500'000'000, 400'000'000});
    }
    return all;
}

void wait_in(RankReport& r, const Call& call, double seconds, Lane lane = Lane::main) {
    r.lanes[static_cast<std::size_t>(lane)].push_back(stamp(call, seconds));
    r.progress_at = kNow - seconds;
    if (lane != Lane::main) r.queue_waited_for = static_cast<int>(lane);
    r.groups.push_back({.ordinal = call.ordinal,
                        .first = call.first,
                        .size = call.size,
                        .lane = lane,
                        .sequence = call.sequence});
}

std::optional<Verdict> judged(const std::vector<RankReport>& reports, const Limits& limits = {}) {
    return judge(reports, learned_limits(limits, reports), kNow);
}

bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("ranks at work are no hang, whatever they do", "[unit]") {
    auto r = working();
    CHECK_FALSE(judged(r));
    SECTION("three wait for one that is slow but goes on") {
        for (const std::size_t i : {0u, 1u, 3u})
            wait_in(r[i], {}, 30.0);
        r[2].progress_at = kNow - 9.0;
        CHECK_FALSE(judged(r));
    }
    SECTION("a long save or evaluation within its limit") {
        for (RankReport& x : r) {
            x.phase = Phase::evaluate;
            x.progress_at = kNow - 55.0;
        }
        CHECK_FALSE(judged(r));
        r[1].phase = Phase::save;
        CHECK_FALSE(judged(r));
    }
    SECTION("others wait in the next step for a rank that still saves") {
        for (const std::size_t i : {0u, 1u, 3u})
            wait_in(r[i], {}, 40.0);
        r[2].phase = Phase::save;
        r[2].progress_at = kNow - 41.0;
        CHECK_FALSE(judged(r));
    }
    SECTION("start: not all have reported yet") {
        for (RankReport& x : r) {
            x.phase = Phase::start;
            x.steps.clear();
            x.progress_at = kNow - 50.0;
        }
        r[3].known = r[3].connected = false;
        r[3].heard_at = kNow - 50.0;
        CHECK_FALSE(judged(r));
    }
    SECTION("a first step, of which nobody knows yet how long it takes") {
        for (RankReport& x : r) {
            x.steps.clear();
            x.progress_at = kNow - 50.0;
        }
        CHECK_FALSE(judged(r));
    }
    SECTION("uneven steps: the limit is five times the median that was seen") {
        for (RankReport& x : r)
            x.steps.assign(20, {100, 4'000'000'000, 4'000'000'000});
        r[0].progress_at = kNow - 19.0;
        CHECK_FALSE(judged(r));
        r[0].progress_at = kNow - 21.0;
        CHECK(judged(r));
    }
    SECTION("a rank that has said goodbye") {
        r[1].finished = true;
        r[1].connected = false;
        r[1].heard_at = kNow - 100.0;
        CHECK_FALSE(judged(r));
    }
    SECTION("a heartbeat that is a little late") {
        r[1].heard_at = kNow - 9.0;
        CHECK_FALSE(judged(r));
    }
}

TEST_CASE("an endless loop is named, with what the others wait for", "[unit]") {
    auto r = working();
    for (const std::size_t i : {0u, 1u, 3u})
        wait_in(r[i], {}, 10.1);
    r[2].progress_at = kNow - 10.2;
    r[2].lanes[0].push_back(
        stamp({.op = "all_reduce", .group = "tp", .sequence = 4811}, 10.3, 10.2));
    const auto v = judged(r);
    REQUIRE(v);
    CHECK(v->kind == Verdict::Kind::hang);
    CHECK(v->rank == 2);
    CHECK(v->host == "node-18");
    CHECK(v->text ==
          "rank 2 on node-18 hangs: step 120, phase step, no progress for 10.2 s, last in "
          "all_reduce(tp) #4811 at trainer/train_step.cpp:118; ranks 0,1,3 wait in "
          "all_reduce(dp) #481, 4.2M fp32 sum, trainer/train_step.cpp:118");
}

TEST_CASE("the oldest of several that stand still is the culprit", "[unit]") {
    auto r = working();
    r[1].progress_at = kNow - 12.0;
    r[3].progress_at = kNow - 11.0;
    const auto v = judged(r);
    REQUIRE(v);
    CHECK(v->rank == 1);
}

TEST_CASE("a stopped rank is silent", "[unit]") {
    auto r = working();
    r[1].heard_at = kNow - 10.1;
    r[1].process_state = 'T';
    for (const std::size_t i : {0u, 2u, 3u})
        wait_in(r[i], {}, 10.0);
    const auto v = judged(r);
    REQUIRE(v);
    CHECK(v->kind == Verdict::Kind::silent_rank);
    CHECK(v->rank == 1);
    CHECK(v->stopped == std::vector<int>{1});
    CHECK(has(v->text, "process 4712 is stopped (SIGSTOP)"));
    CHECK(has(v->text, "ranks 0,2,3 wait in all_reduce(dp) #481"));
}

TEST_CASE("stalls are not judged while somebody is silent", "[unit]") {
    auto r = working();
    r[1].heard_at = kNow - 5.0;
    r[1].progress_at = kNow - 11.1;
    for (const std::size_t i : {0u, 2u, 3u})
        wait_in(r[i], {}, 11.0);
    CHECK_FALSE(judged(r));
}

TEST_CASE("a rank without connection has gone, sooner", "[unit]") {
    auto r = working();
    r[2].connected = false;
    r[2].heard_at = kNow - 1.5;
    CHECK_FALSE(judged(r));
    r[2].heard_at = kNow - 2.5;
    const auto v = judged(r);
    REQUIRE(v);
    CHECK(v->rank == 2);
    CHECK(has(v->text, "ended without goodbye"));
}

TEST_CASE("a host whose ranks are all silent is lost, after its own limit", "[unit]") {
    auto r = working();
    r[2].heard_at = kNow - 11.5;
    r[3].heard_at = kNow - 11.9;
    wait_in(r[0], {}, 11.0);
    wait_in(r[1], {}, 11.0);
    CHECK_FALSE(judged(r));  // a network may be away for 10 s
    r[2].heard_at = kNow - 12.1;
    r[3].heard_at = kNow - 12.2;
    const auto v = judged(r);
    REQUIRE(v);
    CHECK(v->kind == Verdict::Kind::lost_host);
    CHECK(v->host == "node-18");
    CHECK(has(v->text, "host node-18 is lost: no heartbeat of ranks 2,3"));
    CHECK(has(v->text, "ranks 0,1 wait in all_reduce(dp) #481"));
    SECTION("5 s where that is set") {
        r[2].heard_at = r[3].heard_at = kNow - 5.1;
        CHECK(judged(r, parse_limits("host=5s"))->kind == Verdict::Kind::lost_host);
    }
}

TEST_CASE("a network that comes back is no fault, though ranks are heard again one by one",
          "[unit]") {
    // After 11 s the first rank of the other host is back, the second is not yet: longer than a
    // silent rank may be, shorter than a silent host may.
    const Limits limits;
    REQUIRE(limits.silent < limits.host);
    auto ranks = working();
    ranks[3].heard_at = ranks[3].progress_at = kNow - (limits.silent + limits.host) / 2;
    CHECK_FALSE(judge(ranks, limits, kNow));
    ranks[3].heard_at = kNow - limits.host - 1.0;
    const auto v = judge(ranks, limits, kNow);
    REQUIRE(v);
    CHECK(v->kind == Verdict::Kind::silent_rank);
    CHECK(v->rank == 3);
    // On the monitor's own host there is no network in between.
    ranks = working();
    ranks[1].heard_at = kNow - limits.silent - 0.5;
    REQUIRE(judge(ranks, limits, kNow));
    CHECK(judge(ranks, limits, kNow)->rank == 1);
}

TEST_CASE("a collective left out by one rank is found by comparing stamps, at once", "[unit]") {
    auto r = working();
    for (const std::size_t i : {0u, 1u, 3u})
        wait_in(r[i], {}, 0.2);
    wait_in(r[2], {.count = 1, .dtype = "fp64", .line = 121}, 0.2);
    const auto v = judged(r);
    REQUIRE(v);
    CHECK(v->kind == Verdict::Kind::mismatched_collective);
    CHECK(v->rank == 2);
    CHECK(has(v->text, "rank 2 on node-18 does not match"));
    CHECK(has(v->text, "is in all_reduce(dp) #481, 1 fp64 sum, trainer/train_step.cpp:121"));
    CHECK(has(v->text, "ranks 0,1,3 are in all_reduce(dp) #481, 4.2M fp32 sum"));
}

TEST_CASE("as many ranks on either side: those still missing decide, or time", "[unit]") {
    for (const double seconds : {0.2, 0.7}) {
        auto r = working();  // ranks 2 and 3 have not said where they are
        wait_in(r[0], {}, seconds);
        wait_in(r[1], {.count = 1}, seconds);
        const auto early = judged(r);
        CHECK((early && early->kind == Verdict::Kind::mismatched_collective) == (seconds > 0.6));
        wait_in(r[2], {}, seconds);
        const auto v = judged(r);
        REQUIRE(v);
        CHECK(v->kind == Verdict::Kind::mismatched_collective);
        CHECK(v->rank == 1);
    }
}

TEST_CASE("another operation, count, type or line at one number does not match", "[unit]") {
    const auto differs = [](const Call& call) {
        auto r = working();
        for (const std::size_t i : {0u, 1u, 2u})
            wait_in(r[i], {}, 0.2);
        wait_in(r[3], call, 0.2);
        const auto v = judged(r);
        return v && v->kind == Verdict::Kind::mismatched_collective && v->rank == 3;
    };
    CHECK(differs({.op = "all_gather"}));
    CHECK(differs({.how = "max"}));
    CHECK(differs({.count = 4'200'001}));
    CHECK(differs({.dtype = "bf16"}));
    CHECK(differs({.line = 119}));
    CHECK_FALSE(differs({}));
    CHECK_FALSE(differs({.sequence = 482}));          // it is a call ahead: nothing to compare
    CHECK_FALSE(differs({.first = 1, .line = 119}));  // another group of the same kind
}

TEST_CASE("one that is done and others inside the same call still match", "[unit]") {
    auto r = working();
    r[0].lanes[0].push_back(stamp({}, 0.3, 0.2));
    r[0].lanes[0].push_back(stamp({.sequence = 482, .count = 7, .line = 130}, 0.1));
    wait_in(r[1], {}, 0.2);
    CHECK_FALSE(judged(r));
}

TEST_CASE("two ranks that differ are both told", "[unit]") {
    auto r = working(2);
    wait_in(r[0], {.size = 2}, 0.2);
    wait_in(r[1], {.size = 2, .count = 9}, 0.2);
    const auto v = judged(r);
    REQUIRE(v);
    CHECK(has(v->text, "either side may be wrong"));
    CHECK(has(v->text, "rank 0"));
    CHECK(has(v->text, "rank 1 is in all_reduce(dp) #481, 9 fp32"));
}

TEST_CASE("collectives of two groups in another order are a deadlock, and proven", "[unit]") {
    auto r = working();
    const Call world{.group = "world", .ordinal = 1, .sequence = 77, .count = 3, .line = 139};
    for (const std::size_t i : {0u, 1u, 3u}) {
        wait_in(r[i], {}, 0.7);
        r[i].groups.push_back({.ordinal = 1, .first = 0, .size = 4, .sequence = 76});
    }
    wait_in(r[2], world, 0.7);
    r[2].groups.push_back({.ordinal = 2, .first = 0, .size = 4, .sequence = 480});
    const auto v = judged(r);
    REQUIRE(v);
    CHECK(v->kind == Verdict::Kind::mismatched_collective);
    CHECK(v->rank == 2);
    CHECK(has(v->text, "another order"));
    SECTION("a rank that is merely behind in both is none") {
        r[2].groups = {{.ordinal = 2, .first = 0, .size = 4, .sequence = 480},
                       {.ordinal = 1, .first = 0, .size = 4, .sequence = 76}};
        r[2].lanes = {};
        r[2].progress_at = kNow - 0.1;
        CHECK_FALSE(judged(r));
    }
}

TEST_CASE("all wait in one collective: the communication hangs", "[unit]") {
    auto r = working();
    for (RankReport& x : r)
        wait_in(x, {}, 10.5);
    const auto v = judged(r);
    REQUIRE(v);
    CHECK(v->kind == Verdict::Kind::communication);
    CHECK(v->rank == -1);
    CHECK(std::string(verdict_cause(v->kind)) == "communication");
    CHECK(has(v->text, "ranks 0-3 wait in all_reduce(dp) #481"));
}

TEST_CASE("one waits elsewhere than all others: it is the one", "[unit]") {
    auto r = working();
    for (const std::size_t i : {0u, 1u, 3u})
        wait_in(r[i], {}, 10.5);
    r[2].lanes[0].push_back(stamp(
        {.group = "tp", .ordinal = 3, .first = 2, .size = 2, .sequence = 9, .line = 60}, 10.5));
    r[2].progress_at = kNow - 10.5;
    const auto v = judged(r);
    REQUIRE(v);
    CHECK(v->rank == 2);
    CHECK(has(v->text, "alone in all_reduce(tp) #9"));
}

TEST_CASE("a rank waits for the queue whose collective others do not reach", "[unit]") {
    auto r = working();
    const Call beside{.op = "reduce_scatter", .group = "dp beside", .ordinal = 4, .sequence = 33};
    for (const std::size_t i : {0u, 1u, 3u})
        wait_in(r[i], beside, 10.5, Lane::dp_queue);
    SECTION("its main thread loops") {
        r[2].progress_at = kNow - 10.6;
        const auto v = judged(r);
        REQUIRE(v);
        CHECK(v->rank == 2);
        CHECK(has(v->text, "ranks 0,1,3 wait in reduce_scatter(dp beside) #33"));
    }
    SECTION("its queue's thread stands still outside any collective") {
        r[2].progress_at = kNow - 10.6;
        r[2].queue_waited_for = 1;
        const auto v = judged(r);
        REQUIRE(v);
        CHECK(v->rank == 2);
        CHECK(has(v->text, "waits for its dp_queue thread"));
    }
    SECTION("a queue's collective alone is no wait of a main thread at work") {
        for (RankReport& x : r) {
            x.queue_waited_for = 0;
            x.progress_at = kNow - 0.1;
        }
        CHECK_FALSE(judged(r));
    }
}

TEST_CASE("a rank that never reports is named after the start limit", "[unit]") {
    auto r = working();
    for (RankReport& x : r)
        x.phase = Phase::start;
    r[3].known = r[3].connected = false;
    r[3].heard_at = kNow - 61.0;
    const auto v = judged(r);
    REQUIRE(v);
    CHECK(v->rank == 3);
    CHECK(has(v->text, "rank 3 did not report"));
}

TEST_CASE("limits are read, with units, and refused by name", "[unit]") {
    const Limits l = parse_limits("step=2s,save=1min,host=500ms,evaluate=7");
    CHECK(l.step == 2.0);
    CHECK(l.first_step == 2.0);  // follow step
    CHECK(l.silent == 2.0);
    CHECK(l.save == 60.0);
    CHECK(l.host == 0.5);
    CHECK(l.evaluate == 7.0);
    CHECK(parse_limits("step=2s,first_step=90s").first_step == 90.0);
    CHECK(parse_limits("").step == Limits{}.step);
    CHECK_THROWS_WITH(parse_limits("stp=2s"), Catch::Contains("'stp=2s'"));
    CHECK_THROWS_AS(parse_limits("step=-1"), ConfigError);
    CHECK_THROWS_AS(parse_limits("step=2h"), ConfigError);
    CHECK_THROWS_AS(parse_limits("step"), ConfigError);
}

TEST_CASE("evaluations and saves teach their limits, too", "[unit]") {
    auto r = working();
    r[0].took_s[static_cast<std::size_t>(Phase::save)] = {30.0, 31.0, 29.0};
    const Limits l = learned_limits({}, r);
    CHECK(l.save == Approx(150.0));
    CHECK(l.evaluate == 60.0);
    CHECK(l.step == 10.0);  // the floor: 5 x 0.5 s is less
}

TEST_CASE("a straggler is slow in its own part of the step, not in waiting", "[unit]") {
    auto r = working();
    CHECK(find_stragglers(r).empty());
    r[2].steps.assign(20, {100, 500'000'000, 650'000'000});
    auto found = find_stragglers(r);
    REQUIRE(found.size() == 1);
    CHECK(found[0].rank == 2);
    CHECK(found[0].ratio == Approx(1.625));
    r[2].steps.resize(5);
    CHECK(find_stragglers(r).empty());  // too few steps to say so
    auto two = working(2);
    two[1].steps.assign(12, {100, 500'000'000, 800'000'000});
    REQUIRE(find_stragglers(two).size() == 1);
    CHECK(find_stragglers(two)[0].rank == 1);
}

TEST_CASE("pre-flight names what is off the median", "[unit]") {
    PreFlightTimes t{{1.0, 1.1, 9.0, 1.0}, {4.0, 4.1, 4.2, 4.0}, {}};
    t.links = {{0, 1, 0.2}, {0, 2, 0.2}, {0, 3, 0.3}, {1, 2, 0.2}, {1, 3, 8.0}, {2, 3, 0.2}};
    const auto found = find_outliers(t, 4.0);
    REQUIRE(found.size() == 2);
    CHECK(found[0].what == "matrix product");
    CHECK(found[0].rank == 2);
    CHECK(found[1].what == "link");
    CHECK(found[1].rank == 1);
    CHECK(found[1].peer == 3);
}

TEST_CASE("lists of ranks are short", "[unit]") {
    CHECK(rank_list({3}) == "rank 3");
    CHECK(rank_list({0, 1, 3}) == "ranks 0,1,3");
    CHECK(rank_list({0, 2, 3, 4, 5, 9}) == "ranks 0,2-5,9");
}
