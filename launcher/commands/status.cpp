#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "launcher/cli.h"
#include "launcher/commands.h"
#include "launcher/run_report.h"
#include "launcher/tool.h"
#include "trainer/report.h"

namespace po = boost::program_options;

namespace stoa {
namespace {

namespace fs = std::filesystem;

/// RUN is a run directory, or the name of one in runs/.
/// errors: ConfigError that names the runs there are
std::string find_run(std::string given) {
    while (given.size() > 1 && given.ends_with('/'))
        given.pop_back();
    if (is_run_dir(given)) return given;
    if (given.find('/') == std::string::npos && is_run_dir("runs/" + given)) return "runs/" + given;
    std::error_code failed;
    const bool there = fs::is_directory(given, failed);
    std::vector<std::string> runs;
    for (const std::string& parent :
         there ? std::vector<std::string>{given}
               : std::vector<std::string>{fs::path(given).parent_path().string(), "runs"})
        for (fs::directory_iterator it(parent.empty() ? "." : parent, failed), end;
             !failed && it != end; it.increment(failed))
            if (is_run_dir(it->path().string())) runs.push_back(it->path().lexically_normal());
    std::sort(runs.begin(), runs.end());
    runs.erase(std::unique(runs.begin(), runs.end()), runs.end());
    constexpr std::size_t kNamed = 8;
    std::string named;
    for (std::size_t i = 0; i < std::min(kNamed, runs.size()); ++i)
        named += (i == 0 ? "" : ", ") + runs[i];
    if (runs.size() > kNamed) named += ", ...";
    throw ConfigError({.what = there ? "not a run directory" : "there is no such run",
                       .where = given,
                       .expected = "a folder with resolved.yaml, metrics.jsonl or ckpt/",
                       .actual = there ? "none of them" : "nothing there",
                       .hint = runs.empty()
                                   ? "it is run.dir/run.name of the configuration; a run makes "
                                     "it when it starts"
                                   : "runs nearby: " + named});
}

/// What SLURM says of the job. Where there is no squeue, or it knows no such job, nothing.
void ask_squeue(RunReport& r) {
    if (r.job.empty()) return;
    const ToolOutput asked = run_tool({"squeue", "-h", "-j", r.job, "-o", "%T|%N|%L|%r"}, 10.0);
    std::istringstream line(asked.out.substr(0, asked.out.find('\n')));
    std::string nodes;
    std::getline(line, r.job_state, '|');
    std::getline(line, nodes, '|');
    std::getline(line, r.job_left, '|');
    std::getline(line, r.job_reason, '|');
    if (!r.job_state.empty()) r.job_nodes = nodes;
    // Gone without a word (scancel): SLURM has answered, and the job is not there.
    const bool answered =
        !asked.missing && !asked.late &&
        (asked.code == 0 || asked.err.find("Invalid job id") != std::string::npos);
    const bool goes = r.state == "running" || r.state == "starting" || r.state == "saving" ||
                      r.state == "restarting" || r.state == "waiting for hosts";
    constexpr double kFresh = 10.0;  // it may have been started by hand since
    if (answered && r.job_state.empty() && goes &&
        (r.last_step_age_s < 0.0 || r.last_step_age_s > kFresh)) {
        r.state = "dead";
        r.why = "its job has left the queue; the same command goes on";
        r.eta_s = -1.0;
    }
    // What the run has written last may be from before the requeue.
    const bool waits = r.job_state == "PENDING" || r.job_state == "REQUEUED";
    if (waits && r.state != "finished") {
        r.state = "in the queue";
        r.why = r.job_reason == "BeginTime" ? "requeued, held back for a while by SLURM"
                                            : "reason " + r.job_reason;
        r.eta_s = -1.0;
    }
}

std::string duration(double s) {
    const auto t = static_cast<std::int64_t>(std::llround(s));
    if (t >= 86400) return fmt::format("{}d{:02}h", t / 86400, t % 86400 / 3600);
    if (t >= 3600) return fmt::format("{}h{:02}m", t / 3600, t % 3600 / 60);
    return fmt::format("{}m{:02}s", t / 60, t % 60);
}

void print_report(const RunReport& r) {
    std::string hosts;
    for (const std::string& h : r.hosts)
        hosts += (hosts.empty() ? " on " : ", ") + h;
    std::string where;
    if (r.ranks > 0) where = fmt::format("{} rank{}{}", r.ranks, r.ranks == 1 ? "" : "s", hosts);
    if (r.generation > 0) where += fmt::format(", start {}", r.generation + 1);
    fmt::print("run         {}\n", r.run_dir);
    fmt::print("state       {}{}{}\n", r.state, r.why.empty() ? "" : ": " + r.why,
               where.empty() ? "" : " (" + where + ")");
    if (r.step > 0 || r.total_steps > 0) {
        std::string of = r.total_steps > 0 ? fmt::format("/{} ({:.0f}%)", r.total_steps,
                                                         100.0 * static_cast<double>(r.step) /
                                                             static_cast<double>(r.total_steps))
                                           : "";
        fmt::print("step        {}{}", r.step, of);
        if (r.step > 0) fmt::print("  stage {}  loss {:.4f}", r.stage, r.loss);
        if (r.last_step_age_s >= 0.0) fmt::print("  {} ago", duration(r.last_step_age_s));
        fmt::print("\n");
    }
    if (r.tokens_per_s > 0.0)
        fmt::print("speed       {} tok/s, {:.1f} ms a step{}\n", human_count(r.tokens_per_s),
                   r.step_ms, r.eta_s >= 0.0 ? ", eta " + duration(r.eta_s) : "");
    if (r.checkpoint_step >= 0)
        fmt::print("checkpoint  step {} of {}{}\n", r.checkpoint_step, r.checkpoint_time,
                   r.step > r.checkpoint_step
                       ? fmt::format(", {} steps ago", r.step - r.checkpoint_step)
                       : "");
    else
        fmt::print("checkpoint  none yet\n");
    if (r.restarts > 0) fmt::print("restarts    {}\n", r.restarts);
    if (!r.fault.empty())
        fmt::print("last fault  {}{}{}\n", r.fault_cause.empty() ? "" : r.fault_cause + ": ",
                   r.fault, r.fault_time.empty() ? "" : " (" + r.fault_time + ")");
    if (!r.job.empty()) {
        fmt::print("job         {}", r.job);
        if (r.job_state.empty())
            fmt::print(", not in the queue now");
        else
            fmt::print(" {}", r.job_state);
        if (!r.job_nodes.empty() && !r.job_state.empty()) fmt::print(" on {}", r.job_nodes);
        if (r.job_state == "RUNNING") fmt::print(", {} left", r.job_left);
        if (r.requeues > 0)
            fmt::print(", requeued {} time{}", r.requeues, r.requeues == 1 ? "" : "s");
        fmt::print("\n");
    }
}

nlohmann::ordered_json to_json(const RunReport& r) {
    using nlohmann::ordered_json;
    const auto known = [](double x) { return x >= 0.0 ? ordered_json(x) : ordered_json(); };
    const auto text = [](const std::string& s) {
        return s.empty() ? ordered_json() : ordered_json(s);
    };
    ordered_json out{
        {"run_dir", r.run_dir},
        {"state", r.state},
        {"why", text(r.why)},
        {"step", r.step},
        {"total_steps", r.total_steps > 0 ? ordered_json(r.total_steps) : ordered_json()},
        {"tokens", r.tokens},
        {"stage", text(r.stage)},
        {"loss", r.loss},
        {"tokens_per_s", r.tokens_per_s},
        {"step_ms", r.step_ms},
        {"eta_s", known(r.eta_s)},
        {"last_step_age_s", known(r.last_step_age_s)},
        {"ranks", r.ranks},
        {"hosts", r.hosts},
        {"generation", r.generation},
        {"restarts", r.restarts},
        {"checkpoint", nullptr},
        {"last_fault", nullptr},
        {"job", nullptr}};
    if (r.checkpoint_step >= 0)
        out["checkpoint"] = {
            {"step", r.checkpoint_step}, {"dir", r.checkpoint}, {"time", r.checkpoint_time}};
    if (!r.fault.empty())
        out["last_fault"] = {{"text", r.fault},
                             {"cause", text(r.fault_cause)},
                             {"step", r.fault_step},
                             {"time", text(r.fault_time)}};
    if (!r.job.empty())
        out["job"] = {{"id", r.job},
                      {"state", text(r.job_state)},
                      {"nodes", text(r.job_nodes)},
                      {"time_left", text(r.job_left)},
                      {"requeues", r.requeues}};
    return out;
}

}  // namespace

int command_status(const Args& args) {
    CommandLine line;
    line.usage = "stoa status RUN [RUN ...] [--json]";
    line.examples =
        "  stoa status runs/tiny                 step, speed, last checkpoint, last fault, job\n"
        "  stoa status tiny                      the same: a name in runs/\n"
        "  stoa status runs/tiny --json          for scripts; one object per run\n";
    line.about =
        "Reads what a run has left in its directory, and asks SLURM about its job where there is "
        "one. Starts\n"
        "and disturbs nothing; the run may be over, or on other machines.";
    line.options.add_options()("run", po::value<std::vector<std::string>>()->required(), "")(
        "json", po::bool_switch(), "one JSON object per line and run");
    line.positional.add("run", -1);
    const auto values = parse_command_line(line, args);
    if (!values) return 0;
    std::vector<std::string> dirs;  // all names are right, or nothing is printed
    for (const std::string& given : (*values)["run"].as<std::vector<std::string>>())
        dirs.push_back(find_run(given));
    bool first = true;
    for (const std::string& dir : dirs) {
        const double now =
            std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
                .count();
        RunReport r = read_run_report(dir, now);
        ask_squeue(r);
        if ((*values)["json"].as<bool>()) {
            fmt::print("{}\n", to_json(r).dump());
        } else {
            if (!first) fmt::print("\n");
            print_report(r);
        }
        first = false;
    }
    return 0;
}

}  // namespace stoa
