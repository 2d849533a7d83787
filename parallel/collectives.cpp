#include "parallel/collectives.h"

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "parallel/check_mpi.h"

namespace stoa {
namespace {

// A running total for the step line; read and reset by take_comm_seconds().
double comm_seconds = 0.0;

struct CommTimer {
    std::chrono::steady_clock::time_point begin = std::chrono::steady_clock::now();
    ~CommTimer() {
        comm_seconds +=
            std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
};

MPI_Op mpi_op(ReduceOp op) {
    return op == ReduceOp::sum ? MPI_SUM : op == ReduceOp::max ? MPI_MAX : MPI_MIN;
}

// MPI knows no bf16: a pair is added in fp32 and rounded once. Addition commutes, so every rank of
// a recursive-doubling exchange gets the same bits.
void add_bf16(void* in, void* inout, int* count, MPI_Datatype*) {
    const auto* a = static_cast<const bf16*>(in);
    auto* b = static_cast<bf16*>(inout);
    for (int i = 0; i < *count; ++i)
        b[i] = to_bf16(to_float(a[i]) + to_float(b[i]));
}

void mpi_all_reduce(void* data, std::int64_t count, DType dtype, ReduceOp op,
                    const Communicator& comm) {
    constexpr std::int64_t kMaxCount = 1 << 30;  // MPI counts are ints
    MPI_Datatype type = dtype == DType::fp32   ? MPI_FLOAT
                        : dtype == DType::fp64 ? MPI_DOUBLE
                        : dtype == DType::bf16 ? MPI_UINT16_T
                                               : MPI_INT32_T;
    MPI_Op reduce = mpi_op(op);
    if (dtype == DType::bf16) {
        if (op != ReduceOp::sum)
            throw ShapeError({.what = "all_reduce of bf16", .expected = "sum"});
        check_mpi(MPI_Op_create(&add_bf16, /*commute=*/1, &reduce), "MPI_Op_create", comm);
    }
    for (std::int64_t done = 0; done < count; done += kMaxCount) {
        const auto n = static_cast<int>(std::min(kMaxCount, count - done));
        check_mpi(MPI_Allreduce(MPI_IN_PLACE, static_cast<std::byte*>(data) + done * size_of(dtype),
                                n, type, reduce, comm.handle()),
                  "all_reduce", comm);
    }
    if (dtype == DType::bf16) MPI_Op_free(&reduce);
}

}  // namespace

void all_reduce(TensorView t, ReduceOp op, const Communicator& comm, Stream) {
    if (comm.size() == 1) return;
    if (t.device.is_cuda())
        throw DeviceError({.what = "all_reduce of GPU memory", .expected = "a build with NCCL"});
    const CommTimer timer;
    constexpr std::int64_t kMessageBytes = 1 << 14;  // up to here the ranks' meeting is the cost
    if (SharedSum* const shared = comm.shared_sum();
        shared != nullptr && op == ReduceOp::sum && t.bytes() > kMessageBytes) {
        if (t.dtype == DType::fp32) return shared->sum(t.as<float>().data(), t.numel());
        if (t.dtype == DType::bf16) return shared->sum(t.as<bf16>().data(), t.numel());
    }
    mpi_all_reduce(t.data, t.numel(), t.dtype, op, comm);
}

double all_reduce_scalar(double value, ReduceOp op, const Communicator& comm) {
    if (comm.size() == 1) return value;
    const CommTimer timer;
    mpi_all_reduce(&value, 1, DType::fp64, op, comm);
    return value;
}

std::int64_t all_reduce_scalar(std::int64_t value, ReduceOp op, const Communicator& comm) {
    if (comm.size() == 1) return value;
    const CommTimer timer;
    check_mpi(MPI_Allreduce(MPI_IN_PLACE, &value, 1, MPI_INT64_T, mpi_op(op), comm.handle()),
              "all_reduce", comm);
    return value;
}

std::string broadcast(std::string text, int root, const Communicator& comm) {
    if (comm.size() == 1) return text;
    auto bytes = static_cast<std::int64_t>(text.size());
    check_mpi(MPI_Bcast(&bytes, 1, MPI_INT64_T, root, comm.handle()), "broadcast", comm);
    text.resize(static_cast<std::size_t>(bytes));
    check_mpi(MPI_Bcast(text.data(), static_cast<int>(bytes), MPI_CHAR, root, comm.handle()),
              "broadcast", comm);
    return text;
}

void barrier(const Communicator& comm) {
    if (comm.size() == 1) return;
    check_mpi(MPI_Barrier(comm.handle()), "barrier", comm);
}

double take_comm_seconds() {
    const double s = comm_seconds;
    comm_seconds = 0.0;
    return s;
}

}  // namespace stoa
