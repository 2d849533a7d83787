#include "parallel/collectives.h"

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "kernels/device_memory.h"
#include "kernels/elementwise.h"
#include "parallel/check_mpi.h"
#include "parallel/machine_parts.h"
#include "parallel/message_parts.h"
#include "parallel/message_sum.h"
#include "parallel/nccl_group.h"
#include "parallel/staged.h"

namespace stoa {
namespace {

constexpr std::int64_t kLocalGrain = std::int64_t{1} << 16;  // values worth a thread's while

MPI_Op mpi_op(ReduceOp op) {
    return op == ReduceOp::sum ? MPI_SUM : op == ReduceOp::max ? MPI_MAX : MPI_MIN;
}

const char* reduce_name(ReduceOp op) {
    return op == ReduceOp::sum ? "sum" : op == ReduceOp::max ? "max" : "min";
}

template <class Part>
std::int64_t count_of(std::span<const Part> parts) {
    std::int64_t n = 0;
    for (const Part& p : parts)
        n += p.count();
    return n;
}

void mpi_all_reduce(void* data, std::int64_t count, DType dtype, ReduceOp op,
                    const Communicator& comm) {
    constexpr std::int64_t kMaxCount = 1 << 30;  // MPI counts are ints
    const MPI_Datatype type = dtype == DType::fp32   ? MPI_FLOAT
                              : dtype == DType::fp64 ? MPI_DOUBLE
                                                     : MPI_INT32_T;
    if (dtype == DType::bf16) throw ShapeError({.what = "all_reduce of bf16", .expected = "sum"});
    for (std::int64_t done = 0; done < count; done += kMaxCount) {
        const auto n = static_cast<int>(std::min(kMaxCount, count - done));
        check_mpi(MPI_Allreduce(MPI_IN_PLACE, static_cast<std::byte*>(data) + done * size_of(dtype),
                                n, type, mpi_op(op), comm.handle()),
                  "all_reduce", comm);
    }
}

bool by_machines(DType dtype, SumOrder order, std::int64_t bytes, const Communicator& comm) {
    const MachineGroups* const g = comm.machine_groups();
    return g != nullptr && dtype == DType::fp32 && order == SumOrder::chain &&
           chain_pays(g->rail.size(), g->machine.size(), bytes);
}

std::int64_t total_bytes(std::span<const PartSum> parts) {
    std::int64_t bytes = 0;
    for (const PartSum& p : parts)
        bytes += p.values.bytes();
    return bytes;
}

/// The chain for all ranks: each sums a slice, which then goes to the others.
void sum_by_machines(float* out, const float* in, std::int64_t count, bool add,
                     const Communicator& comm) {
    std::vector<PartSum> sums;
    std::vector<PartCopy> copies;
    for (int r = 0; r < comm.size(); ++r) {
        const std::int64_t begin = count * r / comm.size(),
                           n = count * (r + 1) / comm.size() - begin;
        const TensorView total{reinterpret_cast<std::byte*>(out + begin), DType::fp32, {n}, {}};
        sums.push_back(
            {r, total, {reinterpret_cast<const std::byte*>(in + begin), DType::fp32, {n}, {}}});
        copies.push_back({r, total});
    }
    machine_sum_parts(sums, add, *comm.machine_groups());
    machine_gather_parts(copies, *comm.machine_groups());
}

template <class T>
void sum(T* out, const T* in, std::int64_t count, SumOrder order, bool add,
         const Communicator& comm) {
    if constexpr (std::is_same_v<T, float>)
        if (by_machines(DType::fp32, order, count * size_of(DType::fp32), comm))
            return sum_by_machines(out, in, count, add, comm);
    if constexpr (!std::is_same_v<T, double>) {
        SharedMemory* const shared = comm.shared_memory();
        if (shared != nullptr && count * static_cast<std::int64_t>(sizeof(T)) > kMessageBytes)
            return shared->sum(out, in, count, order, add);
    }
    message_sum(out, in, count, order, add, comm);
}

/// fn of the element type; false where sums know it not.
template <class Fn>
bool for_summed_dtype(DType dtype, const Fn& fn) {
    if (dtype == DType::fp32) return fn(float{}), true;
    if (dtype == DType::fp64) return fn(double{}), true;
    if (dtype == DType::bf16) return fn(bf16{}), true;
    return false;
}

bool by_nccl(const Communicator& comm, bool sums) {
    return comm.nccl() != nullptr && (!sums || comm.fast_sums());
}
NcclGroup::Op nccl_op(ReduceOp op) {
    return op == ReduceOp::sum   ? NcclGroup::Op::sum
           : op == ReduceOp::max ? NcclGroup::Op::max
                                 : NcclGroup::Op::min;
}

/// A rank alone, on a GPU.
void local_chain(TensorView total, bool add_to, ConstTensorView values, Stream stream) {
    const Exec exec{total.device, stream};
    if (add_to) return add(total, total, values, exec);
    if (total.data != values.data) copy(total, values, exec);
}

}  // namespace

void all_reduce(TensorView t, ReduceOp op, const Communicator& comm, Stream stream, Site site) {
    if (comm.size() == 1) return;
    if (t.device.is_cuda() && by_nccl(comm, op == ReduceOp::sum)) {
        const CollectiveScope scope{"all_reduce",        comm, t.numel(),
                                    dtype_name(t.dtype), site, reduce_name(op)};
        return comm.nccl()->all_reduce(t, nccl_op(op), stream);
    }
    if (t.device.is_cuda()) {
        Staged staged(t.bytes(), t.device, comm, stream);
        const TensorView host = staged.take(t);
        staged.wait();
        all_reduce(host, op, comm, {}, site);
        return staged.put(t, host);
    }
    const CollectiveScope scope{"all_reduce",        comm, t.numel(),
                                dtype_name(t.dtype), site, reduce_name(op)};
    const CommTimer timer;
    if (op == ReduceOp::sum && for_summed_dtype(t.dtype, [&]<class T>(T) {
            sum(t.template as<T>().data(), t.template as<T>().data(), t.numel(), SumOrder::tree,
                false, comm);
        }))
        return;
    mpi_all_reduce(t.data, t.numel(), t.dtype, op, comm);
}

void chain_sum(TensorView total, bool add, ConstTensorView values, const Communicator& comm,
               Stream stream, Site site) {
    if (total.dtype != values.dtype || total.numel() != values.numel())
        throw ShapeError({.what = "chain_sum", .expected = "total and values alike"});
    if (total.device.is_cuda() && comm.size() == 1) return local_chain(total, add, values, stream);
    if (total.device.is_cuda() && !add && by_nccl(comm, /*sums=*/true)) {
        const CollectiveScope scope{"chain_sum", comm,  total.numel(), dtype_name(total.dtype),
                                    site,        "fast"};
        if (total.data != values.data) copy(total, values, {total.device, stream});
        return comm.nccl()->all_reduce(total, NcclGroup::Op::sum, stream);
    }
    if (total.device.is_cuda()) {
        Staged staged(staged_chain_bytes(values), total.device, comm, stream);
        const TensorView in = staged.take(values);
        const TensorView out = add ? staged.take(total) : staged.place(total);
        staged.wait();
        chain_sum(out, add, in, comm, {}, site);
        return staged.put(total, out);
    }
    const CollectiveScope scope{
        "chain_sum", comm, total.numel(), dtype_name(total.dtype), site, add ? "add" : "first"};
    const CommTimer timer;
    const bool known = for_summed_dtype(total.dtype, [&]<class T>(T) {
        T* const out = total.as<T>().data();
        const T* const in = values.as<T>().data();
        if (comm.size() > 1) return sum(out, in, total.numel(), SumOrder::chain, add, comm);
        if (!add && out == in) return;
        parallel_for(total.numel(), kLocalGrain, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; i += kSumStrip)
                sum_of_ranks(
                    out + i, [&](std::int64_t) { return in + i; }, 1, std::min(kSumStrip, end - i),
                    SumOrder::chain, add ? out + i : nullptr);
        });
    });
    if (!known)
        throw ShapeError({.what = "chain_sum",
                          .expected = "fp32, fp64 or bf16",
                          .actual = dtype_name(total.dtype)});
}

