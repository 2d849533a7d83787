#include "trainer/inference/pass.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "kernels/core/arena.h"
#include "kernels/device_memory.h"
#include "kernels/embedding.h"
#include "kernels/matmul.h"
#include "kernels/rms_norm.h"
#include "parallel/collectives.h"

namespace stoa {

namespace {

LocalDims pass_dims(const TrainState& s) {
    LocalDims dims = s.dims;
    for (Recompute& r : dims.recompute)
        r = Recompute::full;
    dims.row_ranks = 1;
    return dims;
}

}  // namespace

Workspace make_workspace(const TrainState& s, std::int64_t batch, std::int64_t q_len) {
    Workspace w{.dims = pass_dims(s),
                .memory = make_buffer(workspace_bytes(s, batch, q_len), s.device)};
    Placer placer(w.memory.data(), w.memory.bytes(), s.device);
    w.acts = layout_activations(placer, s.config, w.dims, batch, q_len);
    return w;
}

std::int64_t workspace_bytes(const TrainState& s, std::int64_t batch, std::int64_t q_len) {
    Placer list;
    layout_activations(list, s.config, pass_dims(s), batch, q_len);
    return list.bytes();
}

void load_part(const Workspace& w, const Part& part, const Exec& exec) {
    const std::int64_t q_len = w.acts.seq_len;
    const auto rows = static_cast<std::size_t>(w.acts.tokens.numel());
    std::vector<std::int32_t> tokens(rows), positions(rows), key_begin(rows), key_end(rows);
    for (std::size_t b = 0; b < part.texts.size(); ++b)
        for (std::int64_t t = 0; t < q_len; ++t) {
            const std::size_t at =
                b * static_cast<std::size_t>(q_len) + static_cast<std::size_t>(t);
            const auto source = static_cast<std::size_t>(part.begin + t);
            const std::int64_t last = std::max<std::int64_t>(0, part.rows[b] - 1);
            tokens[at] = t < part.rows[b] ? part.texts[b][source] : 0;
            positions[at] = static_cast<std::int32_t>(part.length[b] + std::min(t, last));
            key_begin[at] = 0;
            key_end[at] = positions[at] + 1;
        }
    upload<std::int32_t>(w.acts.tokens, tokens, exec);
    upload<std::int32_t>(w.acts.positions, positions, exec);
    upload<std::int32_t>(w.acts.key_begin, key_begin, exec);
    upload<std::int32_t>(w.acts.key_end, key_end, exec);
}

BlockContext pass_context(const TrainState& s, const Workspace& w, const Mesh& mesh,
                          const Exec& exec) {
    return {.dims = w.dims,
            .state = s.model,
            .norm_eps = s.config.model.norm_eps,
            .acts = w.acts,
            .tp = mesh.tp,
            .exec = exec};
}

void embed_part(const TrainState& s, const Workspace& w, TensorView x, const Mesh& mesh,
                const Exec& exec) {
    embedding_forward({.y = x,
                       .table = s.model.work.embed,
                       .tokens = w.acts.tokens,
                       .vocab_begin = s.dims.vocab.begin},
                      exec);
    all_reduce(x, ReduceOp::sum, mesh.tp, exec.stream);  // tp: each token's row lives on one rank
}

void keep_last(TensorView hidden, ConstTensorView x, const Part& part, const Exec& exec) {
    const std::int64_t q_len = x.rows() / std::ssize(part.texts);
    for (std::size_t b = 0; b < part.texts.size(); ++b) {
        if (part.rows[b] == 0 || part.begin + part.rows[b] != std::ssize(part.texts[b])) continue;
        const auto entry = static_cast<std::int64_t>(b);
        copy(hidden.slice_rows(entry, 1), x.slice_rows(entry * q_len + part.rows[b] - 1, 1), exec);
    }
}

PickSpace make_pick_space(const TrainState& s, std::int64_t batch) {
    const auto& [residual, wide] = std::tie(s.dims.formats.residual, s.dims.formats.wide);
    const Shape logits{batch, s.dims.vocab.local};
    PickSpace space{.normed = make_tensor({batch, s.dims.d_model}, residual, s.device),
                    .rstd = make_tensor({batch}, wide, s.device),
                    .logits = make_tensor(logits, wide, s.device),
                    .on_host = {}};
    space.on_host.buffer = make_copy_buffer(space.logits.view.bytes(), s.device);
    space.on_host.view = {space.on_host.buffer.data(), wide, logits, {}};
    return space;
}

std::int64_t pick_space_bytes(const TrainState& s, std::int64_t batch) {
    const LocalDims& d = s.dims;
    return batch * (d.d_model * size_of(d.formats.residual) +
                    (1 + d.vocab.local) * size_of(d.formats.wide));
}

std::vector<TokenId> pick_tokens(const TrainState& s, const Tensor& hidden, const PickSpace& space,
                                 const Communicator& tp, const Exec& exec) {
    const std::int64_t batch = hidden.view.rows();
    const DType wide = s.dims.formats.wide;
    rms_norm_forward({.y = space.normed,
                      .rstd = space.rstd,
                      .x = hidden,
                      .weight = s.model.work.final_norm,
                      .eps = s.config.model.norm_eps},
                     exec);
    matmul({.c = space.logits, .a = space.normed, .b = s.model.work.lm_head, .transpose_b = true},
           exec);
    const TensorView logits = space.on_host;
    copy(logits, space.logits, exec);
    Tensor best({batch}, DType::fp64), winner({batch}, DType::int32);
    std::vector<double> local_best(static_cast<std::size_t>(batch));
    std::vector<std::int32_t> local_id(static_cast<std::size_t>(batch));
    dispatch_dtype(wide, [&]<Element T>(T) {
        for (std::int64_t b = 0; b < batch; ++b) {
            const auto row = logits.row<T>(b).first(static_cast<std::size_t>(s.dims.vocab.count));
            double top = -std::numeric_limits<double>::infinity();
            std::int64_t id = 0;
            for (std::size_t c = 0; c < row.size(); ++c)
                if (widen(row[c]) > top) {
                    top = widen(row[c]);
                    id = static_cast<std::int64_t>(c);
                }
            best.as<double>()[static_cast<std::size_t>(b)] =
                local_best[static_cast<std::size_t>(b)] = top;
            local_id[static_cast<std::size_t>(b)] =
                static_cast<std::int32_t>(id + s.dims.vocab.begin);
        }
    });
    all_reduce(best, ReduceOp::max, tp, exec.stream);  // tp: the best logit of the whole vocabulary
    const auto ids = winner.as<std::int32_t>();
    for (std::size_t b = 0; b < ids.size(); ++b)
        ids[b] = local_best[b] == best.as<double>()[b] ? local_id[b]
                                                       : std::numeric_limits<std::int32_t>::max();
    all_reduce(winner, ReduceOp::min, tp, exec.stream);  // tp: the smallest id that has it
    return {ids.begin(), ids.end()};
}

}  // namespace stoa
