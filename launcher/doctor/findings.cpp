#include "launcher/doctor/findings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace stoa {
namespace {

using enum FindingStatus;
constexpr double kGiB = 1 << 30;
constexpr std::int64_t kMiB = 1 << 20;

double gib(std::int64_t bytes) { return static_cast<double>(bytes) / kGiB; }

void judge_memory(std::vector<Finding>& out, const MachineFacts& f) {
    if (f.memory_bytes > 0) {
        const bool little = f.memory_available < (std::int64_t{1} << 30);
        out.push_back({little ? problem : ok, "memory",
                       fmt::format("{:.1f} GiB, {:.1f} available", gib(f.memory_bytes),
                                   gib(f.memory_available)),
                       little ? "end other programs, or give the container more memory" : ""});
    }
    if (f.huge_pages == "never")
        out.push_back({problem, "memory", "transparent huge pages: never",
                       "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (as root)"});
    else if (f.huge_pages.empty())
        out.push_back({note, "memory", "transparent huge pages: this kernel does not say"});
    else
        out.push_back({ok, "memory", "transparent huge pages: " + f.huge_pages});
    // MPI's segments and the ranks' boards live there.
    if (f.shm_free < 256 * kMiB)
        out.push_back({problem, "memory",
                       f.shm_bytes < 0 ? "there is no /dev/shm"
                                       : fmt::format("/dev/shm has {} MiB, {} free",
                                                     f.shm_bytes / kMiB, f.shm_free / kMiB),
                       "docker run --shm-size=2g, or mount -o remount,size=2g /dev/shm"});
    else
        out.push_back({ok, "memory",
                       fmt::format("/dev/shm has {:.1f} GiB, {:.1f} free", gib(f.shm_bytes),
                                   gib(f.shm_free))});
}

void judge_limits(std::vector<Finding>& out, const MachineFacts& f) {
    if (f.open_files >= 0 && f.open_files < 1024)
        out.push_back({problem, "limits", fmt::format("open files: {}", f.open_files),
                       "ulimit -n 65536, or nofile in /etc/security/limits.conf"});
    else
        out.push_back({ok, "limits",
                       f.open_files < 0 ? "open files: no limit"
                                        : fmt::format("open files: {}", f.open_files)});
    const bool little = f.locked_bytes >= 0 && f.locked_bytes < 64 * kMiB;
    const std::string locked = f.locked_bytes < 0
                                   ? "locked memory: no limit"
                                   : fmt::format("locked memory: {} KiB", f.locked_bytes / 1024);
    if (!little)
        out.push_back({ok, "limits", locked});
    else
        out.push_back({f.rdma ? problem : note, "limits",
                       locked + (f.rdma ? ", with an RDMA network card" : ""),
                       f.rdma ? "ulimit -l unlimited, or memlock in /etc/security/limits.conf "
                                "(docker run --ulimit memlock=-1)"
                              : "enough without an RDMA network card"});
}

}  // namespace

void judge_host(std::vector<Finding>& out, const MachineFacts& f) {
    std::string cpu = fmt::format("{} cores, {}", f.cores, f.isa);
    if (!f.cpu_name.empty()) cpu += ", " + f.cpu_name;
    if (f.gemm_gflops > 0.0) cpu += fmt::format(", measured {:.0f} GFLOP/s (fp32)", f.gemm_gflops);
    out.push_back({ok, "cpu", cpu});
    if (f.quota_cores > 0.0 && f.quota_cores < 0.95 * f.cores)
        out.push_back(
            {note, "cpu",
             fmt::format("the container may use {:.1f} cores of {}", f.quota_cores, f.cores),
             fmt::format(
                 "set parallel.device='cpu N' so that all ranks together have {:.0f} threads",
                 std::max(1.0, std::floor(f.quota_cores)))});
    judge_memory(out, f);
    judge_limits(out, f);
}

void judge_storage(std::vector<Finding>& out, const MachineFacts& f) {
    out.push_back({ok, "hdf5",
                   fmt::format("{}, {}", f.hdf5_version,
                               f.hdf5_parallel ? "parallel" : "not parallel (not needed)")});
    if (f.dir_probe.late) {
        out.push_back({problem, "directory", fmt::format("{} does not answer", f.dir),
                       "see whether its server (NFS, Lustre) is up, or choose another directory"});
        return;
    }
    if (!f.dir_probe.error.empty()) {
        out.push_back({problem, "directory", fmt::format("{}: {}", f.dir, f.dir_probe.error),
                       "make it writable, or choose another with run.dir=PATH"});
        return;
    }
    const bool little = f.dir_free < (std::int64_t{1} << 30);
    out.push_back({little ? problem : ok, "directory",
                   fmt::format("{} ({}): {:.1f} GiB free, writes {:.0f} MB/s with fsync", f.dir,
                               f.file_system, gib(f.dir_free), f.write_mb_s),
                   little ? "free space, or choose another with run.dir=PATH" : ""});
    if (!f.dir_locks)
        out.push_back(
            {problem, "directory", fmt::format("{}: files cannot be locked", f.dir),
             "mount it with locks (Lustre: -o flock), or choose another with run.dir=PATH"});
}

std::vector<Finding> judge_machine(const MachineFacts& f) {
    std::vector<Finding> out;
    judge_gpus(out, f);
    judge_host(out, f);
    judge_mpi(out, f);
    judge_storage(out, f);
    if (f.clock_synchronised == 0)
        out.push_back({note, "clock", "the kernel's clock is not synchronised",
                       "timedatectl set-ntp true, or start chronyd: times of several hosts are "
                       "compared in logs"});
    else
        out.push_back({ok, "clock", f.clock_synchronised > 0 ? "synchronised" : "not known"});
    return out;
}

int count_problems(const std::vector<Finding>& findings) {
    return static_cast<int>(std::ranges::count(findings, FindingStatus::problem, &Finding::status));
}

const char* status_name(FindingStatus status) {
    return status == ok ? "ok" : status == note ? "note" : "problem";
}

}  // namespace stoa
