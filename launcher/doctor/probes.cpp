#include <fcntl.h>
#include <fmt/format.h>
#include <mpi.h>
#include <sys/file.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <set>
#include <thread>
#include <vector>

#include "kernels/core/buffer.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"
#include "launcher/doctor/gather.h"
#include "parallel/mpi_session.h"

namespace stoa {
namespace {

double now_s() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}
double wall_s() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
        .count();
}

// Rank 0 with each other rank in turn. The clock is read there in the middle of the shortest round.
void ping_pong(int rank, int size) {
    constexpr int kRounds = 200, kLarge = 8, kLargeBytes = 4 << 20;
    std::vector<char> large(kLargeBytes);
    double latency = 0.0, bandwidth = 0.0, skew = 0.0;
    std::set<std::string> hosts = {host_name()};
    std::string skew_host;
    for (int peer = 1; peer < size; ++peer) {
        if (rank != 0 && rank != peer) continue;
        double shortest = 1e9, offset = 0.0;
        for (int i = 0; i < kRounds; ++i) {
            double theirs = wall_s();
            if (rank != 0) {
                MPI_Recv(nullptr, 0, MPI_DOUBLE, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
                theirs = wall_s();
                MPI_Send(&theirs, 1, MPI_DOUBLE, 0, 0, MPI_COMM_WORLD);
                continue;
            }
            const double begin = now_s(), mine = wall_s();
            MPI_Send(nullptr, 0, MPI_DOUBLE, peer, 0, MPI_COMM_WORLD);
            MPI_Recv(&theirs, 1, MPI_DOUBLE, peer, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            const double round = now_s() - begin;
            if (round >= shortest) continue;
            shortest = round;
            offset = theirs - (mine + round / 2);
        }
        char name[256] = {};
        double best = 1e9;
        for (int i = 0; i < kLarge; ++i) {
            const double begin = now_s();
            if (rank == 0) {
                MPI_Send(large.data(), kLargeBytes, MPI_CHAR, peer, 1, MPI_COMM_WORLD);
                MPI_Recv(name, sizeof name, MPI_CHAR, peer, 2, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            } else {
                std::strncpy(name, host_name().c_str(), sizeof name - 1);
                MPI_Recv(large.data(), kLargeBytes, MPI_CHAR, 0, 1, MPI_COMM_WORLD,
                         MPI_STATUS_IGNORE);
                MPI_Send(name, sizeof name, MPI_CHAR, 0, 2, MPI_COMM_WORLD);
            }
            best = std::min(best, now_s() - begin);
        }
        if (rank != 0) continue;
        hosts.insert(name);
        latency = std::max(latency, shortest / 2);
        const double rate = kLargeBytes / best * 1e-9;
        bandwidth = peer == 1 ? rate : std::min(bandwidth, rate);
        if (std::abs(offset) > std::abs(skew)) {
            skew = offset;
            skew_host = name;
        }
    }
    if (rank == 0)
        fmt::print(
            "ranks {}\nhosts {}\nlatency_us {}\nbandwidth_gb_s {}\nskew_s {}\nskew_host {}\n", size,
            hosts.size(), latency * 1e6, bandwidth, skew, skew_host);
}

std::string file_system_name(long magic) {
    switch (magic) {
        case 0x6969:
            return "NFS";
        case 0x0BD00BD0:
            return "Lustre";
        case 0x47504653:
            return "GPFS";
        case 0x19830326:
            return "BeeGFS";
        case 0x794c7630:
            return "overlay";
        case 0x01021994:
            return "tmpfs";
        case 0xEF53:
            return "ext4";
        case 0x58465342:
            return "XFS";
        case 0x9123683E:
            return "btrfs";
        default:
            return fmt::format("file system {:x}", magic);
    }
}

int give_up(const std::string& what) {
    fmt::print("error {}: {}\n", what, std::strerror(errno));
    return 1;
}

/// GFLOP/s of one matmul, the best of some.
double gemm_rate(std::int64_t n, DType dtype, Device device, Stream stream) {
    const std::int64_t bytes = n * n * size_of(dtype);
    Buffer host;
    cuda::DeviceBuffer on_device;
    std::byte* data = nullptr;
    if (device.is_cuda()) {
        on_device = cuda::DeviceBuffer(3 * bytes);
        data = on_device.data();
        cuda::fill_bytes(data, 0, 3 * bytes, stream);
    } else {
        host = Buffer(3 * bytes);
        data = host.data();
    }
    const auto view = [&](int i) {
        return TensorView{data + i * bytes, dtype, Shape{n, n}, device};
    };
    double best = 0.0;
    for (int i = 0; i < 6; ++i) {
        const double begin = now_s();
        matmul({.c = view(0), .a = view(1), .b = view(2), .transpose_b = true}, {device, stream});
        if (device.is_cuda()) cuda::synchronize(stream);
        const double rate =
            2e-9 * static_cast<double>(n * n) * static_cast<double>(n) / (now_s() - begin);
        if (i > 0) best = std::max(best, rate);  // the first one warms up
    }
    return best;
}

}  // namespace

int probe_mpi(double seconds) {
    alarm(static_cast<unsigned>(seconds) + 1);  // mpirun may be gone, and a peer silent
    if (MPI_Init(nullptr, nullptr) != MPI_SUCCESS) return 1;
    int rank = 0, size = 1;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    ping_pong(rank, size);
    MPI_Finalize();
    return 0;
}

int probe_directory(const std::string& dir) {
    struct statfs info {};
    if (statfs(dir.c_str(), &info) != 0) return give_up("cannot be read");
    fmt::print("type {}\nfree {}\n", file_system_name(info.f_type),
               static_cast<std::int64_t>(info.f_bavail) * info.f_bsize);
    std::string path = dir + "/.stoa-doctor-XXXXXX";
    const int fd = mkstemp(path.data());
    if (fd < 0) return give_up("cannot be written");
    const int again = open(path.c_str(), O_RDWR | O_CLOEXEC);
    // Two openings of one file stand for two processes: the second has to be refused.
    const bool locks = flock(fd, LOCK_EX | LOCK_NB) == 0 && again >= 0 &&
                       flock(again, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    unlink(path.c_str());
    const std::vector<char> chunk(std::size_t{4} << 20, 'x');
    const double begin = now_s();
    std::int64_t written = 0;
    for (int i = 0; i < 16 && now_s() - begin < 3.0; ++i) {
        const ssize_t n = write(fd, chunk.data(), chunk.size());
        if (n <= 0) return give_up("cannot be written");
        written += n;
    }
    if (fsync(fd) != 0) return give_up("fsync");
    fmt::print("write_mb_s {}\nlocks {}\n", 1e-6 * static_cast<double>(written) / (now_s() - begin),
               locks ? 1 : 0);
    return 0;
}

int probe_gpu() {
    std::string reason;
    const auto devices = cuda::list_devices(reason);
    fmt::print("reason {}\ncount {}\n", reason, devices.size());
    for (std::size_t i = 0; i < devices.size(); ++i)
        fmt::print("name{0} {1}\ncapability{0} {2}\nmemory{0} {3}\n", i, devices[i].name,
                   devices[i].capability, devices[i].memory_bytes);
    std::fflush(stdout);
    if (devices.empty()) return 0;
    try {  // GPU 0: ranks choose theirs one by one, and alike ones are as fast
        const cuda::CudaStream stream;
        constexpr std::int64_t kBytes = std::int64_t{256} << 20;
        fmt::print("gemm0 {}\n",
                   1e-3 * gemm_rate(8192, DType::bf16, {DeviceKind::cuda, 0}, stream.stream()));
        const Buffer host(kBytes);
        const cuda::DeviceBuffer there(kBytes);
        cuda::Stopwatch watch(stream.stream());
        double best = 0.0;
        for (int i = 0; i < 4; ++i) {
            watch.start();
            cuda::copy_to_device(there.data(), host.data(), kBytes, stream.stream());
            best = std::max(best, static_cast<double>(kBytes) * 1e-6 / watch.stop_ms());
        }
        fmt::print("copy0 {}\n", best);
    } catch (const Error& e) {
        fmt::print("error {}\n", e.fields().what + " " + e.fields().actual);
        return 1;
    }
    return 0;
}

int probe_cpu() {
    cpu_set_t set;
    CPU_ZERO(&set);
    sched_getaffinity(0, sizeof set, &set);
    set_cpu_threads(std::max(1, CPU_COUNT(&set)));
    fmt::print("gemm {}\n", gemm_rate(768, DType::fp32, {}, {}));
    return 0;
}

}  // namespace stoa
