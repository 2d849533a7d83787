#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/timex.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "kernels/cpu/isa.h"
#include "launcher/doctor/gather.h"
#include "launcher/tool.h"

namespace stoa {
namespace {

namespace fs = std::filesystem;

std::string first_line(const std::string& path) {
    std::ifstream in(path);
    std::string line;
    std::getline(in, line);
    return line;
}

// "always [madvise] never" -> "madvise"
std::string chosen(const std::string& line) {
    const std::size_t begin = line.find('['), end = line.find(']');
    return begin == std::string::npos || end == std::string::npos
               ? ""
               : line.substr(begin + 1, end - begin - 1);
}

std::string cpu_name() {
    std::ifstream in("/proc/cpuinfo");
    for (std::string line; std::getline(in, line);)
        if (line.starts_with("model name") && line.find(": ") != std::string::npos)
            return line.substr(line.find(": ") + 2);
    return "";
}

std::int64_t memory_line(const std::string& name) {
    std::ifstream in("/proc/meminfo");
    for (std::string line; std::getline(in, line);)
        if (line.starts_with(name + ":")) return std::atoll(line.c_str() + name.size() + 1) * 1024;
    return -1;
}

std::int64_t limit_of(int resource) {
    rlimit limit{};
    getrlimit(static_cast<__rlimit_resource>(resource), &limit);
    return limit.rlim_cur == RLIM_INFINITY ? -1 : static_cast<std::int64_t>(limit.rlim_cur);
}

double quota_cores() {
    std::istringstream in(first_line("/sys/fs/cgroup/cpu.max"));
    double quota = 0.0, period = 0.0;
    return in >> quota >> period && period > 0.0 ? quota / period : -1.0;
}

const char* isa_name() {
    switch (cpu::current_isa()) {
        case cpu::Isa::avx512:
            return "AVX-512";
        case cpu::Isa::avx2:
            return "AVX2";
        default:
            return "no AVX2";
    }
}

}  // namespace

void gather_host(MachineFacts& f) {
    cpu_set_t set;
    CPU_ZERO(&set);
    f.cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    f.quota_cores = quota_cores();
    f.cpu_name = cpu_name();
    f.isa = isa_name();
    f.memory_bytes = memory_line("MemTotal");
    f.memory_available = memory_line("MemAvailable");
    const std::string group = first_line("/sys/fs/cgroup/memory.max");
    if (const std::int64_t most = std::atoll(group.c_str()); most > 0 && most < f.memory_bytes) {
        f.memory_bytes = most;
        const std::int64_t used = std::atoll(first_line("/sys/fs/cgroup/memory.current").c_str());
        f.memory_available = std::min(f.memory_available, most - used);
    }
    f.huge_pages = chosen(first_line("/sys/kernel/mm/transparent_hugepage/enabled"));
    struct statvfs shm {};
    if (statvfs("/dev/shm", &shm) == 0) {
        f.shm_bytes = static_cast<std::int64_t>(shm.f_blocks * shm.f_frsize);
        f.shm_free = static_cast<std::int64_t>(shm.f_bavail * shm.f_frsize);
    }
    f.open_files = limit_of(RLIMIT_NOFILE);
    f.locked_bytes = limit_of(RLIMIT_MEMLOCK);
    std::error_code error;
    f.rdma = fs::is_directory("/sys/class/infiniband", error) &&
             !fs::is_empty("/sys/class/infiniband", error);
    f.root_needs_leave =
        geteuid() == 0 && (std::getenv("OMPI_ALLOW_RUN_AS_ROOT") == nullptr ||
                           std::getenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM") == nullptr);
    timex time{};
    if (const int state = adjtimex(&time); state >= 0)
        f.clock_synchronised = state != TIME_ERROR && (time.status & STA_UNSYNC) == 0 ? 1 : 0;
}

void gather_nvidia(MachineFacts& f, double seconds) {
    std::istringstream version(first_line("/proc/driver/nvidia/version"));
    for (std::string word; f.driver_version.empty() && version >> word;)
        if (word.find('.') != std::string::npos &&
            word.find_first_not_of("0123456789.") == std::string::npos)
            f.driver_version = word;
    if (f.driver_version.empty()) return;
    const ToolOutput log = run_tool({"dmesg"}, seconds);
    if (log.code == 0) {
        f.xid_errors = 0;
        std::istringstream lines(log.out);
        for (std::string line; std::getline(lines, line);)
            if (const std::size_t at = line.find("NVRM: Xid"); at != std::string::npos) {
                ++f.xid_errors;
                f.last_xid = line.substr(at);
            }
    }
    const ToolOutput smi = run_tool({"nvidia-smi",
                                     "--query-gpu=name,memory.total,memory.used,utilization.gpu,"
                                     "ecc.errors.uncorrected.volatile.total",
                                     "--format=csv,noheader,nounits"},
                                    seconds);
    if (smi.late) f.gpu_probe.late = true;
    if (smi.code != 0) return;
    std::istringstream lines(smi.out);
    for (std::string line; std::getline(lines, line);) {
        std::istringstream fields(line);
        GpuFacts g;
        std::string total, used, busy, ecc;
        std::getline(fields, g.name, ',');
        std::getline(fields, total, ',');
        std::getline(fields, used, ',');
        std::getline(fields, busy, ',');
        std::getline(fields, ecc, ',');
        const auto number = [](const std::string& s) {  // "[N/A]" is not one
            return s.find_first_of("0123456789") == std::string::npos ? -1 : std::atoll(s.c_str());
        };
        g.memory_bytes = number(total) << 20;
        g.used_bytes = number(used) < 0 ? -1 : number(used) << 20;
        g.busy_percent = static_cast<int>(number(busy));
        g.ecc_errors = number(ecc);
        f.gpus.push_back(g);
    }
}

}  // namespace stoa
