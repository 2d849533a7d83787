// Linked instead of nccl_group.cpp where the build has no NCCL: then every collective on device
// memory goes through the host.
#include "parallel/nccl_group.h"

namespace stoa {

struct NcclGroup::State {};
NcclGroup::NcclGroup(std::unique_ptr<State> state) : state_(std::move(state)) {}
NcclGroup::~NcclGroup() = default;
std::unique_ptr<NcclGroup> NcclGroup::open(const Communicator&, Device, double) { return nullptr; }
void NcclGroup::gather(std::span<const PartCopy>, Stream) {}
void NcclGroup::broadcast(TensorView, int, Stream) {}
void NcclGroup::sum_parts(std::span<const PartSum>, Stream) {}
void NcclGroup::all_reduce(TensorView, Op, Stream) {}
void NcclGroup::synchronize(Stream) {}

}  // namespace stoa
