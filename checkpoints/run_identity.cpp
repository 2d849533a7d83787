#include "checkpoints/run_identity.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <ranges>
#include <thread>

#include "checkpoints/checkpoint.h"
#include "checkpoints/file_io.h"
#include "checkpoints/manifest.h"
#include "kernels/core/log.h"
#include "parallel/agree.h"
#include "parallel/collectives.h"

namespace stoa {
namespace {

namespace fs = std::filesystem;

std::string id_path(const std::string& run_dir) { return run_dir + "/run_id"; }
std::string generation_path(const std::string& run_dir) { return run_dir + "/generation"; }

/// One short line, without its end; "" where there is no such file.
std::string read_line(const std::string& path) {
    if (!fs::exists(path)) return "";
    constexpr std::int64_t kMostBytes = 4096;
    const std::string text = read_text(path, kMostBytes);
    return text.substr(0, text.find('\n'));
}

void write_line(const std::string& run_dir, const std::string& path, const std::string& line) {
    write_text_synced(path + ".tmp", line + "\n");
    rename_path(path + ".tmp", path);
    sync_directory(run_dir);
}

std::string id_of_checkpoints(const std::string& run_dir) {
    for (const std::string& dir : std::views::reverse(list_checkpoints(run_dir))) {
        try {
            if (const std::string id = read_manifest(dir).meta.run_id; !id.empty()) return id;
        } catch (const Error&) {  // damaged: the search for a checkpoint will say so
        }
    }
    return "";
}

std::string new_id() {
    std::random_device random;
    std::string id;
    for (int i = 0; i < 4; ++i)
        id += fmt::format("{:08x}", random());
    return id;
}

std::int64_t claim_generation(const std::string& run_dir) {
    const char* const given = std::getenv("STOA_GENERATION");
    const std::int64_t last = read_generation(run_dir);
    if (given == nullptr) {
        write_generation(run_dir, last + 1);
        return last + 1;
    }
    char* end = nullptr;
    const std::int64_t mine = std::strtoll(given, &end, 10);
    if (end == given || *end != '\0' || mine < 0)
        throw ConfigError(
            {.what = "STOA_GENERATION", .expected = "a number from 0 on", .actual = given});
    if (last >= 0) require_generation(run_dir, mine);
    return mine;
}

/// Another host's view of a shared directory may be some seconds old.
void require_same_directory(const std::string& run_dir, const std::string& id) {
    std::string seen;
    for (int i = 0; i < 50; ++i) {
        seen = read_line(id_path(run_dir));
        if (seen == id) return;
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    throw ConfigError({.what = "this rank sees another run directory than rank 0",
                       .where = run_dir,
                       .expected = "run_id " + id,
                       .actual = seen.empty() ? "no run_id" : "run_id " + seen,
                       .hint = "all hosts need run.dir on a file system that they share; a local "
                               "disk serves runs on one host"});
}

}  // namespace

std::string claim_run_id(const std::string& run_dir) {
    std::string id = read_line(id_path(run_dir));
    if (!id.empty()) return id;
    id = id_of_checkpoints(run_dir);
    if (id.empty()) id = new_id();
    write_line(run_dir, id_path(run_dir), id);
    return id;
}

std::int64_t read_generation(const std::string& run_dir) {
    const std::string line = read_line(generation_path(run_dir));
    if (line.empty()) return -1;
    char* end = nullptr;
    const std::int64_t value = std::strtoll(line.c_str(), &end, 10);
    if (*end != '\0' || value < 0)
        throw CheckpointError({.what = "not a generation",
                               .where = generation_path(run_dir),
                               .expected = "a number from 0 on",
                               .actual = line,
                               .hint = "when nothing of this run is alive, delete the file"});
    return value;
}

void write_generation(const std::string& run_dir, std::int64_t generation) {
    write_line(run_dir, generation_path(run_dir), std::to_string(generation));
}

void require_generation(const std::string& run_dir, std::int64_t generation) {
    const std::int64_t now = read_generation(run_dir);
    if (now < 0 || now == generation) return;
    throw Error(ExitCode::fenced,
                {.what = "another generation of this run has taken over",
                 .where = generation_path(run_dir),
                 .expected = fmt::format("{}, this process's", generation),
                 .actual = std::to_string(now),
                 .hint = "this start leaves without committing anything; let the newer one go on"});
}

RunIdentity claim_run(const std::string& run_dir, const Communicator& world) {
    RunIdentity me;
    agree(world, "claim run directory", [&] {
        if (world.rank() == 0)
            me = {.run_id = claim_run_id(run_dir), .generation = claim_generation(run_dir)};
    });
    me.run_id = broadcast(me.run_id, 0, world);
    me.generation = std::stoll(broadcast(std::to_string(me.generation), 0, world));
    agree(world, "compare run directories", [&] { require_same_directory(run_dir, me.run_id); });
    return me;
}

}  // namespace stoa
