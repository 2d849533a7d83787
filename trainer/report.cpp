#include "trainer/report.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace stoa {
namespace {

std::string bar(double fraction) {
    constexpr int kCells = 16;
    static constexpr const char* kEighths[] = {" ", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    const int eighths = static_cast<int>(std::clamp(fraction, 0.0, 1.0) * kCells * 8);
    std::string s = "▕";
    for (int c = 0; c < kCells; ++c) {
        const int left = eighths - 8 * c;
        s += left >= 8 ? "█" : left > 0 ? kEighths[left] : " ";
    }
    return s + "▏";
}

std::string percent(std::int64_t part, std::int64_t whole) {
    return whole == 0 ? "-"
                      : fmt::format("{:.1f}%",
                                    100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

// Under mpirun every rank sees a pseudo-terminal; `stoa launch` says in STOA_TTY where its output
// goes.
bool terminal_at_the_end() {
    if (const char* told = std::getenv("STOA_TTY")) return told[0] == '1';
    return std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr && isatty(STDOUT_FILENO) == 1;
}

}  // namespace

std::string human_duration(double seconds) {
    const auto s = static_cast<std::int64_t>(std::llround(std::max(0.0, seconds)));
    if (s >= 3600) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
    return fmt::format("{}m{:02}s", s / 60, s % 60);
}

std::string human_count(double n) {
    if (n >= 1e9) return fmt::format("{:.1f}G", n / 1e9);
    if (n >= 1e6) return fmt::format("{:.1f}M", n / 1e6);
    if (n >= 1e3) return fmt::format("{:.1f}k", n / 1e3);
    return fmt::format("{:.0f}", n);
}

std::string progress_line(const StepRecord& r, std::int64_t total_steps, double seconds_per_step) {
    const double fraction =
        total_steps == 0 ? 1.0 : static_cast<double>(r.step) / static_cast<double>(total_steps);
    return fmt::format(
        "{:>6}/{} {:>3.0f}% {} {:<8} loss {:>7.4f}  gn {:>7.3f}{} lr {:.2e}  {:>6} tok/s{}  mem "
        "{:.2f}G  eta {:>6}",
        r.step, total_steps, 100.0 * fraction, bar(fraction), r.stage, r.loss, r.grad_norm,
        r.skipped ? "s" : " ", r.lr, human_count(r.tokens_per_s),
        r.comm_ms + r.hidden_comm_ms == 0.0
            ? ""
            : fmt::format("  comm {:>2.0f}%", 100.0 * r.comm_ms / r.step_ms),
        static_cast<double>(r.gpu.peak_bytes > 0 ? r.gpu.peak_bytes : r.mem_peak_bytes) / 1e9,
        human_duration(seconds_per_step * static_cast<double>(total_steps - r.step)));
}

std::string gpu_memory_line(const GpuMemory& m) {
    const auto gib = [](std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); };
    const double beyond = m.plan_bytes == 0
                              ? 0.0
                              : 100.0 * static_cast<double>(m.step_bytes - m.plan_bytes) /
                                    static_cast<double>(m.plan_bytes);
    return fmt::format(
        "GPU memory of rank 0: steps {:.2f} GiB, planned {:.2f} ({:+.1f} %); with evaluations "
        "{:.2f}; in use on the device {:.2f} of {:.2f}",
        gib(m.step_bytes), gib(m.plan_bytes), beyond, gib(m.peak_bytes), gib(m.used_bytes),
        gib(m.device_bytes));
}

void show_progress(const std::string& line, bool finish_line) {
    if (terminal_at_the_end())
        fmt::print("\r{}\x1b[K{}", line, finish_line ? "\n" : "");
    else
        fmt::print("{}\n", line);
    std::fflush(stdout);
}

std::string eval_line(const EvalReport& r) {
    std::string s = "held-out loss:";
    for (const SourceLoss& l : r.losses)
        s += fmt::format("  {} {:.4f}", l.source, l.loss);
    if (!r.accuracies.empty()) s += "   accuracy:";
    for (const FamilyAccuracy& f : r.accuracies)
        s += fmt::format("  {} {}/{}", f.family, f.verified, f.problems);
    return s;
}

std::string solutions_text(const EvalReport& r) {
    std::string s;
    for (const SolvedProblem& p : r.shown) {
        s += fmt::format("\n[{}] {}\n", p.family, p.question);
        std::string line;
        for (const char c : p.solution + "\n") {
            if (c != '\n') {
                line += c;
                continue;
            }
            if (!line.empty()) s += "    " + line + "\n";
            line.clear();
        }
        s += p.verified ? "    => verified\n" : fmt::format("    => refuted: {}\n", p.why);
    }
    return s;
}

std::string accuracy_table(const std::vector<EvalReport>& evals) {
    // One column per stage switch, and the end.
    std::vector<const EvalReport*> columns;
    for (const EvalReport& e : evals)
        if (!e.accuracies.empty() && e.when != EvalWhen::interval) columns.push_back(&e);
    if (columns.empty()) return "";
    std::string s = fmt::format("{:<18}", "family");
    for (const EvalReport* e : columns)
        s += fmt::format("  {:>22}", e->when == EvalWhen::end
                                         ? fmt::format("end (step {})", e->step)
                                         : fmt::format("before {} (step {})", e->stage, e->step));
    s += "\n";
    std::vector<std::int64_t> verified(columns.size()), problems(columns.size());
    for (std::size_t f = 0; f < columns.back()->accuracies.size(); ++f) {
        s += fmt::format("{:<18}", columns.back()->accuracies[f].family);
        for (std::size_t c = 0; c < columns.size(); ++c) {
            if (f >= columns[c]->accuracies.size()) continue;
            const FamilyAccuracy& a = columns[c]->accuracies[f];
            verified[c] += a.verified;
            problems[c] += a.problems;
            s += fmt::format("  {:>22}", fmt::format("{}/{} = {}", a.verified, a.problems,
                                                     percent(a.verified, a.problems)));
        }
        s += "\n";
    }
    s += fmt::format("{:<18}", "all, verified");
    for (std::size_t c = 0; c < columns.size(); ++c)
        s += fmt::format("  {:>22}", fmt::format("{}/{} = {}", verified[c], problems[c],
                                                 percent(verified[c], problems[c])));
    return s + "\n";
}

}  // namespace stoa
