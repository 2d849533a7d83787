// Checkpoints of a group of one, without MPI: what is written is what comes back.
#include <hdf5.h>

#include "checkpoints/file_io.h"
#include "checkpoints/manifest.h"
#include "checkpoints/run_directory.h"
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

/// The fields of the Error that `fn` throws; fails when it throws none.
template <class Fn>
ErrorFields error_of(Fn&& fn) {
    try {
        fn();
    } catch (const Error& e) {
        CHECK(e.code() == ExitCode::checkpoint);
        return e.fields();
    }
    FAIL("no error was thrown");
    return {};
}

std::vector<std::string> names_in(const std::string& dir) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir))
        names.push_back(entry.path().filename().string());
    std::ranges::sort(names);
    return names;
}

}  // namespace

TEST_CASE("a checkpoint comes back bit for bit", "[checkpoint]") {
    const TempDir run;
    const std::string dir = save(run.path, 200, 7);
    CHECK(dir == run.path + "/ckpt/step-000000200");
    CHECK(slurp(run.path + "/LATEST") == "ckpt/step-000000200\n");
    CHECK(names_in(run.path + "/ckpt") == std::vector<std::string>{"step-000000200"});
    CHECK(names_in(dir) == std::vector<std::string>{"manifest.json", "rank-0000.h5", "state.h5"});

    CHECK(find_checkpoint(run.path, Mesh{}) == dir);
    State back = make_state(0, 1);
    REQUIRE(count_wrong(back, 7) > 0);
    const CheckpointMeta meta = load_checkpoint(dir, back.shards, Mesh{});
    CHECK(count_wrong(back, 7) == 0);
    CHECK(meta.step == 200);
    CHECK(meta.counters == make_meta(200).counters);
    CHECK(meta.resolved_config == make_meta(200).resolved_config);
    CHECK(meta.config_hash == "c0ffee");
    CHECK(meta.tokenizer_hash == "beef");
}

TEST_CASE("a padded view writes its logical cells only", "[checkpoint]") {
    const TempDir run;
    std::vector<float> wide(4 * 5, -1.f), back(3 * 2, 0.f);
    for (int r = 0; r < 3; ++r)
        for (int c = 0; c < 2; ++c)
            wide[static_cast<std::size_t>(r * 5 + c)] = static_cast<float>(10 * r + c);
    const auto shard = [](std::vector<float>& memory, Shape local) {
        return TensorShard{
            .name = "w",
            .global_shape = {3, 2},
            .view = {reinterpret_cast<std::byte*>(memory.data()), DType::fp32, local, {}},
            .row_count = 3,
            .col_count = 2};
    };
    const std::string dir = save_checkpoint(run.path, make_meta(1), {shard(wide, {4, 5})}, Mesh{});
    load_checkpoint(dir, {shard(back, {3, 2})}, Mesh{});
    CHECK(back == std::vector<float>{0.f, 1.f, 10.f, 11.f, 20.f, 21.f});
    const auto info = read_checkpoint_info(dir);
    CHECK(info.tensors.at(0).xxh3 == xxh3_hex(std::as_bytes(std::span(back))));
}

