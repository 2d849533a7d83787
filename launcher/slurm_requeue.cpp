#include "launcher/slurm_requeue.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

namespace stoa {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

std::string env(const char* name) {
    const char* text = std::getenv(name);
    return text == nullptr ? "" : text;
}

std::string first_line(const std::string& text) {
    const auto begin = text.find_first_not_of(" \t\n");
    if (begin == std::string::npos) return "";
    std::string line = text.substr(begin, text.find('\n', begin) - begin);
    line.resize(line.find_last_not_of(" \t\r") + 1);
    return line;
}

/// "1:02:03" -> {1, 2, 3}; empty where a part is no number.
std::vector<double> numbers_between_colons(const std::string& text) {
    std::vector<double> out;
    for (std::size_t begin = 0;;) {
        const std::size_t end = std::min(text.find(':', begin), text.size());
        const std::string part = text.substr(begin, end - begin);
        if (part.empty() || part.size() > 9 ||
            part.find_first_not_of("0123456789") != std::string::npos)
            return {};
        out.push_back(std::atof(part.c_str()));
        if (end == text.size()) return out;
        begin = end + 1;
    }
}

struct DaysAndRest {
    double days = 0.0;
    bool has_days = false;
    std::vector<double> rest;  // empty: not a time
};
DaysAndRest split_days(const std::string& text) {
    DaysAndRest t;
    const auto dash = text.find('-');
    if (dash != std::string::npos) {
        const auto days = numbers_between_colons(text.substr(0, dash));
        if (days.size() != 1) return t;
        t.days = days[0];
        t.has_days = true;
    }
    t.rest = numbers_between_colons(text.substr(dash == std::string::npos ? 0 : dash + 1));
    if (t.rest.size() > 3) t.rest.clear();
    return t;
}

std::chrono::steady_clock::duration as_duration(double seconds) {
    return std::chrono::duration_cast<std::chrono::steady_clock::duration>(
        std::chrono::duration<double>(seconds));
}

}  // namespace

std::optional<SlurmJob> slurm_job() {
    SlurmJob job{.id = env("SLURM_JOB_ID"),
                 .restarts = std::atoi(env("SLURM_RESTART_COUNT").c_str()),
                 .nodes = env("SLURM_JOB_NODELIST")};
    if (job.id.empty()) return std::nullopt;
    // The last task of an array has the array's own number, which would mean all of them.
    const std::string array = env("SLURM_ARRAY_JOB_ID"), task = env("SLURM_ARRAY_TASK_ID");
    if (!array.empty() && !task.empty()) job.id = array + "_" + task;
    return job;
}

std::optional<double> parse_time_left(const std::string& text) {
    if (text == "UNLIMITED") return kNever;
    const DaysAndRest t = split_days(text);
    if (t.rest.empty() || (t.has_days && t.rest.size() != 3)) return std::nullopt;
    double seconds = 0.0;
    for (const double part : t.rest)
        seconds = 60.0 * seconds + part;
    return 86400.0 * t.days + seconds;
}

std::optional<double> parse_time_limit(const std::string& text) {
    const DaysAndRest t = split_days(text);
    if (t.rest.empty()) return std::nullopt;
    // days-hours[:minutes[:seconds]]; else minutes, minutes:seconds, hours:minutes:seconds
    double seconds = 86400.0 * t.days;
    const double first = t.has_days || t.rest.size() == 3 ? 3600.0 : 60.0;
    double unit = first;
    for (const double part : t.rest) {
        seconds += unit * part;
        unit /= 60.0;
    }
    if (seconds <= 0.0) return std::nullopt;
    return seconds;
}

SlurmDeadline::SlurmDeadline(const SlurmJob& job, double margin_s)
    : job_(job.id), margin_s_(margin_s) {
    const double end = std::atof(env("SLURM_JOB_END_TIME").c_str());  // seconds since 1970
    const auto since_1970 =
        std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
    if (end > 0.0) end_ = Clock::now() + as_duration(end - since_1970);
}

