#include "launcher/doctor/gather.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <hdf5.h>
#include <mpi.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <sstream>

#include "kernels/core/error.h"
#include "kernels/cuda/device.h"
#include "launcher/bundle/bundle.h"
#include "launcher/bundle/inside.h"
#include "launcher/process.h"
#include "launcher/tool.h"

namespace stoa {
namespace {

namespace fs = std::filesystem;

std::string last_words(const std::string& text) {
    std::istringstream lines(text);
    std::string last;
    for (std::string line; std::getline(lines, line);)
        if (line.find_first_not_of(" -\t=*") != std::string::npos) last = line;
    return last.substr(0, 200);
}

// One of our own parts, in the environment of a start of our own (no outer mpirun's).
Output ask(std::vector<std::string> before, const std::string& part, const DoctorOptions& o,
           Asked& asked) {
    for (const std::string& word :
         {this_program(), std::string("doctor"), std::string("--probe"), part, std::string("--dir"),
          o.dir, std::string("--limit"), fmt::format("{}", o.seconds)})
        before.push_back(word);
    const Output out =
        run_all({{.command = before, .environment = clean_environment()}}, o.seconds)[0];
    asked.late = out.code == -1 && !out.err.starts_with("cannot start");
    asked.error = line_of(out.out, "error");
    if (asked.error.empty() && out.code != 0 && !asked.late)
        asked.error = out.err.empty() ? fmt::format("exit code {}", out.code) : last_words(out.err);
    return out;
}

double number(const std::string& text) { return std::atof(text.c_str()); }

// "mpirun (Open MPI) 4.1.4" and "Open MPI v4.1.4, package: ..." -> "4.1.4"
std::string version_in(const std::string& text) {
    const std::size_t at = text.find("Open MPI");
    const std::size_t begin = text.find_first_of("0123456789", at);
    if (at == std::string::npos || begin == std::string::npos) return "";
    return text.substr(begin, text.find_first_not_of("0123456789.", begin) - begin);
}

void gather_mpi(MachineFacts& f, const DoctorOptions& o) {
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
    int length = 0;
    MPI_Get_library_version(text, &length);
    f.mpi_library = version_in(text);
    const ToolOutput version = run_tool({"mpirun", "--version"}, o.seconds);
    f.ranks_asked = o.ranks;
    if (version.missing) return;
    f.mpirun_version = version.late ? f.mpi_library : version_in(version.out);
    std::vector<std::string> start = {"mpirun",
                                      "-q",
                                      "-n",
                                      fmt::format("{}", o.ranks),
                                      "--bind-to",
                                      "none",
                                      "--oversubscribe",
                                      "--mca",
                                      "pml_base_verbose",
                                      "10"};
    start.insert(start.end(), o.mpirun_args.begin(), o.mpirun_args.end());
    const Output out = ask(start, "mpi", o, f.mpi_probe);
    const std::string mark = "select: component ";
    for (std::size_t at = 0; (at = out.err.find(mark, at)) != std::string::npos;) {
        at += mark.size();
        const std::size_t end = out.err.find(' ', at);
        if (out.err.substr(end, 9) == " selected") f.layer = out.err.substr(at, end - at);
    }
    f.ranks = std::atoi(line_of(out.out, "ranks").c_str());
    f.hosts = std::atoi(line_of(out.out, "hosts").c_str());
    f.latency_us = number(line_of(out.out, "latency_us"));
    f.bandwidth_gb_s = number(line_of(out.out, "bandwidth_gb_s"));
    f.skew_s = number(line_of(out.out, "skew_s"));
    f.skew_host = line_of(out.out, "skew_host");
}

// The plug-ins that carry messages: they lie where this program's MPI looks for them.
void gather_transports(MachineFacts& f) {
    std::string dir;
    try {
        const char* moved = std::getenv("OPAL_PKGLIBDIR");
        const std::string self = fs::read_symlink("/proc/self/exe").string();
        dir = moved != nullptr ? moved : find_open_mpi(needs_of({self})[0]).plugins;
    } catch (const Error&) {
        return;  // the probe says whether MPI works
    }
    std::set<std::string> names;
    std::error_code error;
    for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
        const std::string name = it->path().stem().string();
        for (const char* kind : {"mca_btl_", "mca_mtl_", "mca_pml_ucx"})
            if (name.starts_with(kind)) names.insert(name.substr(8));
    }
    f.transports.assign(names.begin(), names.end());
}

void gather_slurm(MachineFacts& f, double seconds) {
    const ToolOutput version = run_tool({"srun", "--version"}, seconds);
    if (version.missing) return;
    f.slurm = true;
    f.slurm_version = version.out.substr(0, version.out.find('\n'));
    const ToolOutput nodes = run_tool({"sinfo", "-h"}, seconds);
    f.slurm_probe.late = nodes.late || version.late;
    f.slurm_configured = nodes.err.find("configuration source") == std::string::npos;
    if (nodes.code != 0 && !nodes.late)
        f.slurm_probe.error = nodes.missing ? "srun is there, sinfo is not" : last_words(nodes.err);
    const ToolOutput kinds = run_tool({"srun", "--mpi=list"}, seconds);
    f.slurm_pmix = (kinds.out + kinds.err).find("pmix") != std::string::npos;
}

void gather_gpus(MachineFacts& f, const DoctorOptions& o) {
    gather_nvidia(f, o.seconds);
    if (f.cuda_toolkit == 0) return;
    Asked asked;
    const Output out = ask({}, "gpu", o, asked);
    f.gpu_probe.late = f.gpu_probe.late || asked.late;
    f.gpu_probe.error = asked.error;
    f.no_gpu_reason = line_of(out.out, "reason");
    const std::size_t count =
        static_cast<std::size_t>(std::atoi(line_of(out.out, "count").c_str()));
    // CUDA_VISIBLE_DEVICES may hide some of those that nvidia-smi lists: then the order is not
    // known.
    if (count != f.gpus.size()) f.gpus.assign(count, {});
    for (std::size_t i = 0; i < count; ++i) {
        GpuFacts& g = f.gpus[i];
        g.name = line_of(out.out, fmt::format("name{}", i));
        g.capability = std::atoi(line_of(out.out, fmt::format("capability{}", i)).c_str());
        g.memory_bytes = std::atoll(line_of(out.out, fmt::format("memory{}", i)).c_str());
        g.gemm_tflops = number(line_of(out.out, fmt::format("gemm{}", i)));
        g.copy_gb_s = number(line_of(out.out, fmt::format("copy{}", i)));
    }
    // NCCL is there where something of ours is linked with it.
    if (void* const symbol = dlsym(RTLD_DEFAULT, "ncclGetVersion"))
        reinterpret_cast<int (*)(int*)>(symbol)(&f.nccl_version);
}

}  // namespace

