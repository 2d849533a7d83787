// Backward of the tree attention, without atomics: a block a query for d_q, and towards keys the
// sums of tree_backward_keys.cu. Every sum is the CPU's chain.
#include "kernels/cuda/tree_backward.h"

namespace stoa::cuda {
namespace {

STOA_KERNEL void ends_kernel(std::int32_t* ends, const std::int32_t* key_begin, std::int64_t rows,
                             std::int64_t len) {
    const std::int64_t i = global_thread();
    if (i >= rows) return;
    const std::int64_t t = i % len, begin = key_begin[i];
    if (t + 1 == len || key_begin[i + 1] != begin)
        ends[i - t + begin] = static_cast<std::int32_t>(t + 1);
}

/// A block a query, a warp a head: the items of the forward in its order.
template <class T, class W = Wide<T>>
STOA_KERNEL void query_kernel(T* d_q, TreeBackward<T> b) {
    SharedMemory memory;
    const TreeInputs<T>& in = b.in;
    const TreeShape& n = in.n;
    const int warps = block_threads() / kWarp;
    const TreeQuery<T> query(in, block_index() / n.len, block_index() % n.len, b.selection,
                             memory.array<std::int32_t>(kMaxTreeLevels));
    ItemWeights<W> weights{memory.array<W>(2 * block_threads()),
                           memory.array<std::int32_t>(2 * block_threads())};
    for (std::int64_t g = thread_index() / kWarp; g < (n.group() + warps - 1) / warps * warps;
         g += warps) {
        const bool here = g < n.group();  // the others only meet at the barriers
        const std::int64_t h = query.head * n.group() + (here ? g : 0);
        const std::int64_t at = in.query_at(query.batch, query.row, h) * n.dim;
        const std::int64_t stat = b.stat_at(query.batch, h, query.row);
        for (std::int64_t first = 0; first < n.dim; first += kRowChannels) {
            RowSum<W> sum;
            query.for_items([&](TreePart part, const TreeItem<W>& item) {
                const std::int64_t key = in.key_at(query.batch, item.row, query.head) * n.dim;
                W d_z = 0;
                if (item.seen) {
                    const W d_p = part == TreePart::nodes
                                      ? chain_dot(b.d_out + at, W{1},
                                                  in.nodes.mean_v + item.row * n.dim, n.dim)
                                      : chain_dot(b.d_out + at, W{1}, in.v + key, n.dim);
                    d_z = fused_exp(query.logit(part, item, in.q + at) - b.lse[stat]) *
                          (d_p - b.delta[stat]);
                }
                weights.write(item.seen, d_z, item.row);
                sync_block();
                weights.for_seen([&](W w, std::int64_t row) {
                    part == TreePart::nodes
                        ? sum.add(w, W{1}, in.nodes.mean_k + row * n.dim, first, n.dim)
                        : sum.add(w, W{1}, in.k + in.key_at(query.batch, row, query.head) * n.dim,
                                  first, n.dim);
                });
            });
            sum.times(in.scale);
            if (here) sum.store(d_q + at, first, n.dim);
        }
    }
}

template <class T, class W = Wide<T>>
void backward(const TreeAttentionBackwardArgs& a, Stream stream) {
    const TreeShape n = tree_shape(a);
    const std::int64_t rows = n.batch * n.len * n.n_heads, places = n.pairs() * n.per_pair;
    const TreeBackwardScratch room = tree_backward_scratch(a);
    const Scratch nodes(stream, room.nodes), delta(stream, room.delta), ends(stream, room.ends),
        sums(stream, room.sums);
    const std::int32_t *const selection = a.selection.as<std::int32_t>().data(),
                              *const key_begin = a.key_begin.as<std::int32_t>().data();
    const SelectionLists lists(n, room, selection, key_begin, stream);
    W* const d_nodes = sums.as<W>();
    const TreeBackward<T> b{tree_inputs<T>(a, n, TreeNodes<W>::in(nodes.as<W>(), n)),
                            a.d_out.as<T>().data(),
                            a.lse.as<W>().data(),
                            delta.as<W>(),
                            selection,
                            ends.as<std::int32_t>(),
                            lists.view(n),
                            d_nodes,
                            d_nodes + places * n.dim,
                            d_nodes + 2 * places * n.dim};
    const auto launch_of = [&](const char* name, std::int64_t blocks, int threads,
                               std::int64_t shared = 0) {
        return Launch{.name = name,
                      .blocks = blocks,
                      .threads = threads,
                      .stream = stream,
                      .shared_bytes = static_cast<int>(shared)};
    };
    build_tree(b.in, stream);
    launch(launch_of("tree_attention_backward: documents", blocks_for(n.batch * n.len, kThreads),
                     kThreads),
           ends_kernel, ends.as<std::int32_t>(), key_begin, n.batch * n.len, n.len);
    launch(
        launch_of("tree_attention_backward: delta", blocks_for(rows * kLanes, kThreads), kThreads),
        attention_delta_kernel<T>, delta.as<W>(), values_of<W>(a.d_sink), b.d_out,
        a.out.as<T>().data(), b.lse, b.in.sink_logit, rows, n.len, n.n_heads, n.dim, true);
    tree_key_gradients(b, a, stream);
    const std::int64_t warps = std::min<std::int64_t>(n.group(), kHeadWarps);
    launch(launch_of("tree_attention_backward: queries", n.pairs() * n.len,
                     static_cast<int>(warps) * kWarp,
                     kMaxTreeLevels * 4 + ItemWeights<W>::bytes(warps)),
           query_kernel<T>, a.d_q.as<T>().data(), b);
}

}  // namespace

void tree_attention_backward(const TreeAttentionBackwardArgs& args, Stream stream) {
    dispatch_dtype(args.q.dtype, [&]<Element T>(T) { backward<T>(args, stream); });
}

}  // namespace stoa::cuda
