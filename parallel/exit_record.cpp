#include "parallel/exit_record.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "parallel/board.h"
#include "parallel/mpi_session.h"

namespace stoa {
namespace {

namespace fs = std::filesystem;

std::string record_name(int generation, int rank) {
    return fmt::format("g{:04}-rank{:04}.json", generation, rank);
}

double now_seconds() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
        .count();
}

int number_in(const char* name, int otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr || *text == '\0' ? otherwise : std::atoi(text);
}

std::string to_json(const ExitRecord& r) {
    const nlohmann::ordered_json json{
        {"v", 1},           {"time", r.time},   {"generation", r.generation},
        {"rank", r.rank},   {"host", r.host},   {"pid", r.pid},
        {"code", r.code},   {"kind", r.kind},   {"what", r.what},
        {"where", r.where}, {"phase", r.phase}, {"step", r.step},
        {"site", r.site}};
    return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

ExitRecord from_json(const nlohmann::json& j) {
    return {.time = j.value("time", 0.0),
            .generation = j.value("generation", 0),
            .rank = j.value("rank", -1),
            .host = j.value("host", ""),
            .pid = j.value("pid", 0),
            .code = j.value("code", 0),
            .kind = j.value("kind", ""),
            .what = j.value("what", ""),
            .where = j.value("where", ""),
            .phase = j.value("phase", ""),
            .step = j.value("step", std::int64_t{-1}),
            .site = j.value("site", "")};
}

}  // namespace

int rank_from_environment() {
    for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"})
        if (const int rank = number_in(name, -1); rank >= 0) return rank;
    return -1;
}

void write_exit_record(ExitRecord record) noexcept {
    try {
        const char* dir = std::getenv("STOA_EXIT_DIR");
        if (dir == nullptr || *dir == '\0') return;
        if (record.time == 0.0) record.time = now_seconds();
        if (record.rank < 0) record.rank = std::max(0, rank_from_environment());
        record.generation = number_in("STOA_GENERATION", 0);
        record.host = host_name();
        record.pid = static_cast<int>(getpid());
        if (record.phase.empty()) {
            const BoardView board = read_board();
            record.phase = phase_name(phase_of_failure());
            record.step = board.step;
            if (const Stamp* s = board.waits_in(); s != nullptr && record.site.empty())
                record.site = fmt::format("{} at {}:{}", s->op, s->file, s->line);
        }
        const std::string text = to_json(record);
        std::error_code ignored;
        fs::create_directories(dir, ignored);
        // Linked under its name when it is whole: a reader never sees a part of one.
        const std::string path =
            std::string(dir) + "/" + record_name(record.generation, record.rank);
        const std::string aside = fmt::format("{}.{}.tmp", path, record.pid);
        const int fd = open(aside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        if (fd < 0) return;
        const bool whole = write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
        close(fd);
        if (whole) (void)!link(aside.c_str(), path.c_str());  // fails where one exists: it stands
        unlink(aside.c_str());
    } catch (const std::exception&) {  // out of memory, most likely: leaving is more important
    }
}

std::vector<ExitRecord> read_exit_records(const std::string& dir, int generation) {
    std::vector<ExitRecord> records;
    std::error_code error;
    const std::string prefix = fmt::format("g{:04}-rank", generation);
    for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
        const std::string name = it->path().filename().string();
        if (!name.starts_with(prefix) || !name.ends_with(".json")) continue;
        std::ifstream in(it->path());
        const auto json = nlohmann::json::parse(in, nullptr, /*allow_exceptions=*/false);
        if (json.is_object()) records.push_back(from_json(json));
    }
    std::ranges::sort(records, {}, &ExitRecord::time);
    return records;
}

}  // namespace stoa
