#pragma once
// What a machine is like, as far as a run depends on it: plain values, so that tests can describe
// machines that are not there. Numbers that are not known are -1, texts "".
#include <cstdint>
#include <string>
#include <vector>

namespace stoa {

struct GpuFacts {
    std::string name;
    int capability = 0;  // 90 = sm_90
    std::int64_t memory_bytes = 0, used_bytes = -1;
    int busy_percent = -1;
    std::int64_t ecc_errors = -1;               // uncorrected, since the driver started
    double gemm_tflops = 0.0, copy_gb_s = 0.0;  // measured; 0: not
};

/// How a part that was asked for in a process of its own ended.
struct Asked {
    bool late = false;  // ended by us at the deadline
    std::string error;  // "" where it answered
};

struct MachineFacts {
    // GPUs
    int cuda_toolkit = 0;  // 13000; 0: a build without CUDA
    std::string driver_version, no_gpu_reason;
    std::vector<GpuFacts> gpus;
    int xid_errors = -1;  // lines of the kernel's log
    std::string last_xid;
    Asked gpu_probe;
    int nccl_version = 0;  // 22803; 0: not linked
    // processor
    int cores = 0;
    double quota_cores = -1.0;  // of a container
    std::string cpu_name, isa;
    double gemm_gflops = 0.0;
    // memory and limits
    std::int64_t memory_bytes = -1, memory_available = -1;
    std::string huge_pages;  // "always" | "madvise" | "never"
    std::int64_t shm_bytes = -1, shm_free = -1;
    std::int64_t open_files = -1, locked_bytes = -1;  // -1: no limit
    bool rdma = false;                                // a network card whose memory is locked
    // MPI
    std::string mpi_library, mpirun_version;  // "4.1.4"
    std::vector<std::string> transports;      // that this Open MPI has
    std::string layer;                        // that the ranks chose: "ob1", "ucx", "cm"
    bool root_needs_leave = false;  // root, and the variables that mpirun asks for are not set
    Asked mpi_probe;
    int ranks_asked = 0, ranks = 0, hosts = 0;
    double latency_us = 0.0, bandwidth_gb_s = 0.0;
    double skew_s = 0.0;  // the largest of all ranks, from rank 0's clock
    std::string skew_host;
    // the rest
    bool slurm = false, slurm_configured = false, slurm_pmix = false;
    std::string slurm_version;
    Asked slurm_probe;
    std::string hdf5_version;
    bool hdf5_parallel = false;
    std::string dir, file_system;
    std::int64_t dir_free = -1;
    double write_mb_s = 0.0;  // with fsync
    bool dir_locks = false;
    Asked dir_probe;
    int clock_synchronised = -1;  // 0, 1
};

}  // namespace stoa
