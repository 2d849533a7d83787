#include "trainer/model/dp_traffic.h"

#include <algorithm>

#include "kernels/quantize.h"
#include "parallel/collectives.h"
#include "parallel/staged.h"

namespace stoa {
namespace {

std::span<const Param> params_of(const ModelState& s, std::size_t unit) {
    return std::span(s.params).subspan(s.units[unit].first, s.units[unit].count);
}

std::vector<PartSum> grad_parts(const ModelState& s, std::size_t unit) {
    std::vector<PartSum> parts;
    for (const Param& p : params_of(s, unit))
        for (const OwnedRows& o : p.owners)
            parts.push_back({o.dp_rank, o.dp_rank == p.mine.dp_rank ? p.grad : TensorView{},
                             p.shard_grad.slice_rows(o.begin, o.count)});
    return parts;
}

std::vector<PartCopy> work_parts(const ModelState& s, std::size_t unit) {
    std::vector<PartCopy> parts;
    for (const Param& p : params_of(s, unit))
        for (const OwnedRows& o : p.owners) {
            parts.push_back({o.dp_rank, p.work.data.slice_rows(o.begin, o.count)});
            if (p.work.scale.empty()) continue;
            const std::int64_t blocks = (o.count + kQuantBlock - 1) / kQuantBlock;
            parts.push_back({o.dp_rank, p.work.scale.slice_rows(o.begin / kQuantBlock, blocks)});
        }
    return parts;
}

// Puts the block's rows that are this rank's into its buffer, and sends for the others.
void start_block(ModelState& s, std::int64_t layer, const Mesh& mesh, const Exec& exec) {
    const auto unit = static_cast<std::size_t>(layer);
    const auto buffer = static_cast<std::size_t>(s.units[unit].work_buffer);
    if (s.gathered[buffer] == layer) return;
    s.gathered[buffer] = layer;
    for (const Param& p : params_of(s, unit))
        store_work(p, p.mine.begin, p.master, exec);
    s.units[unit].work_ticket = mesh.gather_queue().submit(
        [parts = work_parts(s, unit), &mesh](Stream stream) {
            all_gather(parts, mesh.gather_group(), stream);  // dp: the block's weights
        },
        exec.stream);
}

}  // namespace

void start_grad_sum(ModelState& s, std::size_t unit, bool add, const Mesh& mesh, const Exec& exec) {
    if (params_of(s, unit).front().owners.empty()) {
        s.units[unit].grad_ticket = mesh.dp_queue->submit(
            [&s, unit, add, &mesh](Stream stream) {
                for (const Param& p : params_of(s, unit))  // dp: each rank gets all sums
                    chain_sum(p.grad, add, p.shard_grad, mesh.dp_beside, stream);
            },
            exec.stream);
        return;
    }
    s.units[unit].grad_ticket = mesh.dp_queue->submit(
        [parts = grad_parts(s, unit), add, &mesh](Stream stream) {
            reduce_scatter(parts, SumOrder::chain, add, mesh.dp_beside,
                           stream);  // dp: owners get their sums
        },
        exec.stream);
}

void await_grad_room(const ModelState& s, std::size_t unit, const Mesh& mesh, const Exec& exec) {
    CommQueue::Ticket last = 0;
    const std::int64_t buffer = s.units[unit].grad_buffer;
    for (const Unit& u : s.units)
        if (&u == &s.units[unit] || (buffer >= 0 && u.grad_buffer == buffer))
            last = std::max(last, u.grad_ticket);
    mesh.dp_queue->wait(last, exec.stream);
}

void await_grad_sums(const ModelState& s, const Mesh& mesh, const Exec& exec) {
    for (const Unit& u : s.units)
        mesh.dp_queue->wait(u.grad_ticket, exec.stream);
}

void await_block(ModelState& s, std::int64_t layer, std::int64_t next, const Mesh& mesh,
                 const Exec& exec) {
    if (s.gathered.empty()) return;
    start_block(s, layer, mesh, exec);
    const bool room = s.gathered.size() > 1;  // else the next would overwrite this one
    if (room && next >= 0 && next < static_cast<std::int64_t>(s.work.blocks.size()))
        start_block(s, next, mesh, exec);
    mesh.gather_queue().wait(s.units[static_cast<std::size_t>(layer)].work_ticket, exec.stream);
}

void take_part_in_forward(ModelState& s, const Mesh& mesh, const Exec& exec) {
    const auto n_layers = static_cast<std::int64_t>(s.work.blocks.size());
    for (std::int64_t l = 0; l < n_layers; ++l)
        await_block(s, l, l + 1, mesh, exec);
}

void start_work_gather(ModelState& s, std::size_t unit, const Mesh& mesh, const Exec& exec) {
    if (s.units[unit].work_buffer >= 0) return;  // gathered where it is used
    s.units[unit].work_ticket = mesh.gather_queue().submit(
        [parts = work_parts(s, unit), &mesh](Stream stream) {
            all_gather(parts, mesh.gather_group(), stream);  // dp: the updated rows
        },
        exec.stream);
}

void await_work(ModelState& s, const Mesh& mesh, const Exec& exec) {
    for (const Unit& u : s.units)
        mesh.gather_queue().wait(u.work_ticket, exec.stream);
    std::ranges::fill(s.gathered, -1);  // what is there is from before the update
}

std::int64_t dp_staging_bytes(const ModelState& s, bool staged_sums, bool staged_copies) {
    std::int64_t most = 0;
    for (std::size_t u = 0; u < s.units.size(); ++u) {
        if (params_of(s, u).front().owners.empty()) {
            for (const Param& p : params_of(s, u))
                most = std::max(most, staged_chain_bytes(p.shard_grad));
            continue;
        }
        if (staged_sums) most = std::max(most, staged_sum_bytes(grad_parts(s, u)));
        if (staged_copies) most = std::max(most, staged_copy_bytes(work_parts(s, u)));
    }
    return most;
}

void refresh_work(ModelState& s, const Mesh& mesh, const Exec& exec) {
    for (std::size_t u = 0; u < s.units.size(); ++u) {
        for (const Param& p : params_of(s, u))
            refresh_work_rows(p, 0, p.mine.count, exec);
        start_work_gather(s, u, mesh, exec);
    }
    await_work(s, mesh, exec);
}

}  // namespace stoa
