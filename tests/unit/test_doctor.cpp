// What `stoa doctor` says about machines that are described here.
#include <algorithm>

#include "launcher/doctor/findings.h"
#include "launcher/doctor/gather.h"
#include "tests/support/catch.h"

using namespace stoa;
using enum FindingStatus;

namespace {

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

GpuFacts h100() {
    return {.name = "NVIDIA H100 80GB HBM3",
            .capability = 90,
            .memory_bytes = 80 * kGiB,
            .used_bytes = 0,
            .busy_percent = 0,
            .ecc_errors = 0};
}

// Two H100, a driver that fits, and nothing wrong.
MachineFacts good_machine() {
    MachineFacts f;
    f.cuda_toolkit = 13000;
    f.driver_version = "580.82.07";
    f.gpus = {h100(), h100()};
    f.xid_errors = 0;
    f.nccl_version = 22809;
    f.cores = 32;
    f.isa = "AVX-512";
    f.memory_bytes = 256 * kGiB;
    f.memory_available = 240 * kGiB;
    f.huge_pages = "madvise";
    f.shm_bytes = f.shm_free = 128 * kGiB;
    f.open_files = 65536;
    f.rdma = true;
    f.mpi_library = f.mpirun_version = "4.1.4";
    f.ranks_asked = f.ranks = 2;
    f.hosts = 2;
    f.slurm = f.slurm_configured = f.slurm_pmix = true;
    f.dir_free = 1000 * kGiB;
    f.dir_locks = true;
    f.clock_synchronised = 1;
    return f;
}

// The one problem that is not there on the good machine, as "found -> fix".
std::string only_problem(const MachineFacts& f) {
    std::string text;
    for (const Finding& one : judge_machine(f))
        if (one.status == problem) {
            CHECK(!one.fix.empty());
            CHECK((one.found + one.fix).find('\n') == std::string::npos);
            CHECK(text.empty());
            text = one.found + " -> " + one.fix;
        }
    return text;
}

bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a good machine has no problem and no note") {
    for (const Finding& f : judge_machine(good_machine())) {
        CAPTURE(f.found);
        CHECK(f.status == ok);
    }
}

TEST_CASE("GPUs and drivers") {
    MachineFacts f = good_machine();
    SECTION("a driver that is older than the toolkit") {
        f.driver_version = "535.104.05";
        const std::string text = only_problem(f);
        CHECK(has(text, "535.104.05"));
        CHECK(has(text, "580.65.06"));
        f.cuda_toolkit = 12040;  // for which it is new enough
        CHECK(only_problem(f).empty());
        f.driver_version = "525.60.13";  // the oldest
        CHECK(only_problem(f).empty());
        f.driver_version = "525.60.11";
        CHECK(has(only_problem(f), "525.60.13"));
    }
    SECTION("mixed GPUs") {
        f.gpus[1].name = "NVIDIA A100-SXM4-40GB";
        f.gpus[1].capability = 80;
        const std::string text = only_problem(f);
        CHECK(has(text, "A100"));
        CHECK(has(text, "CUDA_VISIBLE_DEVICES"));
    }
    SECTION("one is full, or busy") {
        f.gpus[1].used_bytes = 70 * kGiB;
        CHECK(has(only_problem(f), "GPU 1"));
        f.gpus[1].used_bytes = kGiB;
        CHECK(only_problem(f).empty());
        f.gpus[1].busy_percent = 97;
        CHECK(has(only_problem(f), "97% busy"));
    }
    SECTION("ECC and Xid errors") {
        f.gpus[0].ecc_errors = 3;
        CHECK(has(only_problem(f), "3 uncorrected ECC errors"));
        f.gpus[0].ecc_errors = 0;
        f.xid_errors = 2;
        f.last_xid = "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.";
        CHECK(has(only_problem(f), "79"));
    }
    SECTION("a driver that hangs, and one that shows no GPU") {
        f.gpu_probe.late = true;
        CHECK(has(only_problem(f), "does not answer"));
        f.gpu_probe.late = false;
        f.gpus.clear();
        f.no_gpu_reason = "no CUDA-capable device is detected";
        CHECK(has(only_problem(f), "no CUDA-capable device"));
    }
    SECTION("without a driver a CUDA build runs on the CPU") {
        f.gpus.clear();
        f.driver_version.clear();
        CHECK(only_problem(f).empty());
    }
    SECTION("a build without CUDA minds none of it") {
        f.cuda_toolkit = 0;
        f.gpus[1].busy_percent = 97;
        f.gpus[1].name = "other";
        CHECK(only_problem(f).empty());
    }
}

TEST_CASE("memory and limits") {
    MachineFacts f = good_machine();
    SECTION("transparent huge pages") {
        f.huge_pages = "never";
        CHECK(has(only_problem(f), "echo madvise"));
        f.huge_pages = "always";
        CHECK(only_problem(f).empty());
    }
    SECTION("Docker's /dev/shm") {
        f.shm_bytes = f.shm_free = 64 << 20;
        CHECK(has(only_problem(f), "--shm-size"));
        f.shm_bytes = f.shm_free = -1;
        CHECK(has(only_problem(f), "no /dev/shm"));
    }
    SECTION("64 KiB of locked memory matter to RDMA alone") {
        f.locked_bytes = 64 << 10;
        CHECK(has(only_problem(f), "64 KiB"));
        f.rdma = false;
        CHECK(only_problem(f).empty());
    }
    SECTION("open files") {
        f.open_files = 256;
        CHECK(has(only_problem(f), "ulimit -n"));
    }
}

TEST_CASE("MPI, SLURM, storage, clocks") {
    MachineFacts f = good_machine();
    SECTION("no mpirun, another one, one that hangs, one that fails") {
        f.mpirun_version = "5.0.1";
        CHECK(has(only_problem(f), "5.0.1"));
        f.mpirun_version.clear();
        f.ranks = 0;
        CHECK(has(only_problem(f), "no mpirun"));
        f.mpirun_version = "4.1.4";
        CHECK(has(only_problem(f), "0 ranks"));
        f.mpi_probe.late = true;
        CHECK(has(only_problem(f), "was ended"));
        f.mpi_probe = {.error = "not enough slots"};
        CHECK(has(only_problem(f), "not enough slots"));
    }
    SECTION("clocks 3 s apart") {
        f.skew_s = -3.0;
        f.skew_host = "node2";
        CHECK(has(only_problem(f), "node2 is 3.0 s behind"));
        f.skew_s = 1.9;
        CHECK(only_problem(f).empty());
    }
    SECTION("SLURM") {
        f.slurm_probe.late = true;
        CHECK(has(only_problem(f), "sinfo"));
        f.slurm_probe.late = false;
        f.slurm_pmix = f.slurm_configured = false;  // notes
        CHECK(only_problem(f).empty());
    }
    SECTION("the directory") {
        f.dir_locks = false;
        CHECK(has(only_problem(f), "locked"));
        f.dir_locks = true;
        f.dir_free = 1 << 20;
        CHECK(has(only_problem(f), "free space"));
        f.dir_probe.error = "cannot be written: Read-only file system";
        CHECK(has(only_problem(f), "Read-only"));
        f.dir_probe.late = true;
        CHECK(has(only_problem(f), "does not answer"));
    }
}

TEST_CASE("a probe's lines are read by their names") {
    const std::string text = "noise\nranks 2\nskew_host node 2\nskew_s -0.5\n";
    CHECK(line_of(text, "ranks") == "2");
    CHECK(line_of(text, "skew_host") == "node 2");
    CHECK(line_of(text, "skew").empty());
}
