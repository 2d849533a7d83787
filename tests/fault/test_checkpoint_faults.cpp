// A save that is killed, runs out of disk or may not write: the checkpoints before it stay whole.
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <thread>

#include "checkpoints/file_io.h"
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

/// One tensor of `bytes`, to fill a disk with.
std::string save_large(const std::string& run, std::int64_t step, std::int64_t bytes) {
    Buffer memory(bytes);
    const TensorShard shard{.name = "large",
                            .global_shape = {bytes / 4},
                            .view = {memory.data(), DType::fp32, {bytes / 4}, {}},
                            .row_count = 1,
                            .col_count = bytes / 4};
    return save_checkpoint(run, make_meta(step), {shard}, Mesh{});
}

/// The step whose bits a start gets back; -1 for wrong bits.
std::int64_t resume(const std::string& run) {
    State back = make_state(0, 1);
    const CheckpointMeta meta = load_checkpoint(find_checkpoint(run, Mesh{}), back.shards, Mesh{});
    return count_wrong(back, static_cast<std::uint64_t>(meta.step)) == 0 ? meta.step : -1;
}

int junk_in(const std::string& run) {
    int count = 0;
    for (const auto& entry : fs::directory_iterator(run + "/ckpt"))
        count += entry.path().filename().string().starts_with(".");
    return count;
}

/// A mount that ends with the scope. `mounted` is false where the system does not allow it.
struct Mount {
    std::string path;
    bool mounted;
    Mount(std::string at, const char* options, unsigned long flags = 0)
        : path(std::move(at)),
          mounted(::mount("tmpfs", path.c_str(), "tmpfs", flags, options) == 0) {
        if (!mounted) WARN("skipped: mounting a tmpfs is not allowed here (needs root)");
    }
    ~Mount() {
        if (mounted) ::umount2(path.c_str(), MNT_DETACH);
    }
    Mount(const Mount&) = delete;
    Mount& operator=(const Mount&) = delete;
};

}  // namespace

TEST_CASE("kill -9 at any moment of a save leaves a whole checkpoint", "[checkpoint]") {
    const TempDir run;
    save(run.path, 1, 1);
    Draws draws(31, 0);
    std::int64_t newest = 1;
    int torn = 0;
    for (int i = 0; i < 60; ++i) {
        const pid_t child = ::fork();
        REQUIRE(child >= 0);
        if (child == 0) {  // saves over and over: new steps, and the same step again
            for (std::int64_t step = newest;; ++step) {
                save(run.path, step, static_cast<std::uint64_t>(step));
                prune_checkpoints(run.path, {2});
            }
        }
        std::this_thread::sleep_for(std::chrono::microseconds(draws.between(500, 20000)));
        ::kill(child, SIGKILL);
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        REQUIRE(WIFSIGNALED(status));  // killed, not ended by an error of its own
        torn += junk_in(run.path) > 0;
        const std::int64_t step = resume(run.path);
        CAPTURE(i, newest);
        CHECK(step >= newest);
        newest = std::max(newest, step);
    }
    INFO("the kills must hit saves in progress, or this test shows nothing");
    CHECK(torn > 0);
    save(run.path, newest + 1, static_cast<std::uint64_t>(newest + 1));
    CHECK(junk_in(run.path) == 0);
    CHECK(resume(run.path) == newest + 1);
}

TEST_CASE("a full disk is one clean error", "[checkpoint]") {
    const TempDir dir;
    const Mount disk(dir.path, "size=2M");
    if (!disk.mounted) return;
    const std::string run = dir.path + "/run";
    save(run, 1, 1);
    SECTION("seen before anything is written") {
        try {
            save_large(run, 2, 3 << 20);
            FAIL("3 MiB went into 2 MiB");
        } catch (const Error& e) {
            CHECK(e.code() == ExitCode::checkpoint);
            CHECK_THAT(e.fields().what, Catch::Contains("free space"));
            CHECK_THAT(e.fields().expected, Catch::Contains("3.6 MiB") || Catch::Contains("KiB"));
            CHECK_FALSE(e.fields().hint.empty());
        }
    }
    SECTION("met by the reservation") {
        CHECK_THROWS_AS(File::create(run + "/big", 3 << 20), CheckpointError);
        fs::remove(run + "/big");
    }
    CHECK(junk_in(run) == 0);
    CHECK(resume(run) == 1);
    save(run, 2, 2);  // and it works again
    CHECK(resume(run) == 2);
}

TEST_CASE("a disk that fills up during a save is one clean error", "[checkpoint]") {
    const TempDir dir;
    const Mount disk(dir.path, "size=4M");
    if (!disk.mounted) return;
    const std::string run = dir.path + "/run";
    save(run, 1, 1);
    // Another process eats and frees the space that the check has just seen.
    const pid_t glutton = ::fork();
    REQUIRE(glutton >= 0);
    if (glutton == 0) {
        Draws draws(5, 0);
        for (;;) {
            try {
                File::create(dir.path + "/eaten", draws.between(1, 4) << 20);
            } catch (const Error&) {
            }
            ::usleep(static_cast<useconds_t>(draws.between(0, 500)));
            ::unlink((dir.path + "/eaten").c_str());
            ::usleep(static_cast<useconds_t>(draws.between(0, 500)));
        }
    }
    int failed = 0, saved = 0, late = 0;
    for (int i = 0; i < 300; ++i) {
        try {
            save_large(run, 100 + i, 1 << 20);
            ++saved;
            delete_checkpoint(committed_dir(run, 100 + i));
        } catch (const Error& e) {
            CHECK(e.code() == ExitCode::checkpoint);
            ++failed;
            late += e.fields().what.find("free space") == std::string::npos;
        }
        CHECK(junk_in(run) == 0);
    }
    ::kill(glutton, SIGKILL);
    ::waitpid(glutton, nullptr, 0);
    ::unlink((dir.path + "/eaten").c_str());
    UNSCOPED_INFO(failed << " failed (" << late << " after the space check), " << saved
                         << " saved");
    CHECK(failed > 0);
    CHECK(resume(run) == 1);
    save(run, 2, 2);
    CHECK(resume(run) == 2);
}

TEST_CASE("a directory that may not be written is one clean error", "[checkpoint]") {
    const TempDir dir;
    SECTION("a file in the way") {
        spill(dir.path + "/run", "a file");
        try {
            save(dir.path + "/run", 1, 1);
            FAIL("saved below a file");
        } catch (const Error& e) {
            CHECK(e.code() == ExitCode::checkpoint);
            CHECK_THAT(e.fields().where, Catch::Contains("run/ckpt"));
        }
    }
    SECTION("a read-only file system") {
        const Mount disk(dir.path, "size=2M");
        if (!disk.mounted) return;
        save(dir.path, 1, 1);
        REQUIRE(::mount("tmpfs", dir.path.c_str(), "tmpfs", MS_REMOUNT | MS_RDONLY, "size=2M") ==
                0);
        try {
            save(dir.path, 2, 2);
            FAIL("saved on a read-only file system");
        } catch (const Error& e) {
            CHECK(e.code() == ExitCode::checkpoint);
            CHECK_THAT(e.fields().actual, Catch::Contains("Read-only"));
        }
        CHECK(resume(dir.path) == 1);  // loading needs no write
    }
}
