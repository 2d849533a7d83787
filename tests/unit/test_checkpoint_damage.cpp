// Damaged checkpoints: never a wrong load, never a crash, always the next older whole one.
#include <filesystem>

#include "checkpoints/run_directory.h"
#include "kernels/core/philox.h"
#include "tests/support/catch.h"
#include "tests/support/checkpoints.h"

using namespace stoa;
using namespace stoa::test;
namespace fs = std::filesystem;

namespace {

std::string save(const std::string& run, std::int64_t step, std::uint64_t seed) {
    State state = make_state(0, 1);
    fill(state, seed);
    return save_checkpoint(run, make_meta(step), state.shards, Mesh{});
}

/// The checkpoint that a start finds, loaded: the step whose bits came back, or -1 for any others.
std::int64_t resume(const std::string& run) {
    const std::string dir = find_checkpoint(run, Mesh{});
    State back = make_state(0, 1);
    const CheckpointMeta meta = load_checkpoint(dir, back.shards, Mesh{});
    return count_wrong(back, static_cast<std::uint64_t>(meta.step)) == 0 ? meta.step : -1;
}

/// Loading without looking first may meet damage that no tensor touches; it may not return other
/// bits.
bool loads_wrong(const std::string& dir, std::uint64_t seed) {
    State back = make_state(0, 1);
    try {
        load_checkpoint(dir, back.shards, Mesh{});
    } catch (const Error& e) {
        CHECK(e.code() == ExitCode::checkpoint);
        return false;
    }
    return count_wrong(back, seed) != 0;
}

const char* const kFiles[] = {"rank-0000.h5", "state.h5", "manifest.json"};

}  // namespace

TEST_CASE("flips and truncations anywhere fall back to the older one", "[checkpoint]") {
    const TempDir run;
    save(run.path, 1, 1);
    const std::string dir = save(run.path, 2, 2);
    REQUIRE(resume(run.path) == 2);
    Draws draws(20, 0);
    for (int i = 0; i < 300; ++i) {
        const std::string path = dir + "/" + kFiles[i % 3], whole = slurp(path);
        std::string bytes = whole;
        const std::size_t at = draws.below(static_cast<std::uint32_t>(bytes.size()));
        const int kind = static_cast<int>(draws.below(4));
        if (kind == 0) bytes.resize(at);  // torn
        if (kind == 1) bytes += "x";      // junk behind it
        if (kind >= 2) bytes[at] = static_cast<char>(bytes[at] ^ (1 << draws.below(8)));  // flipped
        spill(path, bytes);
        CAPTURE(i, path, kind, at);
        CHECK_FALSE(loads_wrong(dir, 2));
        CHECK_THROWS_AS(verify_checkpoint(dir), CheckpointError);
        CHECK(resume(run.path) == 1);
        spill(path, whole);
    }
    CHECK(resume(run.path) == 2);
}

TEST_CASE("a stretch of zeros and a missing file are found", "[checkpoint]") {
    const TempDir run;
    save(run.path, 1, 1);
    const std::string dir = save(run.path, 2, 2);
    for (const char* name : kFiles) {
        const std::string path = dir + "/" + name, whole = slurp(path);
        CAPTURE(path);
        std::string zeroed = whole;
        zeroed.replace(0, zeroed.size() / 2, zeroed.size() / 2, '\0');
        spill(path, zeroed);
        CHECK(resume(run.path) == 1);
        fs::remove(path);
        CHECK(resume(run.path) == 1);
        try {
            verify_checkpoint(dir);
            FAIL("a missing file verified");
        } catch (const CheckpointError& e) {
            CHECK_THAT(e.fields().where, Catch::Contains(name));
        }
        fs::create_directory(path);  // something else of that name
        CHECK(resume(run.path) == 1);
        fs::remove(path);
        spill(path, whole);
        CHECK(resume(run.path) == 2);
    }
}

TEST_CASE("files of two checkpoints do not mix", "[checkpoint]") {
    const TempDir run;
    const std::string older = save(run.path, 1, 1), newer = save(run.path, 2, 2);
    for (const char* name : {"rank-0000.h5", "manifest.json"}) {
        const std::string mine = slurp(newer + "/" + name);
        spill(newer + "/" + name, slurp(older + "/" + name));
        CAPTURE(name);
        State back = make_state(0, 1);
        CHECK_THROWS_AS(load_checkpoint(newer, back.shards, Mesh{}), Error);
        CHECK(resume(run.path) == 1);
        spill(newer + "/" + name, mine);
    }
    SECTION("foreign files are refused by name") {
        spill(newer + "/state.h5", "\x89HDF\r\n\x1a\n of somebody else");
        try {
            verify_checkpoint(newer);
            FAIL("a foreign file verified");
        } catch (const CheckpointError& e) {
            CHECK_THAT(e.fields().where, Catch::EndsWith("state.h5"));
        }
        spill(newer + "/manifest.json", R"({"weights": [1, 2, 3]})");
        CHECK_THROWS_AS(read_checkpoint_info(newer), CheckpointError);
    }
}

TEST_CASE("when nothing verifies the run says so", "[checkpoint]") {
    const TempDir run;
    for (const int step : {1, 2})
        fs::remove(save(run.path, step, 1) + "/state.h5");
    try {
        find_checkpoint(run.path, Mesh{});
        FAIL("a damaged checkpoint was taken");
    } catch (const Error& e) {
        CHECK(e.code() == ExitCode::checkpoint);
        CHECK_THAT(e.fields().what, Catch::Contains("none of 2"));
        CHECK_THAT(e.fields().actual, Catch::Contains("state.h5"));
        CHECK_THAT(e.fields().hint, Catch::Contains("run.name"));
    }
    CHECK(list_checkpoints(run.path).size() == 2);  // kept for whoever wants to look
}
