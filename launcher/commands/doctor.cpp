#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "kernels/core/error.h"
#include "launcher/cli.h"
#include "launcher/commands/node.h"
#include "launcher/doctor/findings.h"
#include "launcher/doctor/gather.h"
#include "launcher/process.h"
#include "parallel/mpi_session.h"

namespace stoa {
namespace {

namespace po = boost::program_options;
using nlohmann::ordered_json;

void print_findings(const std::vector<Finding>& findings) {
    int notes = 0;
    for (const Finding& f : findings) {
        fmt::print("{:<8} {:<10} {}\n", status_name(f.status), f.area, f.found);
        if (!f.fix.empty()) fmt::print("{:<8} {:<10} -> {}\n", "", "", f.fix);
        notes += f.status == FindingStatus::note;
    }
    const int problems = count_problems(findings);
    fmt::print("{} problem{}, {} note{}\n", problems, problems == 1 ? "" : "s", notes,
               notes == 1 ? "" : "s");
}

ordered_json to_json(const MachineFacts& f, const std::vector<Finding>& findings) {
    ordered_json out{{"host", host_name()},
                     {"version", STOA_VERSION},
                     {"problems", count_problems(findings)},
                     {"findings", ordered_json::array()}};
    for (const Finding& one : findings) {
        ordered_json j{
            {"status", status_name(one.status)}, {"area", one.area}, {"found", one.found}};
        if (!one.fix.empty()) j["fix"] = one.fix;
        out["findings"].push_back(j);
    }
    out["measured"] = {{"cpu_gflops", f.gemm_gflops},    {"mpi_ranks", f.ranks},
                       {"mpi_latency_us", f.latency_us}, {"mpi_gb_s", f.bandwidth_gb_s},
                       {"clock_skew_s", f.skew_s},       {"write_mb_s", f.write_mb_s}};
    if (!f.gpus.empty() && f.gpus[0].gemm_tflops > 0.0) {
        out["measured"]["gpu_tflops"] = f.gpus[0].gemm_tflops;
        out["measured"]["gpu_copy_gb_s"] = f.gpus[0].copy_gb_s;
    }
    return out;
}

int run_probe(const std::string& part, const DoctorOptions& o) {
    if (part == "mpi") return probe_mpi(o.seconds);
    if (part == "dir") return probe_directory(o.dir);
    if (part == "gpu") return probe_gpu();
    if (part == "cpu") return probe_cpu();
    throw ConfigError({.what = "--probe", .expected = "mpi, dir, gpu or cpu", .actual = part});
}

}  // namespace

int command_doctor(const Args& args) {
    CommandLine line;
    line.usage = "stoa doctor [--dir DIR] [--ranks N] [--json]";
    line.examples =
        "  stoa doctor --dir runs\n"
        "  stoa doctor --ranks 2 --mpirun-args \"--host node1,node2\"\n"
        "  stoa doctor --json\n";
    line.about =
        "Looks at GPUs, processor, memory, limits, MPI, SLURM, HDF5, a directory and the clocks, "
        "measures some of\n"
        "them, and says of each problem what to do. Exit code 1 where there is a problem.";
    line.options.add_options()("dir", po::value<std::string>()->default_value("."),
                               "where runs will write")("ranks", po::value<int>()->default_value(2),
                                                        "ranks that a trial by mpirun starts")(
        "mpirun-args", po::value<std::string>()->default_value(""),
        "further arguments of that mpirun, in one word")(
        "limit", po::value<double>()->default_value(20.0), "seconds that each part may take")(
        "json", po::bool_switch(), "print one JSON object")(
        "probe", po::value<std::string>(), "of doctor itself: one part, in this process");
    const auto values = parse_command_line(line, args);
    if (!values) return 0;
    DoctorOptions o{.dir = (*values)["dir"].as<std::string>(),
                    .ranks = (*values)["ranks"].as<int>(),
                    .seconds = (*values)["limit"].as<double>(),
                    .mpirun_args = split_words((*values)["mpirun-args"].as<std::string>())};
    if (o.ranks < 1 || o.ranks > 1024)
        throw ConfigError(
            {.what = "--ranks", .expected = "1 to 1024", .actual = std::to_string(o.ranks)});
    if (!(o.seconds >= 1.0 && o.seconds <= 3600.0))
        throw ConfigError({.what = "--limit",
                           .expected = "1 to 3600 seconds",
                           .actual = fmt::format("{}", o.seconds)});
    if (values->contains("probe")) return run_probe((*values)["probe"].as<std::string>(), o);
    const MachineFacts facts = gather_machine(o);
    const std::vector<Finding> findings = judge_machine(facts);
    if ((*values)["json"].as<bool>())
        fmt::print(
            "{}\n",
            to_json(facts, findings).dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
    else
        print_findings(findings);
    return count_problems(findings) == 0 ? 0 : 1;
}

}  // namespace stoa
