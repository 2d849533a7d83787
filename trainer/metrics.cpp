#include "trainer/metrics.h"

#include <sys/resource.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/core/error.h"
#include "kernels/cuda/device.h"
#include "kernels/device_memory.h"

namespace stoa {
namespace {

using nlohmann::ordered_json;

std::string utc_now() {
    const std::time_t now = std::time(nullptr);
    std::tm utc{};
    gmtime_r(&now, &utc);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
    return text;
}

ordered_json finite(double x) { return std::isfinite(x) ? ordered_json(x) : ordered_json(nullptr); }

void append_line(const std::string& path, const ordered_json& line) {
    std::ofstream out(path, std::ios::app);
    out << line.dump(-1, ' ', false, ordered_json::error_handler_t::replace) << '\n' << std::flush;
    if (!out)
        throw DataError({.what = "cannot write the run's records",
                         .where = path,
                         .actual = std::strerror(errno),
                         .hint = "free disk space, then run the same command again: it resumes"});
}

std::vector<ordered_json> read_lines(const std::string& path) {
    std::vector<ordered_json> lines;
    std::ifstream in(path);
    for (std::string text; std::getline(in, text);) {
        ordered_json line = ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
        if (line.is_object()) lines.push_back(std::move(line));  // else: torn
    }
    return lines;
}

// Keeps the lines for which `keep` holds: written aside, then renamed.
template <class Keep>
void cut_lines(const std::string& path, Keep keep) {
    if (!std::filesystem::exists(path)) return;
    const std::string aside = path + ".tmp";
    {
        std::ofstream out(aside, std::ios::trunc);
        for (const ordered_json& line : read_lines(path))
            if (keep(line.value("step", std::int64_t{0}))) out << line.dump() << '\n';
        out.flush();
        if (!out)
            throw DataError({.what = "cannot rewrite the run's records",
                             .where = aside,
                             .actual = std::strerror(errno)});
    }
    std::filesystem::rename(aside, path);
}

}  // namespace

MetricsFiles::MetricsFiles(std::string run_dir, std::int64_t step) : run_dir_(std::move(run_dir)) {
    // A step line carries the number of finished steps: line `step` is in the checkpoint, later
    // ones are not. An evaluation at `step` is made again on resume.
    cut_lines(run_dir_ + "/metrics.jsonl", [&](std::int64_t s) { return s <= step; });
    cut_lines(run_dir_ + "/eval.jsonl", [&](std::int64_t s) { return s <= step; });
}

void MetricsFiles::write_step(const StepRecord& r) {
    if (run_dir_.empty()) return;
    ordered_json line{{"v", 1},
                      {"step", r.step},
                      {"tokens", r.tokens},
                      {"stage", r.stage},
                      {"loss", finite(r.loss)},
                      {"grad_norm", finite(r.grad_norm)},
                      {"lr", r.lr},
                      {"tok_s", r.tokens_per_s},
                      {"step_ms", r.step_ms},
                      {"data_ms", r.data_ms},
                      {"comm_ms", r.comm_ms},
                      {"hidden_comm_ms", r.hidden_comm_ms},
                      {"valid_tokens", r.valid_tokens},
                      {"mem_peak_b", r.mem_peak_bytes},
                      {"skipped", r.skipped ? 1 : 0},
                      {"time", utc_now()}};
    if (r.gpu.plan_bytes > 0) {
        line["gpu_plan_b"] = r.gpu.plan_bytes;
        line["gpu_step_b"] = r.gpu.step_bytes;
        line["gpu_peak_b"] = r.gpu.peak_bytes;
        line["gpu_used_b"] = r.gpu.used_bytes;
    }
    for (const LayerSelection& l : r.selection)
        line["selection"].push_back({{"layer", l.layer},
                                     {"selected", l.statistics.selected},
                                     {"entropy", finite(l.statistics.entropy)},
                                     {"mean_age_tokens", finite(l.statistics.mean_age_tokens)},
                                     {"dead_share", finite(l.statistics.dead_share)}});
    append_line(run_dir_ + "/metrics.jsonl", line);
}

void MetricsFiles::write_event(const std::string& event, std::int64_t step,
                               const std::map<std::string, std::string>& fields) {
    if (run_dir_.empty()) return;
    ordered_json line{{"v", 1}, {"event", event}, {"step", step}, {"time", utc_now()}};
    for (const auto& [key, value] : fields)
        line[key] = value;
    append_line(run_dir_ + "/events.jsonl", line);
}

void MetricsFiles::write_eval(const EvalReport& r) {
    if (run_dir_.empty()) return;
    ordered_json line{{"v", 1},
                      {"step", r.step},
                      {"when", eval_when_name(r.when)},
                      {"stage", r.stage},
                      {"time", utc_now()}};
    for (const SourceLoss& l : r.losses)
        line["losses"].push_back(
            {{"source", l.source}, {"loss", finite(l.loss)}, {"tokens", l.tokens}});
    for (const FamilyAccuracy& f : r.accuracies)
        line["families"].push_back({{"family", f.family},
                                    {"difficulty", f.difficulty},
                                    {"problems", f.problems},
                                    {"verified", f.verified},
                                    {"refuted", f.refuted},
                                    {"unanswered", f.unanswered}});
    for (const SolvedProblem& p : r.shown)
        line["shown"].push_back({{"family", p.family},
                                 {"question", p.question},
                                 {"solution", p.solution},
                                 {"answer", p.answer},
                                 {"verified", p.verified},
                                 {"why", p.why}});
    append_line(run_dir_ + "/eval.jsonl", line);
}

std::vector<EvalReport> MetricsFiles::read_evals() const {
    std::vector<EvalReport> reports;
    for (const ordered_json& line : read_lines(run_dir_ + "/eval.jsonl")) {
        EvalReport r{.step = line.value("step", std::int64_t{0}), .stage = line.value("stage", "")};
        for (const EvalWhen w : {EvalWhen::start, EvalWhen::stage_switch, EvalWhen::end})
            if (line.value("when", "") == eval_when_name(w)) r.when = w;
        for (const auto& l : line.value("losses", ordered_json::array()))
            r.losses.push_back({.source = l.value("source", ""),
                                .loss = l["loss"].is_number() ? l["loss"].get<double>() : NAN,
                                .tokens = l.value("tokens", std::int64_t{0})});
        for (const auto& f : line.value("families", ordered_json::array()))
            r.accuracies.push_back({.family = f.value("family", ""),
                                    .difficulty = f.value("difficulty", std::int64_t{1}),
                                    .problems = f.value("problems", std::int64_t{0}),
                                    .verified = f.value("verified", std::int64_t{0}),
                                    .refuted = f.value("refuted", std::int64_t{0}),
                                    .unanswered = f.value("unanswered", std::int64_t{0})});
        reports.push_back(std::move(r));
    }
    return reports;
}

GpuMemory measure_gpu(Device device, std::int64_t plan_bytes) {
    if (!device.is_cuda()) return {};
    std::string reason;
    const auto all = cuda::list_devices(reason);
    const auto index = static_cast<std::size_t>(device.index);
    const std::int64_t memory = index < all.size() ? all[index].memory_bytes : 0;
    const std::int64_t scratch = cuda::scratch_peak_bytes();
    return {.plan_bytes = plan_bytes,
            .step_bytes = held_device_bytes() + scratch,
            .peak_bytes = peak_device_bytes() + scratch,
            .used_bytes = memory - cuda::free_bytes(),
            .device_bytes = memory};
}

std::int64_t peak_memory_bytes() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return std::int64_t{usage.ru_maxrss} * 1024;
}

}  // namespace stoa