namespace {

void staged_sums(std::span<const PartSum> parts, SumOrder order, bool add, const Communicator& comm,
                 Stream stream, Site site) {
    Staged staged(staged_sum_bytes(parts), parts.front().values.device, comm, stream);
    std::vector<PartSum> on_host;
    for (const PartSum& p : parts) {
        const bool mine = p.owner == comm.rank();
        on_host.push_back({p.owner,
                           !mine ? TensorView{}
                           : add ? staged.take(p.total)
                                 : staged.place(p.total),
                           staged.take(p.values)});
    }
    staged.wait();
    reduce_scatter(on_host, order, add, comm, {}, site);
    for (std::size_t i = 0; i < parts.size(); ++i)
        if (parts[i].owner == comm.rank()) staged.put(parts[i].total, on_host[i].total);
}

void staged_copies(std::span<const PartCopy> parts, const Communicator& comm, Stream stream,
                   Site site) {
    Staged staged(staged_copy_bytes(parts), parts.front().data.device, comm, stream);
    std::vector<PartCopy> on_host;
    for (const PartCopy& p : parts)
        on_host.push_back(
            {p.owner, p.owner == comm.rank() ? staged.take(p.data) : staged.place(p.data)});
    staged.wait();
    all_gather(on_host, comm, {}, site);
    for (std::size_t i = 0; i < parts.size(); ++i)
        if (parts[i].owner != comm.rank()) staged.put(parts[i].data, on_host[i].data);
}

}  // namespace