TEST_CASE("HDF5 alone reads state.h5 with global shapes", "[checkpoint]") {
    const TempDir run;
    const std::string dir = save(run.path, 3, 11);
    State expected = make_state(0, 1);
    fill(expected, 11);
    for (const char* name : {"state.h5", "rank-0000.h5"}) {
        const hid_t file = H5Fopen((dir + "/" + name).c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
        REQUIRE(file >= 0);
        for (const TensorShard& s : expected.shards) {
            CAPTURE(name, s.name);
            const hid_t data = H5Dopen2(file, ("/tensors/" + s.name).c_str(), H5P_DEFAULT);
            REQUIRE(data >= 0);
            const hid_t space = H5Dget_space(data), type = H5Dget_type(data);
            hsize_t dims[2] = {};
            CHECK(H5Sget_simple_extent_dims(space, dims, nullptr) == s.global_shape.rank);
            for (int i = 0; i < s.global_shape.rank; ++i)
                CHECK(static_cast<std::int64_t>(dims[i]) == s.global_shape[i]);
            CHECK(static_cast<std::int64_t>(H5Tget_size(type)) == size_of(s.view.dtype));
            std::vector<std::byte> bytes(static_cast<std::size_t>(s.view.bytes()));
            CHECK(H5Dread(data, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()) >= 0);
            CHECK(std::memcmp(bytes.data(), s.view.data, bytes.size()) == 0);
            CHECK(H5Aexists(data, "global_shape") > 0);
            CHECK(H5Aexists(data, "dtype") > 0);
            H5Tclose(type);
            H5Sclose(space);
            H5Dclose(data);
        }
        H5Fclose(file);
    }
}

TEST_CASE("a tensor that does not fit is named", "[checkpoint]") {
    const TempDir run;
    const std::string dir = save(run.path, 3, 11);
    State state = make_state(0, 1);
    SECTION("missing in the checkpoint") {
        state.shards[0].name = "model.other.weight";
        const auto e = error_of([&] { load_checkpoint(dir, state.shards, Mesh{}); });
        CHECK_THAT(e.what, Catch::Contains("model.other.weight"));
    }
    SECTION("missing in the run") {
        const std::string name = state.shards.back().name;
        state.shards.pop_back();
        const auto e = error_of([&] { load_checkpoint(dir, state.shards, Mesh{}); });
        CHECK_THAT(e.what, Catch::Contains(name));
        CHECK_NOTHROW(load_checkpoint(dir, state.shards, Mesh{}, LoadTensors::subset));
    }
    SECTION("other shape") {
        std::swap(state.shards[0].global_shape.dims[0], state.shards[0].global_shape.dims[1]);
        std::swap(state.shards[0].row_count, state.shards[0].col_count);
        state.shards[0].view.shape = state.shards[0].global_shape;
        const auto e = error_of([&] { load_checkpoint(dir, state.shards, Mesh{}); });
        CHECK_THAT(e.what, Catch::Contains("model.embedding.weight"));
        CHECK(e.expected == "(8, 13) fp32");
        CHECK(e.actual == "(13, 8) fp32");
    }
    SECTION("other dtype") {
        state.shards[4].view.dtype = DType::fp32;
        const auto e = error_of([&] { load_checkpoint(dir, state.shards, Mesh{}); });
        CHECK(e.expected == "(13, 8) fp32");
        CHECK(e.actual == "(13, 8) fp64");
    }
    SECTION("two of one name") {
        state.shards[1].name = state.shards[0].name;
        CHECK_THROWS_AS(save_checkpoint(run.path, make_meta(4), state.shards, Mesh{}), Error);
        CHECK(names_in(run.path + "/ckpt") == std::vector<std::string>{"step-000000003"});
    }
    SECTION("shards that leave a gap") {
        state.shards[0].row_count -= 1;
        const auto e =
            error_of([&] { save_checkpoint(run.path, make_meta(4), state.shards, Mesh{}); });
        CHECK_THAT(e.what, Catch::Contains("model.embedding.weight"));
        CHECK(names_in(run.path + "/ckpt") == std::vector<std::string>{"step-000000003"});
    }
}

TEST_CASE("saving a step again replaces it", "[checkpoint]") {
    const TempDir run;
    save(run.path, 5, 1);
    const std::string dir = save(run.path, 5, 2);
    CHECK(names_in(run.path + "/ckpt") == std::vector<std::string>{"step-000000005"});
    State back = make_state(0, 1);
    load_checkpoint(dir, back.shards, Mesh{});
    CHECK(count_wrong(back, 2) == 0);
}

TEST_CASE("a crash between the two renames loses nothing", "[checkpoint]") {
    const TempDir run;
    const std::string dir = save(run.path, 5, 1), old = set_aside_dir(run.path, 5);
    fs::rename(dir, old);
    CHECK(find_checkpoint(run.path, Mesh{}) == old);
    State back = make_state(0, 1);
    load_checkpoint(old, back.shards, Mesh{});
    CHECK(count_wrong(back, 1) == 0);
    save(run.path, 6, 2);  // puts it back
    CHECK(names_in(run.path + "/ckpt") ==
          std::vector<std::string>{"step-000000005", "step-000000006"});
}

TEST_CASE("leftovers are ignored and swept", "[checkpoint]") {
    const TempDir run;
    CHECK(find_checkpoint(run.path, Mesh{}).empty());
    CHECK(find_checkpoint(run.path + "/nowhere", Mesh{}).empty());
    const std::string dir = save(run.path, 5, 1);
    fs::create_directory(temporary_dir(run.path, 9));
    spill(temporary_dir(run.path, 9) + "/rank-0000.h5", "torn");
    fs::create_directory(run.path + "/ckpt/notes");
    spill(run.path + "/LATEST", "");
    CHECK(find_checkpoint(run.path, Mesh{}) == dir);
    CHECK(list_checkpoints(run.path) == std::vector<std::string>{dir});
    save(run.path, 6, 1);
    CHECK(names_in(run.path + "/ckpt") ==
          std::vector<std::string>{"notes", "step-000000005", "step-000000006"});
}

TEST_CASE("pruning keeps the newest and the newest good one", "[checkpoint]") {
    const TempDir run;
    for (const int step : {1, 2, 3, 4, 1000000000})
        save(run.path, step, 1);
    prune_checkpoints(run.path, {3});
    CHECK(names_in(run.path + "/ckpt") ==
          std::vector<std::string>{"step-000000003", "step-000000004", "step-1000000000"});
    CHECK(find_checkpoint(run.path, Mesh{}) == run.path + "/ckpt/step-1000000000");
    for (const char* damaged : {"step-000000004", "step-1000000000"})
        spill(run.path + "/ckpt/" + damaged + "/state.h5", "x");
    prune_checkpoints(run.path,
                      {1});  // nothing goes before something newer has been read back whole
    CHECK(names_in(run.path + "/ckpt").size() == 3);
    CHECK(find_checkpoint(run.path, Mesh{}) == run.path + "/ckpt/step-000000003");
    save(run.path, 1000000001, 1);
    prune_checkpoints(run.path, {1});
    prune_checkpoints(run.path, {1});  // never everything
    CHECK(names_in(run.path + "/ckpt") == std::vector<std::string>{"step-1000000001"});
}

TEST_CASE("a manifest is checked to its last byte", "[checkpoint]") {
    const TempDir run;
    const std::string text = slurp(save(run.path, 5, 1) + "/manifest.json");
    REQUIRE_NOTHROW(parse_manifest(text, "m"));
    CHECK(format_manifest(parse_manifest(text, "m")) == text);
    for (std::size_t i = 0; i < text.size(); ++i) {
        std::string flipped = text;
        flipped[i] = static_cast<char>(flipped[i] ^ (1 << (i % 8)));
        CAPTURE(i);
        CHECK_THROWS_AS(parse_manifest(flipped, "m"), CheckpointError);
        if (i % 16 == 0) CHECK_THROWS_AS(parse_manifest(text.substr(0, i), "m"), CheckpointError);
    }
    CHECK_THROWS_AS(parse_manifest(text + " ", "m"), CheckpointError);
    CHECK_THROWS_AS(parse_manifest("{\"format\": \"other\"}\n", "m"), CheckpointError);
}

TEST_CASE("a read of many blocks and of long rows", "[checkpoint]") {
    const TempDir run;
    // 12 MB: 1000 x 3000 goes in blocks of whole rows, 1 x 3000000 in parts of one row.
    const Shape shape = GENERATE(Shape{1000, 3000}, Shape{3000000});
    std::vector<float> values(3000000), back(3000000, 0.f);
    for (std::size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<float>(i);
    const auto shard = [&](std::vector<float>& memory) {
        return TensorShard{
            .name = "w",
            .global_shape = shape,
            .view = {reinterpret_cast<std::byte*>(memory.data()), DType::fp32, shape, {}},
            .row_count = shape.rank == 2 ? 1000 : 1,
            .col_count = shape.rank == 2 ? 3000 : 3000000};
    };
    const std::string dir = save_checkpoint(run.path, make_meta(1), {shard(values)}, Mesh{});
    load_checkpoint(dir, {shard(back)}, Mesh{});
    CHECK((back == values));
    verify_checkpoint(dir);
}
