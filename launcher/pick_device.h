#pragma once
// Which GPU each rank computes on, or that all compute on the CPU: decided by every rank alike,
// from what all of them see.
#include <memory>
#include <string>
#include <vector>

#include "configs/run_config.h"
#include "kernels/cuda/device.h"
#include "parallel/communicator.h"

namespace stoa {

/// What one rank sees.
struct RankDevices {
    std::string host;
    std::vector<cuda::DeviceInfo> devices;
    std::string reason;  // why there are none
};

struct DevicePick {
    Device device;         // of this rank
    int capability = 0;    // of every rank's GPU, 90 for sm_90; 0: the CPU
    int sharers = 1;       // ranks on this GPU
    bool all_own = false;  // every rank has a GPU of its own
    std::string notice;    // for the log of rank 0
};
/// The GPU of a rank is the one of its number among the ranks of its host, of those that it sees.
/// `ranks`: of all ranks, by rank     comm: none
/// errors: DeviceError, the same on every rank, that names rank, host, reason and what to do:
///         cuda is asked for and a rank has no GPU; only some ranks have one; ranks would share one
///         unasked; a GPU is older than sm_80; the ranks' GPUs are of several architectures
DevicePick pick_device(DeviceChoice choice, const std::vector<RankDevices>& ranks, int rank);

/// The same, after the ranks have told each other.     comm: a gather and a broadcast over `world`
DevicePick pick_device(DeviceChoice choice, const Communicator& world);

/// How long a group of ranks tries to connect over NCCL: many hosts take their time.
constexpr double kNcclDeadline_s = 120.0;

/// Makes it the calling thread's, and a stream on it; null on the CPU.     errors: DeviceError
std::unique_ptr<cuda::CudaStream> open_device(Device device);

}  // namespace stoa
