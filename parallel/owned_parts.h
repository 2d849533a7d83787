#pragma once
// Tensors whose parts have owners: the lists that reduce_scatter and all_gather work on, and the
// walk over one owner's parts that both wires (shared memory, messages) make in equal steps.
#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/core/tensor_view.h"

namespace stoa {

/// The ranks' `values` are summed for `owner`. All ranks list the same parts in the same order.
struct PartSum {
    int owner = 0;
    TensorView total;  // like values; read and written on the owner only
    ConstTensorView values;
    std::int64_t count() const { return values.numel(); }
};
/// `data` of `owner` goes to every rank.
struct PartCopy {
    int owner = 0;
    TensorView data;
    std::int64_t count() const { return data.bytes(); }
};

/// Where in a part and in a slot of the wire a run of elements lies.
template <class Part>
struct PartRun {
    const Part& part;
    std::int64_t begin, count, slot_begin;
};

/// The parts of one owner, as if they lay side by side.
template <class Part>
class PartWalk {
public:
    void add(const Part& part) {
        parts_.push_back(&part);
        total_ += part.count();
    }
    std::int64_t total() const { return total_; }

    /// fn(PartRun) for the next elements, `slot` of them or what is left; returns how many.
    template <class Fn>
    std::int64_t next(std::int64_t slot, const Fn& fn) {
        std::int64_t done = 0;
        while (done < slot && index_ < parts_.size()) {
            const Part& part = *parts_[index_];
            const std::int64_t n = std::min(slot - done, part.count() - at_);
            if (n > 0) fn(PartRun<Part>{part, at_, n, done});
            done += n;
            at_ += n;
            if (at_ == part.count()) {
                ++index_;
                at_ = 0;
            }
        }
        return done;
    }

private:
    std::vector<const Part*> parts_;
    std::int64_t total_ = 0, at_ = 0;
    std::size_t index_ = 0;
};

template <class Part>
std::vector<PartWalk<Part>> walks_by_owner(std::span<const Part> parts, std::size_t ranks) {
    std::vector<PartWalk<Part>> walks(ranks);
    for (const Part& p : parts)
        walks[static_cast<std::size_t>(p.owner)].add(p);
    return walks;
}
/// Steps of `slot` elements until every owner's parts are done: the same number on every rank.
template <class Part>
std::int64_t rounds_of(const std::vector<PartWalk<Part>>& walks, std::int64_t slot) {
    std::int64_t most = 0;
    for (const PartWalk<Part>& w : walks)
        most = std::max(most, (w.total() + slot - 1) / slot);
    return most;
}

}  // namespace stoa