void reduce_scatter(std::span<const PartSum> parts, SumOrder order, bool add,
                    const Communicator& comm, Stream stream, Site site) {
    if (parts.empty()) return;
    if (comm.size() == 1) {
        for (const PartSum& p : parts)
            chain_sum(p.total, add, p.values, comm, stream, site);
        return;
    }
    const DType dtype = parts.front().values.dtype;
    for (const PartSum& p : parts)
        if (p.values.dtype != dtype ||
            (p.owner == comm.rank() &&
             (p.total.dtype != dtype || p.total.numel() != p.values.numel())))
            throw ShapeError(
                {.what = "reduce_scatter", .expected = "totals and values alike, of one type"});
    if (parts.front().values.device.is_cuda() && by_nccl(comm, /*sums=*/true) && !add) {
        const CollectiveScope scope{"reduce_scatter",  comm, count_of(parts),
                                    dtype_name(dtype), site, "fast"};
        return comm.nccl()->sum_parts(parts, stream);
    }
    if (parts.front().values.device.is_cuda())
        return staged_sums(parts, order, add, comm, stream, site);
    const CollectiveScope scope{
        "reduce_scatter",  comm, count_of(parts),
        dtype_name(dtype), site, order == SumOrder::tree ? "tree" : add ? "add" : "first"};
    const CommTimer timer;
    if (by_machines(dtype, order, total_bytes(parts), comm))
        return machine_sum_parts(parts, add, *comm.machine_groups());
    const bool known = for_summed_dtype(dtype, [&]<class T>(T) {
        if constexpr (!std::is_same_v<T, double>) {
            if (comm.shared_memory() != nullptr)
                return comm.shared_memory()->sum_parts<T>(parts, order, add);
        }
        message_sum_parts<T>(parts, order, add, comm);
    });
    if (!known)
        throw ShapeError({.what = "reduce_scatter",
                          .expected = "fp32, fp64 or bf16",
                          .actual = dtype_name(dtype)});
}

void all_gather(std::span<const PartCopy> parts, const Communicator& comm, Stream stream,
                Site site) {
    if (comm.size() == 1 || parts.empty()) return;
    if (parts.front().data.device.is_cuda() && by_nccl(comm, /*sums=*/false)) {
        const CollectiveScope scope{"all_gather", comm, count_of(parts), "bytes", site};
        return comm.nccl()->gather(parts, stream);
    }
    if (parts.front().data.device.is_cuda()) return staged_copies(parts, comm, stream, site);
    const CollectiveScope scope{"all_gather", comm, count_of(parts), "bytes", site};
    const CommTimer timer;
    if (comm.shared_memory() != nullptr) return comm.shared_memory()->gather_parts(parts);
    if (comm.machine_groups() != nullptr)
        return machine_gather_parts(parts, *comm.machine_groups());
    message_gather_parts(parts, comm);
}

double all_reduce_scalar(double value, ReduceOp op, const Communicator& comm, Site site) {
    if (comm.size() == 1) return value;
    const CollectiveScope scope{"all_reduce", comm, 1, "fp64", site, reduce_name(op)};
    const CommTimer timer;
    mpi_all_reduce(&value, 1, DType::fp64, op, comm);
    return value;
}

ExactSum all_reduce(ExactSum sum, const Communicator& comm, Site site) {
    if (comm.size() == 1) return sum;
    const CollectiveScope scope{"all_reduce", comm, ExactSum::kLimbs + 1, "int64", site, "sum"};
    const CommTimer timer;
    check_mpi(MPI_Allreduce(MPI_IN_PLACE, sum.limb.data(), ExactSum::kLimbs, MPI_INT64_T, MPI_SUM,
                            comm.handle()),
              "all_reduce", comm);
    check_mpi(MPI_Allreduce(MPI_IN_PLACE, &sum.nonfinite, 1, MPI_INT64_T, MPI_SUM, comm.handle()),
              "all_reduce", comm);
    return sum;
}

std::int64_t all_reduce_scalar(std::int64_t value, ReduceOp op, const Communicator& comm,
                               Site site) {
    if (comm.size() == 1) return value;
    const CollectiveScope scope{"all_reduce", comm, 1, "int64", site, reduce_name(op)};
    const CommTimer timer;
    check_mpi(MPI_Allreduce(MPI_IN_PLACE, &value, 1, MPI_INT64_T, mpi_op(op), comm.handle()),
              "all_reduce", comm);
    return value;
}

