#include "parallel/machine_parts.h"

#include <algorithm>

#include "parallel/check_mpi.h"
#include "parallel/message_parts.h"
#include "parallel/node_map.h"

namespace stoa {
namespace {

enum Tag { start_tag, chain_tag, sum_tag };  // from one rank to another, each in order

TensorView view_of(float* data, std::int64_t count) {
    return {reinterpret_cast<std::byte*>(data), DType::fp32, {count}, {}};
}
ConstTensorView view_of(const float* data, std::int64_t count) {
    return {reinterpret_cast<const std::byte*>(data), DType::fp32, {count}, {}};
}
int bytes_of(std::int64_t count) {
    return static_cast<int>(count * static_cast<std::int64_t>(sizeof(float)));
}

/// Messages of a rail that are under way.
class Messages {
public:
    explicit Messages(const Communicator& rail) : rail_(rail) {}
    void send(const float* data, std::int64_t count, int to, Tag tag) {
        check_mpi(MPI_Isend(data, bytes_of(count), MPI_BYTE, to, tag, rail_.handle(), &next()),
                  "reduce_scatter", rail_);
    }
    void receive(float* data, std::int64_t count, int from, Tag tag) {
        check_mpi(MPI_Irecv(data, bytes_of(count), MPI_BYTE, from, tag, rail_.handle(), &next()),
                  "reduce_scatter", rail_);
    }
    /// The first `count` of those not waited for yet.
    void wait(std::size_t count) {
        check_mpi(
            MPI_Waitall(static_cast<int>(count), requests_.data() + done_, MPI_STATUSES_IGNORE),
            "reduce_scatter", rail_);
        done_ += count;
    }
    void wait_all() {
        wait(requests_.size() - done_);
        requests_.clear();
        done_ = 0;
    }

private:
    MPI_Request& next() { return requests_.emplace_back(MPI_REQUEST_NULL); }
    const Communicator& rail_;
    std::vector<MPI_Request> requests_;
    std::size_t done_ = 0;
};

/// A run of elements of a part, as one round of a rail sees it.
struct Run {
    int machine;      // of the owner
    std::int64_t at;  // in the rail's piece
    std::int64_t count;
    const float* values;  // this rank's
    float* total;         // on the owner
};

class ChainOverMachines {
public:
    ChainOverMachines(std::span<const PartSum> parts, bool add, const MachineGroups& groups)
        : groups_(groups),
          add_(add),
          machines_(groups.rail.size()),
          here_(groups.rail.rank()),
          local_(groups.machine.rank()),
          per_machine_(groups.machine.size()),
          slot_(std::max<std::int64_t>(
              1, kRailBytes / static_cast<std::int64_t>(sizeof(float)) / machines_)),
          walks_(walks_by_owner(parts, static_cast<std::size_t>(machines_ * per_machine_))),
          own_starts_(walks_[static_cast<std::size_t>(here_ * per_machine_ + local_)]),
          starts_(groups.rail),
          sums_(groups.rail),
          under_way_{Messages(groups.rail), Messages(groups.rail)} {}

    void run() {
        const std::int64_t rounds = rounds_of(walks_, slot_);
        if (add_ && !first()) send_starts(rounds);
        for (std::vector<float>& piece : pieces_)
            piece.resize(static_cast<std::size_t>(machines_ * slot_));
        for (std::int64_t r = 0; r < rounds; ++r)
            round(pieces_[r & 1], under_way_[r & 1]);
        sums_.wait_all();
        for (Messages& m : under_way_)
            m.wait_all();
    }

private:
    bool first() const { return here_ == 0; }
    bool last() const { return here_ == machines_ - 1; }

    std::vector<Run> next_runs(int local) {
        std::vector<Run> runs;
        for (int m = 0; m < machines_; ++m) {
            const bool mine = m == here_ && local == local_;
            walks_[static_cast<std::size_t>(m * per_machine_ + local)].next(
                slot_, [&](const PartRun<PartSum>& run) {
                    runs.push_back(
                        {m, m * slot_ + run.slot_begin, run.count,
                         run.part.values.template as<float>().data() + run.begin,
                         mine ? run.part.total.template as<float>().data() + run.begin : nullptr});
                });
        }
        return runs;
    }

    // All at once, from where they lie: the first machine is rounds ahead of this one.
    void send_starts(std::int64_t rounds) {
        for (std::int64_t r = 0; r < rounds; ++r)
            own_starts_.next(slot_, [&](const PartRun<PartSum>& run) {
                starts_.send(run.part.total.template as<float>().data() + run.begin, run.count, 0,
                             start_tag);
            });
    }

