// Hostfiles, node lists, who goes where, and what hosts say before a start.
#include "configs/load_run_config.h"
#include "launcher/host_check.h"
#include "launcher/topology.h"
#include "tests/support/catch.h"

using namespace stoa;

namespace {

std::string refusal(const std::string& hostfile) {
    try {
        parse_hostfile(hostfile, "hosts");
        return "";
    } catch (const ConfigError& e) {
        return e.what();
    }
}

RunConfig config_of(std::int64_t tp, std::int64_t global_batch, std::int64_t dp_shards = 0) {
    RunConfig c;
    c.parallel.tp = tp;
    c.batch = {.global_batch = global_batch, .micro_batch = 1};
    if (dp_shards > 0) {
        c.parallel.determinism = Determinism::elastic;
        c.parallel.dp_shards = dp_shards;
        c.parallel.tp_chunks = tp;
    }
    return c;
}

HostReport report(const std::string& host) {
    return {.asked = host,
            .host = host,
            .version = "1",
            .program_hash = "p",
            .config_hash = "c",
            .sees_run_dir = true,
            .free_bytes = std::int64_t{1} << 40,
            .reached = true};
}

std::string judged(std::vector<HostReport> hosts) {
    try {
        const auto warnings = judge_hosts(hosts, "/runs/x");
        return warnings.empty() ? "" : "warning: " + warnings.front();
    } catch (const Error& e) {
        return std::to_string(static_cast<int>(e.code())) + " " + e.what();
    }
}

bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("hostfiles") {
    const auto hosts = parse_hostfile(
        "# two hosts\nnode01 slots=4 max_slots=8\n\n  node02   slots=2 # small\nnode03\nnode01 "
        "slots=1\n",
        "hosts");
    REQUIRE(hosts.size() == 3);
    CHECK(hosts[0].name == "node01");
    CHECK(hosts[0].slots == 5);
    CHECK(hosts[1].slots == 2);
    CHECK(hosts[2].slots == 1);
    CHECK(has(refusal(""), "names no host"));
    CHECK(has(refusal("# nothing\n"), "names no host"));
    CHECK(has(refusal("a slots=2\nb slots=none\n"), "hosts:2"));
    CHECK(has(refusal("a slots=0\n"), "slots=0"));
    CHECK(has(refusal("a 4\n"), "NAME [slots=N]"));
    CHECK(has(refusal("slots=4\n"), "without a host's name"));
    CHECK_THROWS_AS(read_hostfile("/no/such/file"), ConfigError);
}

TEST_CASE("SLURM's lists") {
    using Names = std::vector<std::string>;
    CHECK(expand_nodelist("n1") == Names{"n1"});
    CHECK(expand_nodelist("n[1-3]") == Names{"n1", "n2", "n3"});
    CHECK(expand_nodelist("n[08-10,12],login,gpu-[1]x") ==
          Names{"n08", "n09", "n10", "n12", "login", "gpu-1x"});
    CHECK(expand_nodelist("").empty());
    CHECK_THROWS_AS(expand_nodelist("n[3-1]"), ConfigError);
    CHECK_THROWS_AS(expand_nodelist("n[1"), ConfigError);
    CHECK_THROWS_AS(expand_nodelist("n[a-b]"), ConfigError);
    CHECK(expand_tasks_per_node("2(x3),1") == std::vector<int>{2, 2, 2, 1});
    CHECK(expand_tasks_per_node("4") == std::vector<int>{4});
    CHECK_THROWS_AS(expand_tasks_per_node("2(x"), ConfigError);
    CHECK_THROWS_AS(expand_tasks_per_node("two"), ConfigError);
}

TEST_CASE("a tp group stays on one host") {
    const std::vector<Host> hosts = {{"a", 3}, {"b", 4}, {"c", 1}};
    CHECK(capacity(hosts, 1, false) == 8);
    CHECK(capacity(hosts, 2, false) == 6);
    CHECK(capacity(hosts, 2, true) == 8);
    const auto placed = place_ranks(hosts, 6, 2, false);
    REQUIRE(placed.size() == 2);
    CHECK(placed[0].slots == 2);
    CHECK(placed[1].slots == 4);
    CHECK(place_ranks(hosts, 2, 1, false).size() == 1);  // the others are spares
    CHECK(place_ranks(hosts, 8, 2, true).size() == 3);
    CHECK_THROWS_AS(place_ranks(hosts, 8, 2, false), ConfigError);
    CHECK_THROWS_AS(place_ranks(hosts, 9, 1, false), ConfigError);
}

TEST_CASE("fewer ranks: tp kept, and a dp that the batch divides") {
    CHECK(choose_world(config_of(1, 8), 4, 1) == 4);
    CHECK(choose_world(config_of(1, 8), 3, 1) == 2);
    CHECK(choose_world(config_of(2, 8), 7, 2) == 4);  // dp 3 does not divide 8
    CHECK(choose_world(config_of(2, 8), 3, 4) == 0);
    CHECK(choose_world(config_of(1, 9), 8, 1) == 3);
    CHECK(choose_world(config_of(1, 12, 4), 3, 1) == 2);  // elastic 4: dp 3 would change the bits
    CHECK(choose_world(config_of(1, 8), 0, 1) == 0);
}

TEST_CASE("hosts are judged before anything starts") {
    CHECK(judged({report("a"), report("b")}).empty());
    HostReport b = report("b");
    SECTION("not reached") {
        b.reached = false;
        b.why_not = "ssh: could not resolve hostname b";
        CHECK(has(judged({report("a"), b}), "5 b: a host does not answer"));
        CHECK(has(judged({report("a"), b}), "could not resolve"));
    }
    SECTION("another version, another build") {
        b.version = "2";
        CHECK(has(judged({report("a"), b}), "2 b: hosts run different versions"));
        b.version = "1";
        b.program_hash = "q";
        CHECK(has(judged({report("a"), b}), "2 b: hosts run different builds"));
    }
    SECTION("another configuration, none") {
        b.config_hash = "d";
        CHECK(has(judged({report("a"), b}), "2 b: hosts read different configurations"));
        b.config_hash = "c";
        b.error = "x.yaml: there is no such file\n  hint: y";
        CHECK(has(judged({report("a"), b}), "cannot load the configuration"));
    }
    SECTION("a run directory of its own") {
        b.sees_run_dir = false;
        CHECK(has(judged({report("a"), b}), "2 b:/runs/x: the run directory is not shared"));
    }
    SECTION("clock and disk are warnings") {
        b.clock_offset_s = -7.5;
        CHECK(has(judged({report("a"), b}), "warning: the clock of b is 7.5 s behind"));
        b.clock_offset_s = 0.0;
        b.free_bytes = 5 << 20;
        CHECK(has(judged({report("a"), b}), "5 MiB of free disk"));
    }
}

TEST_CASE("a host's line is found among what login scripts print") {
    const std::string line = host_report_line("/no/such/dir", "1", {"/no/such/file.yaml"});
    const HostReport r = parse_host_report("a", "welcome to a\n" + line + "\nbye\n");
    CHECK(r.reached);
    CHECK_FALSE(r.sees_run_dir);
    CHECK(has(r.error, "/no/such/file.yaml"));
    CHECK(r.version == STOA_VERSION);
    CHECK_FALSE(parse_host_report("a", "nothing of the kind").reached);
    CHECK_FALSE(parse_host_report("a", "stoa-host {torn").reached);
}
