#include "launcher/run_journal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "checkpoints/checkpoint.h"
#include "parallel/mpi_session.h"

namespace stoa {
namespace {

using nlohmann::ordered_json;

std::string utc_milliseconds() {
    const auto now = std::chrono::system_clock::now();
    const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
    const auto ms =
        std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() %
        1000;
    std::tm utc{};
    gmtime_r(&seconds, &utc);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
    return fmt::format("{}.{:03}Z", text, ms);
}

std::string dump(const ordered_json& json) {
    return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace

void write_status(const std::string& run_dir, const RunStatus& s) {
    ordered_json hosts = ordered_json::array();
    for (const Host& h : s.hosts)
        hosts.push_back({{"name", h.name}, {"ranks", h.slots}});
    const ordered_json json{
        {"v", 1},
        {"state", s.state},
        {"generation", s.generation},
        {"step", s.step},
        {"ranks", s.ranks},
        {"hosts", hosts},
        {"restarts", s.restarts},
        {"exit_code", s.exit_code < 0 ? ordered_json() : ordered_json(s.exit_code)},
        {"fault", s.fault},
        {"supervisor", {{"host", host_name()}, {"pid", getpid()}}},
        {"shared_dir", s.shared_dir},
        {"time", utc_milliseconds()}};
    const std::string path = run_dir + "/state.json", aside = run_dir + "/.state.json.tmp";
    {
        std::ofstream out(aside, std::ios::trunc);
        out << dump(json);
        out.flush();
        if (!out) return;
    }
    std::error_code ignored;
    std::filesystem::rename(aside, path, ignored);
}

RunStatus read_status(const std::string& run_dir) {
    std::ifstream in(run_dir + "/state.json");
    const auto j = nlohmann::json::parse(in, nullptr, /*allow_exceptions=*/false);
    RunStatus s;
    if (!j.is_object()) return s;
    s.state = j.value("state", "");
    s.generation = j.value("generation", -1);
    s.step = j.value("step", std::int64_t{0});
    s.ranks = j.value("ranks", 0);
    s.restarts = j.value("restarts", 0);
    s.exit_code =
        j.contains("exit_code") && j["exit_code"].is_number() ? j["exit_code"].get<int>() : -1;
    s.fault = j.value("fault", "");
    s.shared_dir = j.value("shared_dir", "");
    if (j.contains("hosts") && j["hosts"].is_array())
        for (const auto& h : j["hosts"])
            s.hosts.push_back({h.value("name", ""), h.value("ranks", 1)});
    return s;
}

void write_supervisor_event(const std::string& run_dir, const std::string& event, std::int64_t step,
                            const std::vector<EventField>& fields) {
    ordered_json line{{"v", 1},
                      {"event", event},
                      {"step", step},
                      {"time", utc_milliseconds()},
                      {"source", "supervisor"}};
    for (const EventField& f : fields)
        line[f.key] =
            f.is_number ? ordered_json::parse(f.text, nullptr, false) : ordered_json(f.text);
    const std::string text = dump(line);
    const int fd =
        open((run_dir + "/events.jsonl").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, text.data(), text.size()) != static_cast<ssize_t>(text.size()))
        fmt::print(stderr, "stoa: cannot write to {}/events.jsonl: {}", run_dir, text);
    if (fd >= 0) close(fd);
}

std::vector<EventField> fault_fields(const Fault& f, int generation) {
    std::vector<EventField> fields{{"generation", std::to_string(generation), true},
                                   {"rank", std::to_string(f.rank), true},
                                   {"host", f.host},
                                   {"pid", std::to_string(f.pid), true},
                                   {"cause", cause_name(f.cause)},
                                   {"kind", f.kind},
                                   {"code", std::to_string(f.code), true},
                                   {"phase", f.phase},
                                   {"noticed_ms", fmt::format("{:.0f}", f.noticed_ms), true}};
    if (!f.site.empty()) fields.push_back({"site", f.site});
    if (!f.waiting.empty()) fields.push_back({"waiting", f.waiting});
    fields.push_back({"text", f.text});
    return fields;
}

std::vector<std::int64_t> checkpoint_steps(const std::string& run_dir) {
    std::vector<std::int64_t> steps;
    try {
        for (const std::string& dir : list_checkpoints(run_dir))
            steps.push_back(std::atoll(dir.substr(dir.rfind("step-") + 5).c_str()));
    } catch (const Error&) {  // not readable now: no progress to see
    }
    std::ranges::sort(steps);
    return steps;
}

}  // namespace stoa
