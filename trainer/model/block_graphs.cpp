#include "trainer/model/block_graphs.h"

#include <cstdlib>
#include <string_view>

#include "trainer/model/transformer.h"

namespace stoa {
namespace {

bool graphs_wanted() {
    const char* const text = std::getenv("STOA_GRAPHS");
    return text == nullptr || std::string_view(text) != "off";
}

// What the host draws anew for each pass (attend.cpp).
bool has_dense_rows(const TrainState& s, std::int64_t layer) {
    return !s.acts.scratch.dense_rows.empty() &&
           s.dims.attention[static_cast<std::size_t>(layer)] == LayerAttention::importance;
}

// The default stream cannot be recorded.
bool is_recorded(const TrainState& s, const BlockPass& pass, const Mesh& mesh, const Exec& exec) {
    return exec.device.is_cuda() && exec.stream.handle != nullptr && graphs_wanted() &&
           s.training_rows && !s.sampling && mesh.tp.size() == 1 && !has_dense_rows(s, pass.layer);
}

}  // namespace

void run_block(TrainState& s, const BlockPass& pass, const Mesh& mesh, const Exec& exec,
               const std::function<void()>& work) {
    if (!is_recorded(s, pass, mesh, exec)) return work();
    BlockGraphs& all = s.graphs;
    if (all.micro_batch != s.acts.micro_batch || all.seq_len != s.acts.seq_len)
        all = {.micro_batch = s.acts.micro_batch, .seq_len = s.acts.seq_len, .passes = {}};
    BlockGraphs::Entry& entry = all.passes[pass];
    if (!entry.seen) {
        entry.seen = true;
        return work();
    }
    if (!entry.graph.recorded()) entry.graph.record(exec.stream, work);
    entry.graph.replay(exec.stream, work);
}

}  // namespace stoa