std::string broadcast(std::string text, int root, const Communicator& comm, Site site) {
    if (comm.size() == 1) return text;
    const CollectiveScope scope{"broadcast", comm, /*count=*/-1, "text", site};
    auto bytes = static_cast<std::int64_t>(text.size());
    check_mpi(MPI_Bcast(&bytes, 1, MPI_INT64_T, root, comm.handle()), "broadcast", comm);
    text.resize(static_cast<std::size_t>(bytes));
    check_mpi(MPI_Bcast(text.data(), static_cast<int>(bytes), MPI_CHAR, root, comm.handle()),
              "broadcast", comm);
    return text;
}

void broadcast(TensorView t, int root, const Communicator& comm, Stream stream, Site site) {
    if (comm.size() == 1 || t.bytes() == 0) return;
    if (t.device.is_cuda() && by_nccl(comm, /*sums=*/false)) {
        const CollectiveScope scope{"broadcast", comm, t.numel(), dtype_name(t.dtype), site};
        return comm.nccl()->broadcast(t, root, stream);
    }
    if (t.device.is_cuda()) {
        Staged staged(t.bytes(), t.device, comm, stream);
        const TensorView host = comm.rank() == root ? staged.take(t) : staged.place(t);
        staged.wait();
        broadcast(host, root, comm, {}, site);
        return staged.put(t, host);
    }
    const CollectiveScope scope{"broadcast", comm, t.numel(), dtype_name(t.dtype), site};
    const CommTimer timer;
    constexpr std::int64_t kMost = 1 << 30;  // MPI counts are ints
    for (std::int64_t done = 0; done < t.bytes(); done += kMost)
        check_mpi(MPI_Bcast(t.data + done, static_cast<int>(std::min(kMost, t.bytes() - done)),
                            MPI_BYTE, root, comm.handle()),
                  "broadcast", comm);
}

void await_device(const Exec& exec, std::initializer_list<const Communicator*> groups) {
    for (const Communicator* g : groups)
        if (g->nccl() != nullptr) g->nccl()->synchronize(exec.stream);
}

void barrier(const Communicator& comm, Site site) {
    if (comm.size() == 1) return;
    const CollectiveScope scope{"barrier", comm, 0, "bytes", site};
    check_mpi(MPI_Barrier(comm.handle()), "barrier", comm);
}

void patient_barrier(const Communicator& comm, Site site) {
    if (comm.size() == 1) return;
    const CollectiveScope scope{"barrier", comm, 0, "bytes", site};
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Ibarrier(comm.handle(), &request), "barrier", comm);
    for (int done = 0, waits = 0; done == 0; ++waits) {
        check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "barrier", comm);
        if (done == 0)
            std::this_thread::sleep_for(std::chrono::microseconds(waits < 20 ? 50 : 500));
    }
}

std::vector<std::string> gather(const std::string& text, int root, const Communicator& comm,
                                Site site) {
    if (comm.size() == 1) return {text};
    // Texts of different lengths: the count says nothing.
    const CollectiveScope scope{"gather", comm, 0, "bytes", site};
    const bool mine = comm.rank() == root;
    const auto ranks = static_cast<std::size_t>(comm.size());
    const auto bytes = static_cast<int>(text.size());
    std::vector<int> sizes(mine ? ranks : 0), begins(mine ? ranks : 0);
    check_mpi(MPI_Gather(&bytes, 1, MPI_INT, sizes.data(), 1, MPI_INT, root, comm.handle()),
              "gather", comm);
    std::int64_t all = 0;
    for (std::size_t r = 0; r < sizes.size(); ++r) {
        begins[r] = static_cast<int>(all);
        all += sizes[r];
    }
    if (all > INT32_MAX)
        throw CollectiveError({.what = "gather of too much",
                               .expected = "at most 2 GiB",
                               .actual = std::to_string(all) + " bytes"});
    std::string joined(static_cast<std::size_t>(all), '\0');
    check_mpi(MPI_Gatherv(text.data(), bytes, MPI_CHAR, joined.data(), sizes.data(), begins.data(),
                          MPI_CHAR, root, comm.handle()),
              "gather", comm);
    std::vector<std::string> texts;
    for (std::size_t r = 0; r < sizes.size(); ++r)
        texts.push_back(
            joined.substr(static_cast<std::size_t>(begins[r]), static_cast<std::size_t>(sizes[r])));
    return texts;
}

}  // namespace stoa
