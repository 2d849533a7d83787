// Going on with a run on another mesh (parallel.determinism): what keeps the bits, what is refused,
// and what goes on with others, through the real binary.
#include <map>

#include "checkpoints/checkpoint.h"
#include "tests/support/catch.h"
#include "tests/support/tiny_project.h"

using namespace stoa;
using namespace stoa::test;

namespace {

const std::string& project() {
    static const TempDir dir;
    static const bool made = [] {
        const Outcome o = make_tiny_project(dir.path, 5);
        INFO(o.output);
        REQUIRE(o.code == 0);
        return true;
    }();
    (void)made;
    return dir.path;
}

Outcome train(const std::string& name, int ranks, const std::string& overrides,
              const std::string& before = "") {
    return run_shell(before + " " +
                     train_command(project(), ranks, "run.name=" + name + " " + overrides));
}

std::map<std::string, std::string> weights(const std::string& name) {
    std::map<std::string, std::string> hashes;
    for (const CheckpointTensor& t :
         read_checkpoint_info(list_checkpoints(project() + "/runs/" + name).back()).tensors)
        hashes[t.name] = t.xxh3;
    return hashes;
}

const char* const kKill = "STOA_FAULT=kill@5:0";

}  // namespace

TEST_CASE("a run that began on two ranks goes on with their order of sums on one", "[fault]") {
    REQUIRE(train("two", 2, "").code == 0);
    REQUIRE(train("two-one", 2, "", kKill).code == 137);
    const Outcome o = train("two-one", 1, "");
    INFO(o.output);
    REQUIRE(o.code == 0);
    CHECK(weights("two-one") == weights("two"));
    // On one rank from the start, the order is another.
    REQUIRE(train("one", 1, "").code == 0);
    CHECK(weights("one") != weights("two"));
}

TEST_CASE("a mesh that cannot keep the order of sums is refused where that was asked for",
          "[fault]") {
    const std::string value = GENERATE("fast", "auto"), name = "one-two-" + value;
    REQUIRE(train(name, 1, "", kKill).code == 137);
    const auto before = weights(name);
    const Outcome o = train(name, 2, "parallel.determinism=elastic");
    INFO(o.output);
    CHECK(o.code == 2);
    CHECK(o.output.find("elastic 1x1 needs a dp that divides 1, got 2") != std::string::npos);
    CHECK(o.output.find("fast") != std::string::npos);
    CHECK(weights(name) == before);  // nothing was lost
    const Outcome other = train(name, 1, "'parallel.determinism=elastic 2x1'");
    INFO(other.output);
    CHECK(other.code == 2);
    CHECK(other.output.find("elastic 1x1 (saved in") != std::string::npos);
    CHECK(other.output.find("elastic 2x1") != std::string::npos);
    const Outcome on = train(name, 2, "parallel.determinism=" + value);
    INFO(on.output);
    CHECK(on.code == 0);
    if (value == "auto")
        CHECK(on.output.find("the run goes on with elastic 2x1") != std::string::npos);
}
