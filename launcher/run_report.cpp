#include "launcher/run_report.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "checkpoints/checkpoint.h"
#include "configs/load_run_config.h"
#include "data/curriculum.h"
#include "parallel/mpi_session.h"
#include "trainer/report.h"

namespace stoa {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::size_t kTailBytes = 64 << 10;  // metrics.jsonl of a long run is large

/// The whole lines of the last `bytes` of a file that are JSON objects.
std::vector<json> tail_lines(const std::string& path, std::size_t bytes) {
    std::ifstream in(path, std::ios::binary | std::ios::ate);
    if (!in) return {};
    const auto size = static_cast<std::size_t>(std::max<std::streamoff>(0, in.tellg()));
    const std::size_t from = size > bytes ? size - bytes : 0;
    in.seekg(static_cast<std::streamoff>(from));
    std::vector<json> lines;
    std::string text;
    if (from > 0) std::getline(in, text);  // begins in the middle
    while (std::getline(in, text)) {
        json line = json::parse(text, nullptr, /*allow_exceptions=*/false);
        if (line.is_object()) lines.push_back(std::move(line));
    }
    return lines;
}

std::string text_in(const json& j, const char* key) {
    const auto at = j.find(key);
    if (at == j.end()) return "";
    return at->is_string() ? at->get<std::string>() : at->is_null() ? "" : at->dump();
}

/// Numbers may be written as text (events of rank 0).
double number_in(const json& j, const char* key, double otherwise) {
    const auto at = j.find(key);
    if (at == j.end()) return otherwise;
    if (at->is_number()) return at->get<double>();
    if (!at->is_string() || at->get<std::string>().empty()) return otherwise;
    return std::atof(at->get<std::string>().c_str());
}

std::int64_t integer_in(const json& j, const char* key, std::int64_t otherwise) {
    return static_cast<std::int64_t>(number_in(j, key, static_cast<double>(otherwise)));
}

/// "2026-01-02T03:04:05[.678]Z" -> seconds since 1970; -1 where it is none.
double seconds_of(const std::string& utc) {
    std::tm t{};
    if (strptime(utc.c_str(), "%Y-%m-%dT%H:%M:%S", &t) == nullptr) return -1.0;
    return static_cast<double>(timegm(&t));
}

double median(std::vector<double> values) {
    if (values.empty()) return 0.0;
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

std::string utc_of(const std::string& path) {
    struct stat s {};
    if (stat(path.c_str(), &s) != 0) return "";
    std::tm utc{};
    gmtime_r(&s.st_mtime, &utc);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
    return text;
}

void read_metrics(RunReport& r, double now) {
    const auto lines = tail_lines(r.run_dir + "/metrics.jsonl", kTailBytes);
    if (lines.empty()) return;
    const json& last = lines.back();
    r.step = integer_in(last, "step", 0);
    r.tokens = integer_in(last, "tokens", 0);
    r.stage = text_in(last, "stage");
    r.loss = number_in(last, "loss", 0.0);
    const double time = seconds_of(text_in(last, "time"));
    if (time > 0.0) r.last_step_age_s = std::max(0.0, now - time);
    std::vector<double> tokens_per_s, step_ms;
    constexpr std::size_t kRecent = 20;
    for (std::size_t i = lines.size() - std::min(kRecent, lines.size()); i < lines.size(); ++i) {
        tokens_per_s.push_back(number_in(lines[i], "tok_s", 0.0));
        step_ms.push_back(number_in(lines[i], "step_ms", 0.0));
    }
    r.tokens_per_s = median(tokens_per_s);
    r.step_ms = median(step_ms);
}

void read_config(RunReport& r) {
    try {
        r.total_steps = total_steps(load_run_config(r.run_dir + "/resolved.yaml", {}).config);
    } catch (const Error&) {  // another version's, or not written yet: the rest is still true
    }
}

void read_checkpoints(RunReport& r) {
    try {
        const auto all = list_checkpoints(r.run_dir);
        if (all.empty()) return;
        r.checkpoint = all.back();
        r.checkpoint_step = std::atoll(all.back().substr(all.back().rfind("step-") + 5).c_str());
        r.checkpoint_time = utc_of(all.back() + "/manifest.json");
    } catch (const Error&) {
    }
}

/// What the events say: the end of a run without a supervisor, faults, the job.
struct Story {
    bool begun = false;
    std::string stop;  // "preempted", "interrupted": the last thing that happened
    double last_time = -1.0;
};

Story read_events(RunReport& r) {
    Story story;
    int starts = 0;
    for (const json& e : tail_lines(r.run_dir + "/events.jsonl", std::size_t{4} << 20)) {
        const std::string event = text_in(e, "event");
        story.last_time = std::max(story.last_time, seconds_of(text_in(e, "time")));
        if (event == "start" || event == "resume") {
            story.begun = true;
            story.stop.clear();
            r.ranks = static_cast<int>(integer_in(e, "ranks", r.ranks));
            ++starts;
        } else if (event == "stop") {
            story.stop = text_in(e, "reason");
        } else if (event == "fault") {
            r.fault = text_in(e, "text");
            r.fault_cause = text_in(e, "cause");
            r.fault_time = text_in(e, "time");
            r.fault_step = integer_in(e, "step", -1);
            if (r.fault.empty())
                r.fault = fmt::format("{} of rank {} on {}", text_in(e, "kind"),
                                      integer_in(e, "rank", -1), text_in(e, "host"));
        } else if (event == "slurm_job") {
            r.job = text_in(e, "job");
            r.requeues = static_cast<int>(integer_in(e, "restart", 0));
            r.job_nodes = text_in(e, "nodes");
        }
    }
    r.restarts = std::max(0, starts - 1);
    return story;
}

bool supervisor_is_gone(const json& state) {
    const json owner = state.value("supervisor", json::object());
    if (!owner.is_object() || text_in(owner, "host") != host_name()) return false;
    const auto pid = static_cast<pid_t>(integer_in(owner, "pid", 0));
    return pid > 0 && kill(pid, 0) != 0 && errno == ESRCH;
}

/// The supervisor's own word. Returns false where there is none.
bool read_state_file(RunReport& r) {
    std::ifstream in(r.run_dir + "/state.json");
    const json state = json::parse(in, nullptr, /*allow_exceptions=*/false);
    if (!state.is_object() || text_in(state, "state").empty()) return false;
    r.generation = static_cast<int>(integer_in(state, "generation", -1));
    r.ranks = static_cast<int>(integer_in(state, "ranks", r.ranks));
    r.restarts = static_cast<int>(integer_in(state, "restarts", 0));
    if (const auto hosts = state.find("hosts"); hosts != state.end() && hosts->is_array())
        for (const json& h : *hosts)
            r.hosts.push_back(h.is_object()   ? text_in(h, "name")
                              : h.is_string() ? h.get<std::string>()
                                              : "");
    if (r.fault.empty()) r.fault = text_in(state, "fault");
    const std::string s = text_in(state, "state");
    const int code = static_cast<int>(integer_in(state, "exit_code", -1));
    static constexpr std::pair<const char*, const char*> kNames[] = {
        {"START", "starting"},
        {"LAUNCH", "starting"},
        {"RUN", "running"},
        {"DRAIN", "saving"},
        {"FAILED", "restarting"},
        {"BACKOFF", "restarting"},
        {"WAIT_HOSTS", "waiting for hosts"},
        {"DONE", "finished"},
        {"PREEMPTED", "preempted"},
        {"STOPPED", "stopped"},
        {"GAVE_UP", "gave up"}};
    r.state = s;
    for (const auto& [theirs, ours] : kNames)
        if (s == theirs) r.state = ours;
    const bool over = code >= 0;
    if (over && code == 130) r.state = "interrupted";
    if (over && s == "FAILED") r.state = "failed";
    if (over && code > 0 && code != 75 && code != 130) r.why = fmt::format("exit code {}", code);
    if (!over && supervisor_is_gone(state)) {
        r.state = "dead";
        r.why = "its supervisor has ended without a word; the same command goes on";
    }
    return true;
}

/// Without a supervisor: from what rank 0 has written and when.
void guess_state(RunReport& r, const Story& story, double now) {
    // As long as an evaluation or a save may take beside twenty steps.
    const double patience_s = std::max(120.0, 20.0 * r.step_ms / 1e3);
    const double heard = r.last_step_age_s >= 0.0
                             ? std::min(r.last_step_age_s, std::max(0.0, now - story.last_time))
                             : std::max(0.0, now - story.last_time);
    if (r.total_steps > 0 && r.step >= r.total_steps)
        r.state = "finished";
    else if (!story.stop.empty())
        r.state = story.stop;
    else if (!story.begun)
        r.state = "not started";
    else if (heard <= patience_s)
        r.state = r.step > 0 ? "running" : "starting";
    else {
        r.state = "silent";
        r.why = "nothing written for " + human_duration(heard);
    }
}

}  // namespace

bool is_run_dir(const std::string& path) {
    std::error_code ignored;
    for (const char* name :
         {"resolved.yaml", "metrics.jsonl", "state.json", "events.jsonl", "ckpt"})
        if (fs::exists(path + "/" + name, ignored)) return true;
    return false;
}

RunReport read_run_report(const std::string& run_dir, double now) {
    RunReport r;
    r.run_dir = run_dir;
    if (access(run_dir.c_str(), R_OK | X_OK) != 0)
        throw DataError({.what = "cannot read the run directory",
                         .where = run_dir,
                         .actual = std::strerror(errno)});
    read_metrics(r, now);
    read_config(r);
    read_checkpoints(r);
    const Story story = read_events(r);
    if (!read_state_file(r)) guess_state(r, story, now);
    const bool goes = r.state == "running" || r.state == "starting" || r.state == "restarting" ||
                      r.state == "saving";
    if (goes && r.total_steps > r.step && r.step_ms > 0.0)
        r.eta_s = static_cast<double>(r.total_steps - r.step) * r.step_ms / 1e3;
    return r;
}

}  // namespace stoa
