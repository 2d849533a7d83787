// Saves beside the training in a group of one, and the rules of a run directory: generations, ids,
// names of what is refused, milestones.
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>

#include "checkpoints/compare.h"
#include "checkpoints/file_io.h"
#include "checkpoints/manifest.h"
#include "checkpoints/rank_file.h"
#include "checkpoints/run_identity.h"
#include "checkpoints/saver.h"
#include "tests/support/catch.h"
#include "tests/support/checkpoints.h"

using namespace stoa;
using namespace stoa::test;

namespace {

CheckpointMeta meta_of(std::int64_t step, const std::string& run_id = "") {
    CheckpointMeta meta = make_meta(step);
    meta.run_id = run_id;
    return meta;
}
std::string save(const std::string& run, std::int64_t step, std::uint64_t seed,
                 const SaveOptions& options = {}, const std::string& run_id = "") {
    State state = make_state(0, 1);
    fill(state, seed);
    return save_checkpoint(run, meta_of(step, run_id), state.shards, Mesh{}, options);
}
std::vector<std::string> names_in(const std::string& dir) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir))
        names.push_back(entry.path().filename().string());
    std::ranges::sort(names);
    return names;
}
template <class Fn>
Error error_of(Fn&& fn) {
    try {
        fn();
    } catch (const Error& e) {
        return e;
    }
    FAIL("no error was thrown");
    return Error(ExitCode::ok, {});
}

}  // namespace

TEST_CASE("a save holds the bits of its step, whatever training does meanwhile", "[checkpoint]") {
    const TempDir run;
    State state = make_state(0, 1);
    fill(state, 5);
    Buffer memory(snapshot_bytes(state.shards, 0, 0));
    const TensorView snapshot{memory.data(), DType::int32, {memory.bytes() / 4}, {}};
    std::vector<std::string> phases;
    CheckpointSaver saver(run.path, {.read_back = true, .entered = [&](const char* phase) {
                                         phases.emplace_back(phase);
                                     }});
    CHECK_FALSE(saver.saving());
    CHECK_FALSE(saver.advance({0, 0}, Mesh{}));
    saver.start(meta_of(5), state.shards, snapshot, Mesh{});
    fill(state, 6);  // the next step
    CHECK(saver.saving());
    CHECK_FALSE(saver.advance({1, 0}, Mesh{}));  // another rank is busy
    const SaveReport r = saver.finish(Mesh{});
    CHECK_FALSE(saver.saving());
    CHECK_FALSE(r.failure);
    CHECK(r.step == 5);
    CHECK(r.dir == run.path + "/ckpt/step-000000005");
    CHECK(phases == std::vector<std::string>{"snapshot", "prepare", "write", "gather", "manifest",
                                             "rename", "prune", "idle"});
    State back = make_state(0, 1);
    load_checkpoint(r.dir, back.shards, Mesh{});
    CHECK(count_wrong(back, 5) == 0);
}

TEST_CASE("a snapshot is exactly its plan", "[checkpoint]") {
    State state = make_state(0, 1);
    Buffer small(snapshot_bytes(state.shards, 0, 0) - 64);
    CHECK_THROWS_AS(
        take_snapshot(state.shards, {small.data(), DType::int32, {small.bytes() / 4}, {}}), Error);
    CHECK(snapshot_bytes(state.shards, 0, 1) == 0);  // dp rank 0 writes what all dp ranks hold
}

TEST_CASE("a failed save leaves nothing, and the next one works", "[checkpoint]") {
    const TempDir run;
    save(run.path, 1, 1);
    CheckpointSaver saver(run.path, {});
    State state = make_state(0, 1);
    fill(state, 2);
    std::vector<TensorShard> gap = state.shards;
    gap[0].row_count -= 1;
    saver.start(meta_of(2), gap, {}, Mesh{});
    const SaveReport r = saver.finish(Mesh{});
    REQUIRE(r.failure);
    CHECK(r.dir.empty());
    CHECK(r.failure->code() == ExitCode::checkpoint);
    saver.start(meta_of(2), state.shards, {}, Mesh{});
    CHECK_FALSE(saver.finish(Mesh{}).failure);
    CHECK(names_in(run.path + "/ckpt") ==
          std::vector<std::string>{"step-000000001", "step-000000002"});
}

