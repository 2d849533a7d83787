#include <fmt/format.h>

#include <cmath>

#include "launcher/doctor/findings.h"

namespace stoa {
namespace {

using enum FindingStatus;
constexpr double kSkewProblemSeconds = 2.0;  // as `stoa launch` warns

void judge_ranks(std::vector<Finding>& out, const MachineFacts& f) {
    if (f.mpi_probe.late) {
        out.push_back(
            {problem, "mpi",
             fmt::format("`mpirun -n {}` did not answer in time and was ended", f.ranks_asked),
             "try `mpirun -n 2 hostname`; a firewall between interfaces: --mpirun-args "
             "\"--mca oob_tcp_if_include lo\""});
        return;
    }
    if (!f.mpi_probe.error.empty() || f.ranks < f.ranks_asked) {
        out.push_back(
            {problem, "mpi",
             fmt::format("`mpirun -n {}` failed: {}", f.ranks_asked,
                         f.mpi_probe.error.empty() ? fmt::format("{} ranks came up", f.ranks)
                                                   : f.mpi_probe.error),
             "see what `mpirun -n 2 hostname` says"});
        return;
    }
    out.push_back({ok, "mpi",
                   fmt::format("{} ranks on {} host{}: {:.1f} us one way, {:.2f} GB/s{}", f.ranks,
                               f.hosts, f.hosts == 1 ? "" : "s", f.latency_us, f.bandwidth_gb_s,
                               f.layer.empty() ? "" : ", layer " + f.layer)});
    if (std::abs(f.skew_s) > kSkewProblemSeconds)
        out.push_back({problem, "clock",
                       fmt::format("the clock of {} is {:.1f} s {}", f.skew_host,
                                   std::abs(f.skew_s), f.skew_s > 0 ? "ahead" : "behind"),
                       "start chronyd or systemd-timesyncd there: times in its log cannot be "
                       "compared with others"});
    else if (f.hosts > 1)
        out.push_back(
            {ok, "clock", fmt::format("at most {:.1f} ms apart", 1e3 * std::abs(f.skew_s))});
}

}  // namespace

void judge_mpi(std::vector<Finding>& out, const MachineFacts& f) {
    std::string transports;
    for (const std::string& t : f.transports)
        transports += (transports.empty() ? "" : " ") + t;
    out.push_back({ok, "mpi",
                   fmt::format("Open MPI {}{}", f.mpi_library,
                               transports.empty() ? "" : ", transports: " + transports)});
    if (f.mpirun_version.empty()) {
        out.push_back({problem, "mpi", "no mpirun on the PATH",
                       "install openmpi-bin, or add Open MPI's bin to the PATH; one rank and srun "
                       "do without"});
    } else {
        if (f.mpirun_version != f.mpi_library)
            out.push_back({problem, "mpi",
                           fmt::format("mpirun is of version {}, the library of {}",
                                       f.mpirun_version, f.mpi_library),
                           "put the mpirun of the library's version first on the PATH"});
        judge_ranks(out, f);
    }
    if (f.root_needs_leave)
        out.push_back({note, "mpi", "root: a bare mpirun refuses to start; `stoa launch` starts",
                       "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"});
    if (!f.slurm) {
        out.push_back({ok, "slurm", "none here"});
    } else if (!f.slurm_configured && !f.slurm_probe.late) {
        out.push_back({note, "slurm", "its programs are here, a configuration is not",
                       "nothing where no cluster is meant; else install slurm.conf, or set "
                       "SLURM_CONF"});
    } else if (f.slurm_probe.late || !f.slurm_probe.error.empty()) {
        out.push_back({problem, "slurm",
                       f.slurm_probe.late ? "sinfo does not answer" : f.slurm_probe.error,
                       "see `scontrol ping` and the logs of slurmctld"});
    } else {
        out.push_back({f.slurm_pmix ? ok : note, "slurm",
                       f.slurm_version + (f.slurm_pmix ? ", with PMIx" : ", without PMIx"),
                       f.slurm_pmix ? ""
                                    : "`stoa slurm` starts ranks by mpirun; `srun --mpi=pmix` "
                                      "needs SLURM's PMIx plug-in"});
    }
}

}  // namespace stoa