    void take_starts(float* piece, const std::vector<Run>& runs) {
        for (const Run& run : runs)
            run.total != nullptr
                ? void(std::copy_n(run.total, run.count, piece + run.at))
                : sums_before_.receive(piece + run.at, run.count, run.machine, start_tag);
        sums_before_.wait_all();
    }

    void round(std::vector<float>& piece, Messages& under_way) {
        under_way.wait_all();  // of the round before the last: the piece is free
        std::vector<Run> rail;
        std::vector<PartSum> here;
        for (int local = 0; local < per_machine_; ++local) {
            const std::vector<Run> runs = next_runs(local);
            for (const Run& run : runs)
                here.push_back(
                    {local,
                     local == local_ ? view_of(piece.data() + run.at, run.count) : TensorView{},
                     view_of(run.values, run.count)});
            if (local == local_) rail = runs;
        }
        if (!first()) {
            sums_before_.receive(piece.data(), std::ssize(piece), here_ - 1, chain_tag);
            sums_before_.wait_all();
        } else if (add_) {
            take_starts(piece.data(), rail);
        }
        groups_.machine.shared_memory()->sum_parts<float>(here, SumOrder::chain, add_ || !first());
        if (!last()) under_way.send(piece.data(), std::ssize(piece), here_ + 1, chain_tag);
        for (const Run& run : rail) {
            if (last() && run.machine != here_)
                under_way.send(piece.data() + run.at, run.count, run.machine, sum_tag);
            if (run.machine != here_) continue;
            if (add_ && !first()) starts_.wait(1);  // it lies where the sum will
            if (last())
                std::copy_n(piece.data() + run.at, run.count, run.total);
            else
                sums_.receive(run.total, run.count, machines_ - 1, sum_tag);
        }
    }

    const MachineGroups& groups_;
    bool add_;
    int machines_, here_, local_, per_machine_;
    std::int64_t slot_;  // elements of an owner in a round
    std::vector<PartWalk<PartSum>> walks_;
    PartWalk<PartSum> own_starts_;
    Messages starts_, sums_, sums_before_{groups_.rail};
    Messages under_way_[2];
    std::vector<float> pieces_[2];
};

}  // namespace

std::unique_ptr<MachineGroups> open_machine_groups(const Communicator& comm,
                                                   const std::vector<int>& machine_of,
                                                   SharedMemory::Wait wait) {
    const int per_machine = ranks_per_machine(machine_of);
    if (per_machine < 2 || per_machine == comm.size()) return nullptr;
    const auto split = [&](int color, const char* name) {
        MPI_Comm part = MPI_COMM_NULL;
        check_mpi(MPI_Comm_split(comm.handle(), color, comm.rank(), &part), "MPI_Comm_split", comm);
        return Communicator{part, comm.name() + name, /*on_board=*/false};
    };
    auto groups = std::make_unique<MachineGroups>();
    groups->machine = split(comm.rank() / per_machine, " machine");
    groups->rail = split(comm.rank() % per_machine, " rail");
    groups->machine.share_memory(wait);
    const std::int64_t shared = groups->machine.shared_memory() != nullptr;
    std::int64_t everywhere = 0;
    check_mpi(MPI_Allreduce(&shared, &everywhere, 1, MPI_INT64_T, MPI_MIN, comm.handle()),
              "all_reduce", comm);
    if (everywhere != 0) return groups;
    groups->machine.close();
    groups->rail.close();
    return nullptr;
}

bool chain_pays(int machines, int per_machine, std::int64_t bytes) {
    constexpr double kMargin = 1.25;
    const double direct = static_cast<double>(per_machine * bytes) * (machines - 1) / machines;
    const double chain =
        static_cast<double>(bytes) + static_cast<double>(kRailBytes) * per_machine * machines;
    return kMargin * chain < direct;
}

void machine_sum_parts(std::span<const PartSum> parts, bool add, const MachineGroups& groups) {
    ChainOverMachines(parts, add, groups).run();
}

void machine_gather_parts(std::span<const PartCopy> parts, const MachineGroups& groups) {
    const int per_machine = groups.machine.size();
    std::vector<PartCopy> rail, machine;
    for (const PartCopy& p : parts) {
        machine.push_back({p.owner % per_machine, p.data});
        if (p.owner % per_machine == groups.machine.rank())
            rail.push_back({p.owner / per_machine, p.data});
    }
    message_gather_parts(rail, groups.rail);
    groups.machine.shared_memory()->gather_parts(machine);
}

}  // namespace stoa