std::string line_of(const std::string& output, const std::string& name) {
    std::istringstream lines(output);
    for (std::string line; std::getline(lines, line);)
        if (line.starts_with(name + " ")) return line.substr(name.size() + 1);
    return "";
}

MachineFacts gather_machine(const DoctorOptions& o) {
    MachineFacts f;
    f.cuda_toolkit = cuda::toolkit_version();
    gather_host(f);
    gather_gpus(f, o);
    Asked cpu;
    f.gemm_gflops = number(line_of(ask({}, "cpu", o, cpu).out, "gemm"));
    gather_transports(f);
    gather_mpi(f, o);
    gather_slurm(f, o.seconds);
    unsigned major = 0, minor = 0, release = 0;
    H5get_libversion(&major, &minor, &release);
    f.hdf5_version = fmt::format("{}.{}.{}", major, minor, release);
#ifdef H5_HAVE_PARALLEL
    f.hdf5_parallel = true;
#endif
    f.dir = o.dir;
    const Output dir = ask({}, "dir", o, f.dir_probe);
    f.file_system = line_of(dir.out, "type");
    f.dir_free = std::atoll(line_of(dir.out, "free").c_str());
    f.write_mb_s = number(line_of(dir.out, "write_mb_s"));
    f.dir_locks = line_of(dir.out, "locks") == "1";
    return f;
}

}  // namespace stoa