TEST_CASE("an older generation commits nothing", "[checkpoint]") {
    const TempDir run;
    write_generation(run.path, 3);
    save(run.path, 1, 1, {.generation = 3});
    const Error e = error_of([&] { save(run.path, 2, 2, {.generation = 2}); });
    CHECK(e.code() == ExitCode::fenced);
    CHECK_THAT(e.fields().where, Catch::EndsWith("/generation"));
    // one that had begun before the newer one started
    CheckpointSaver late(run.path, {.generation = 3, .entered = [&](const char* phase) {
                                        if (std::string(phase) == "rename")
                                            write_generation(run.path, 4);
                                    }});
    State state = make_state(0, 1);
    late.start(meta_of(2), state.shards, {}, Mesh{});
    const SaveReport r = late.finish(Mesh{});
    REQUIRE(r.failure);
    CHECK(r.failure->code() == ExitCode::fenced);
    CHECK(list_checkpoints(run.path).size() == 1);
}

TEST_CASE("a start sweeps what older generations were writing, and nothing of newer ones",
          "[checkpoint]") {
    const TempDir run;
    save(run.path, 1, 1);
    for (const std::int64_t g : {2, 3, 4})
        fs::create_directories(temporary_dir(run.path, 7, g) + "/inside");
    fs::create_directories(run.path + "/ckpt/.step-000000007.tmp");  // of an early version
    fs::create_directories(run.path + "/ckpt/.step-000000008.g1.tmp.del");
    clean_run_directory(run.path, 3);
    CHECK(names_in(run.path + "/ckpt") ==
          std::vector<std::string>{".step-000000007.g4.tmp", "step-000000001"});
}

TEST_CASE("a run without supervisor is a generation of its own", "[checkpoint]") {
    const TempDir run;
    ::unsetenv("STOA_GENERATION");
    const RunIdentity first = claim_run(run.path, Communicator{});
    CHECK(first.generation == 0);
    CHECK(first.run_id.size() == 32);
    const RunIdentity second = claim_run(run.path, Communicator{});
    CHECK(second.generation == 1);
    CHECK(second.run_id == first.run_id);
    ::setenv("STOA_GENERATION", "0", 1);
    CHECK(error_of([&] { claim_run(run.path, Communicator{}); }).code() == ExitCode::fenced);
    ::setenv("STOA_GENERATION", "x", 1);
    CHECK(error_of([&] { claim_run(run.path, Communicator{}); }).code() == ExitCode::config);
    ::setenv("STOA_GENERATION", "1", 1);
    CHECK(claim_run(run.path, Communicator{}).generation == 1);
    ::unsetenv("STOA_GENERATION");
    spill(run.path + "/generation", "many\n");
    CHECK(error_of([&] { claim_run(run.path, Communicator{}); }).code() == ExitCode::checkpoint);
}

TEST_CASE("a checkpoint of another run is refused, and taken on purpose", "[checkpoint]") {
    const TempDir a, b;
    const std::string id_a = claim_run(a.path, {}).run_id, id_b = claim_run(b.path, {}).run_id;
    REQUIRE(id_a != id_b);
    const std::string foreign = save(a.path, 9, 9, {}, id_a);
    fs::create_directories(b.path + "/ckpt");
    fs::copy(foreign, committed_dir(b.path, 9), fs::copy_options::recursive);
    SECTION("nothing else is there: an error that names both runs and the way out") {
        const Error e = error_of([&] { find_newest(b.path, Mesh{}, id_b); });
        CHECK(e.code() == ExitCode::checkpoint);
        CHECK_THAT(e.fields().actual, Catch::Contains(id_a) && Catch::Contains(id_b));
        CHECK_THAT(e.fields().hint, Catch::Contains("stoa ckpt adopt"));
        CHECK(list_checkpoints(b.path).size() == 1);
    }
    SECTION("an older one of its own is taken, the other steps aside") {
        save(b.path, 4, 4, {}, id_b);
        const FoundCheckpoint found = find_newest(b.path, Mesh{}, id_b);
        CHECK(found.dir == committed_dir(b.path, 4));
        REQUIRE(found.refused.size() == 1);
        CHECK(found.refused[0].why == RefusedCheckpoint::Why::foreign);
        CHECK(set_aside(found.refused) ==
              std::vector<std::string>{committed_dir(b.path, 9) + ".foreign"});
        save(b.path, 9, 1, {}, id_b);
        CHECK(find_newest(b.path, Mesh{}, id_b).dir == committed_dir(b.path, 9));
    }
    SECTION("adopted") {
        fs::remove_all(b.path + "/ckpt");
        const std::string dir = adopt_checkpoint(foreign, b.path);
        CHECK(find_newest(b.path, Mesh{}, id_b).dir == dir);
        State back = make_state(0, 1);
        const CheckpointMeta meta = load_checkpoint(dir, back.shards, Mesh{});
        CHECK(count_wrong(back, 9) == 0);
        CHECK_THAT(meta.counters.at("adopted_from"), Catch::Contains(id_a));
        CHECK_THROWS_AS(adopt_checkpoint(foreign, b.path), CheckpointError);  // there already
    }
    SECTION("ckpt/ copied into a run that has not begun") {
        const TempDir c;
        fs::copy(a.path + "/ckpt", c.path + "/ckpt", fs::copy_options::recursive);
        CHECK(claim_run(c.path, {}).run_id == id_a);
    }
}