double SlurmDeadline::seconds_left() const {
    return end_ ? std::chrono::duration<double>(*end_ - Clock::now()).count() : kNever;
}

void SlurmDeadline::ask(Clock::time_point now) {
    question_.emplace(std::vector<std::string>{"squeue", "-h", "-j", job_, "-o", "%L"});
    asked_ = now;
}

bool SlurmDeadline::reached() {
    using namespace std::chrono_literals;
    if (margin_s_ <= 0.0) return false;
    const auto now = Clock::now();
    if (question_ && question_->done()) {
        const auto left = parse_time_left(first_line(question_->out()));
        if (left) {
            told_ = now;
            silent_ = 0;
            end_.reset();
            if (*left < 1e9) end_ = now + as_duration(*left);
        } else {
            ++silent_;
        }
        question_.reset();
        // Halfway to the moment to stop, for the limit may be changed; not more than SLURM can
        // bear.
        const double wait =
            end_ ? std::clamp((seconds_left() - margin_s_) / 2, 10.0, 300.0) : 300.0;
        ask_next_ = now + as_duration(left ? wait : 30.0);
    } else if (question_ && now - asked_ > 20s) {
        question_.reset();
        ++silent_;
        ask_next_ = now + 30s;
    }
    const bool near = end_ && seconds_left() < margin_s_;
    if (near && (silent_ > 0 || (told_ && now - *told_ < 15s))) return true;
    if (near && question_ && now - asked_ > 5s) return true;  // squeue is slow: what we know counts
    if (!question_ && (near || now >= ask_next_)) ask(now);
    return false;
}

RequeueResult requeue_slurm_job(const SlurmJob& job) {
    RequeueResult result;
    for (int attempt = 0; attempt < 3; ++attempt) {
        if (attempt > 0) std::this_thread::sleep_for(std::chrono::seconds(3));
        const ToolOutput asked = run_tool({"squeue", "-h", "-j", job.id, "-o", "%T"}, 10.0);
        const std::string state = first_line(asked.out);
        const bool ours = state == "RUNNING" || state == "SIGNALING";  // a preemption's warning
        if (asked.code == 0 && !state.empty() && !ours) {
            result.text =
                fmt::format("SLURM is ending job {} itself ({}): left to SLURM, not requeued by us",
                            job.id, state);
            return result;
        }
        const ToolOutput done = run_tool({"scontrol", "requeue", job.id}, 10.0);
        // SLURM's own SIGTERM to the job may end scontrol before it has reported.
        if (done.code == 0 || done.code == 128 + SIGTERM) {
            result.requeued = true;
            result.text =
                fmt::format("job {} is in the queue again and will go on by itself", job.id);
            return result;
        }
        const std::string why = done.missing ? "there is no scontrol here"
                                : done.late  ? "scontrol does not answer"
                                             : first_line(done.err + "\n" + done.out);
        result.text = fmt::format("job {} could not be requeued: {}; submit its script again",
                                  job.id, why.empty() ? "scontrol failed" : why);
        if (done.missing) return result;
    }
    return result;
}

void write_slurm_event(const std::string& run_dir, const std::string& event, const SlurmJob& job,
                       const std::string& text) {
    std::error_code ignored;
    std::filesystem::create_directories(run_dir, ignored);
    const std::time_t now = std::time(nullptr);
    std::tm utc{};
    gmtime_r(&now, &utc);
    char time[32];
    std::strftime(time, sizeof time, "%Y-%m-%dT%H:%M:%SZ", &utc);
    nlohmann::ordered_json line{
        {"v", 1},        {"event", event},          {"time", time},      {"source", "supervisor"},
        {"job", job.id}, {"restart", job.restarts}, {"nodes", job.nodes}};
    if (!text.empty()) line["text"] = text;
    const std::string out =
        line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
    const int fd =
        open((run_dir + "/events.jsonl").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0) return;
    (void)!write(fd, out.data(), out.size());
    close(fd);
}

}  // namespace stoa
