#pragma once
// What data parallel sends during a step, unit by unit (a block's matrices, the embedding, the
// output matrix): sums of gradients after the unit's backward, working copies before its use or
// after its update. All of it are jobs of mesh.dp_queue: beside the computation where that has a
// thread, or on a GPU a stream. The await functions let the stream wait, and the host only until a
// thread has given its job to the device.
#include "parallel/mesh.h"
#include "trainer/model/params.h"

namespace stoa {

/// Adds the dp shard's gradients of a unit to the sums over shards and ranks.
/// comm: dp reduce_scatter to the owners of the rows; with zero: 0 dp chain_sum
void start_grad_sum(ModelState& s, std::size_t unit, bool add, const Mesh& mesh, const Exec& exec);
/// Before gradients are written where those of `unit` go.
void await_grad_room(const ModelState& s, std::size_t unit, const Mesh& mesh, const Exec& exec);
void await_grad_sums(const ModelState& s, const Mesh& mesh, const Exec& exec);

/// Before the weights of block `layer` are used, in the order of the blocks, up or down; `next`
/// (-1: none) is fetched meanwhile. The views stay valid until a block after `next` is asked for.
/// Nothing to do but with zero: 3.
/// comm: dp all_gather of the blocks that are not there
void await_block(ModelState& s, std::int64_t layer, std::int64_t next, const Mesh& mesh,
                 const Exec& exec);
/// What a forward pass asks of its dp peers, for a rank that has no rows for it.
void take_part_in_forward(ModelState& s, const Mesh& mesh, const Exec& exec);

/// After the owners have updated a unit's rows.     comm: dp all_gather (zero: 1 and 2)
void start_work_gather(ModelState& s, std::size_t unit, const Mesh& mesh, const Exec& exec);
void await_work(ModelState& s, const Mesh& mesh, const Exec& exec);

/// work = masters, rounded to nearest; 8-bit in blocks of 128 x 128; rows of other dp ranks come
/// from them.     comm: as start_work_gather
void refresh_work(ModelState& s, const Mesh& mesh, const Exec& exec);

/// Host memory that one of these takes at most where the tensors are a GPU's: sums where they are
/// `staged_sums`, gathers where those are `staged_copies` (parallel/staged.h).
std::int64_t dp_staging_bytes(const ModelState& s, bool staged_sums, bool staged_copies);

}  // namespace stoa