TEST_CASE("a damaged checkpoint becomes .bad, is listed, never loaded, in nobody's way",
          "[checkpoint]") {
    const TempDir run;
    const std::string older = save(run.path, 1, 1);
    for (const char* expected : {"step-000000002.bad", "step-000000002.bad-2"}) {
        const std::string newer = save(run.path, 2, 2);
        spill(newer + "/rank-0000.h5", "torn");
        const FoundCheckpoint found = find_newest(run.path, Mesh{});
        CHECK(found.dir == older);
        REQUIRE(found.refused.size() == 1);
        CHECK_THAT(found.refused[0].reason, Catch::Contains("rank-0000.h5"));
        CHECK(set_aside(found.refused) == std::vector<std::string>{run.path + "/ckpt/" + expected});
    }
    CHECK(list_checkpoints(run.path) == std::vector<std::string>{older});
    CHECK(list_refused(run.path).size() == 2);
    save(run.path, 2, 2);
    CHECK(find_checkpoint(run.path, Mesh{}) == committed_dir(run.path, 2));
    // one that cannot be read need not be damaged
    CHECK(set_aside({{RefusedCheckpoint::Why::unreadable, older, ""}}) ==
          std::vector<std::string>{""});
    // a directory under another step's name
    fs::rename(committed_dir(run.path, 2), committed_dir(run.path, 3));
    CHECK(find_newest(run.path, Mesh{}).dir == older);
}

TEST_CASE("milestones stay, and the newest good one", "[checkpoint]") {
    const TempDir run;
    for (int step = 1; step <= 7; ++step)
        save(run.path, step, 1, {.keep = {2, 3}, .read_back = step % 2 == 0});
    CHECK(names_in(run.path + "/ckpt") ==
          std::vector<std::string>{"step-000000003", "step-000000006", "step-000000007"});
    spill(committed_dir(run.path, 7) + "/state.h5", "x");
    CHECK(prunable(run.path, {1, 0}) == std::vector<std::string>{committed_dir(run.path, 3)});
}

TEST_CASE("whatever stands in the place of a file is an error, not a crash or a wait",
          "[checkpoint]") {
    const TempDir run;
    const std::string older = save(run.path, 1, 1), dir = save(run.path, 2, 2);
    for (const char* name : {"rank-0000.h5", "state.h5", "manifest.json"}) {
        const std::string path = dir + "/" + name, whole = slurp(path);
        const auto refused = [&] {
            const FoundCheckpoint found = find_newest(run.path, Mesh{});
            return found.dir == older && found.refused.size() == 1 &&
                   found.refused[0].why == RefusedCheckpoint::Why::damaged;
        };
        CAPTURE(path);
        fs::remove(path);
        REQUIRE(::mkfifo(path.c_str(), 0644) == 0);
        CHECK(refused());
        fs::remove(path);
        fs::create_symlink("nowhere", path);
        CHECK(refused());
        fs::remove(path);
        fs::create_symlink(name, path);  // to itself
        CHECK(refused());
        fs::remove(path);
        fs::create_directory(path);
        CHECK(refused());
        fs::remove(path);
        spill(path, "");
        fs::resize_file(path, std::uintmax_t{1} << 40);  // sparse
        CHECK(refused());
        fs::remove(path);
        spill(run.path + "/moved", whole);
        fs::create_symlink(run.path + "/moved", path);  // moved to another disk, by a user
        CHECK(find_checkpoint(run.path, Mesh{}) == dir);
        fs::remove(path);
        spill(path, whole);
    }
    fs::remove_all(dir);
    spill(dir, "a file");
    CHECK(find_checkpoint(run.path, Mesh{}) == older);
    save(run.path, 2, 2);
    CHECK(find_checkpoint(run.path, Mesh{}) == dir);
}

TEST_CASE("a manifest that lies with a right hash is refused", "[checkpoint]") {
    const TempDir run;
    const std::string dir = save(run.path, 2, 2);
    const Manifest good = read_manifest(dir);
    const auto refused = [&](auto&& change) {
        Manifest m = good;
        change(m);
        CHECK_THROWS_AS(parse_manifest(format_manifest(m), "m"), CheckpointError);
    };
    constexpr std::int64_t kHuge = INT64_MAX;
    refused([](Manifest& m) { m.tensors[0].global_shape.dims[0] = kHuge; });
    refused([](Manifest& m) { m.tensors[0].global_shape.dims[0] = -1; });
    refused([](Manifest& m) { m.tensors[0].shards[0].offset = kHuge; });
    refused([](Manifest& m) { m.tensors[0].shards[0].offset = m.files[0].bytes; });
    refused([](Manifest& m) { m.tensors[0].shards[0].row_begin = kHuge; });
    refused([](Manifest& m) { m.tensors[0].shards[0].row_count = kHuge; });
    refused([](Manifest& m) { m.tensors[0].shards[0].file = "../../rank-0000.h5"; });
    refused([](Manifest& m) { m.tensors[0].shards[0].file = "absent.h5"; });
    refused([](Manifest& m) { m.files[0].name = "/etc/passwd"; });
    refused([](Manifest& m) { m.files[0].bytes = kHuge; });
    refused([](Manifest& m) { m.meta.step = -1; });
}

TEST_CASE("diff and average know each cell", "[checkpoint]") {
    const TempDir run, out;
    std::vector<float> w{1.f, 2.f, 3.f, 4.f}, m{10.f, 20.f, 30.f, 40.f};
    const auto shard = [](const char* name, std::vector<float>& v) {
        return TensorShard{
            .name = name,
            .global_shape = {2, 2},
            .view = {reinterpret_cast<std::byte*>(v.data()), DType::fp32, {2, 2}, {}},
            .row_count = 2,
            .col_count = 2};
    };
    const auto put = [&](std::int64_t step) {
        return save_checkpoint(run.path, make_meta(step),
                               {shard("w", w), shard("optimizer.m/w", m)}, Mesh{});
    };
    const std::string a = put(1);
    w = {1.f, 2.5f, 3.f, -4.f};
    m = {11.f, 20.f, 30.f, 40.f};
    const std::string b = put(2);
    const auto d = diff_checkpoints(a, b);
    REQUIRE(d.size() == 2);
    CHECK((d[0].name == "w" && d[0].different == 2 && d[0].max_abs == 8.0 && !d[0].same()));
    CHECK((d[1].different == 1 && d[1].max_abs == 1.0));
    CHECK(diff_checkpoints(a, a)[0].same());
    const std::string mean = average_checkpoints({a, b}, out.path + "/mean");
    load_checkpoint(mean, {shard("w", w), shard("optimizer.m/w", m)}, Mesh{});
    CHECK(w == std::vector<float>{1.f, 2.25f, 3.f, 0.f});
    CHECK(m == std::vector<float>{11.f, 20.f, 30.f, 40.f});  // of the last
    CHECK(read_checkpoint_info(mean).meta.step == 2);
    CHECK_THROWS_AS(average_checkpoints({a, b}, out.path + "/mean"), CheckpointError);
    CHECK_THROWS_AS(average_checkpoints({a}, out.path + "/other"), CheckpointError);
}

TEST_CASE("h5dump reads what was saved", "[checkpoint]") {
    if (run_shell("h5dump --version").code != 0) {
        WARN("skipped: no h5dump here");
        return;
    }
    const TempDir run;
    std::vector<float> w{1.5f, -2.f, 3.f};
    const TensorShard shard{.name = "model.w",
                            .global_shape = {3},
                            .view = {reinterpret_cast<std::byte*>(w.data()), DType::fp32, {3}, {}},
                            .row_count = 1,
                            .col_count = 3};
    const std::string dir = save_checkpoint(run.path, make_meta(1), {shard}, Mesh{});
    for (const char* file : {"state.h5", "rank-0000.h5"}) {
        const Outcome o = run_shell("cd / && h5dump -d /tensors/model.w " + dir + "/" + file);
        INFO(o.output);
        CHECK(o.code == 0);
        CHECK(o.output.find("(0): 1.5, -2, 3") != std::string::npos);
        CHECK(o.output.find("\"fp32\"") != std::string::npos);
    }
}
