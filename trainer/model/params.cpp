#include "trainer/model/params.h"

#include <algorithm>

#include "kernels/core/philox.h"
#include "kernels/device_memory.h"
#include "kernels/elementwise.h"
#include "kernels/quantize.h"
#include "kernels/random_normal.h"
#include "kernels/rope.h"

namespace stoa {

namespace {

// The lowest bits of x.
std::uint64_t word(std::int64_t x, int bits) {
    return static_cast<std::uint64_t>(x) & ((std::uint64_t{1} << bits) - 1);
}

}  // namespace

std::uint64_t call_of(const GradPass& pass) {
    return word(pass.step, 28) << 36 | word(pass.micro_batch, 12) << 24;
}

StochasticRounding grad_rounding(const ModelState& state, const TensorView& grad,
                                 const GradPass& pass, std::int64_t row) {
    if (grad.dtype != DType::bf16) return {};
    const auto p = std::ranges::find_if(
        state.params, [&](const Param& x) { return x.shard_grad.data == grad.data; });
    if (p == state.params.end()) return {};
    // Apart from the optimizer's draws, and from those of the other data-parallel ranks.
    const std::uint64_t key =
        mix_key(p->key(pass.seed), 0x67726164 + static_cast<std::uint64_t>(pass.dp_rank));
    return {.key = key,
            .call = (pass.device_call == nullptr ? call_of(pass) : 0) | word(row, 24),
            .row_begin = p->row_begin(),
            .col_begin = p->col_begin(),
            .logical_cols = p->global_shape[1],
            .call_word = pass.device_call};
}

void store_work(const Param& p, std::int64_t begin, ConstTensorView master, const Exec& exec) {
    const std::int64_t count = master.shape[0];
    const TensorView work = p.work.data.slice_rows(begin, count);
    if (work.dtype != DType::e4m3) return cast(work, master, exec);
    const std::int64_t first = begin / kQuantBlock;
    const std::int64_t blocks = (begin + count + kQuantBlock - 1) / kQuantBlock - first;
    quantize({.codes = work, .scale = p.work.scale.slice_rows(first, blocks), .x = master}, exec);
}

namespace {

// Every dp rank makes all rows and keeps its own masters; so nobody needs to send any.
void init_matrix(const Param& p, std::uint64_t seed, const Exec& exec) {
    const DType drawn = p.master.dtype == DType::fp24 ? DType::fp32 : p.master.dtype;
    const Shape shape{std::min(kQuantBlock, p.local_rows), p.work.data.cols()};
    const Tensor wide = make_tensor(shape, drawn, exec.device),
                 stored = make_tensor(shape, p.master.dtype, exec.device);
    for (std::int64_t begin = 0; begin < p.local_rows; begin += kQuantBlock) {
        const std::int64_t count = std::min(kQuantBlock, p.local_rows - begin);
        const std::int64_t mine = begin - p.mine.begin;
        if (p.gathered && (mine < 0 || mine >= p.mine.count)) continue;
        const TensorView x = wide.view.slice_rows(0, count), y = stored.view.slice_rows(0, count);
        random_normal({.x = x,
                       .key = p.key(seed),
                       .std = p.init_std,
                       .row_begin = p.row_begin() + begin,
                       .col_begin = p.col_begin(),
                       .logical_rows = p.global_shape[0],
                       .logical_cols = p.global_shape[1]},
                      exec);
        cast(y, x, exec);
        if (!p.gathered) store_work(p, begin, y, exec);
        if (mine >= 0 && mine < p.mine.count) copy(p.master.slice_rows(mine, count), y, exec);
    }
}

}  // namespace

void init_model_state(ModelState& state, const RunConfig& config, const Exec& exec) {
    for (Param& p : state.params) {
        for (const Scaled* t : {&p.m, &p.v}) {
            zero(t->data, exec);
            zero(t->scale, exec);
        }
        if (!p.is_norm()) {
            init_matrix(p, config.run.seed, exec);
            continue;
        }
        dispatch_dtype(p.master.dtype, [&]<Element T>(T) {
            const std::vector<T> values(static_cast<std::size_t>(p.master.numel()),
                                        narrow_to<T>(static_cast<Wide<T>>(p.fill)));
            upload(p.master, std::span(values), exec);
        });
    }
    const double stretch = config.stages.empty()
                               ? config.model.attention.stretch
                               : attention_of(config, config.stages.front()).stretch;
    fill_rope(state, config, stretch, exec);
}

void fill_rope(const ModelState& state, const RunConfig& config, double stretch, const Exec& exec) {
    rope_table(
        state.rope_cos, state.rope_sin,
        {.theta = config.model.rope_theta, .rotate = rotated_part(config), .stretch = stretch},
        exec);
}

void zero_grads(ModelState& state, const Exec& exec) {
    zero(state.norm_grads, exec);
    zero(state.matrix_grads, exec);
}

void fold_head_grads(ModelState& state, const Exec& exec) {
    std::int64_t at = 0;
    for (std::size_t i = 0; at < state.head_sums.numel(); ++i) {
        const Param& p = state.params[i];
        const std::int64_t d = p.grad.numel(), heads = p.per_head ? 1 : p.heads;
        const TensorView by_head = state.head_sums.slice_rows(at, heads * d).reshaped({heads, d});
        copy(p.grad, by_head.slice_rows(0, 1), exec);
        if (heads > 1) add_rows(p.grad, by_head.slice_rows(1, heads - 1), exec);
        at += heads * d;
    }
}

void zero_added_grads(ModelState& state, const Exec& exec) {
    zero(state.norm_grads, exec);
    if (state.grads.embed.data != state.grads.lm_head.data) zero(state.grads.embed, exec);
}

void refresh_work_rows(const Param& p, std::int64_t begin, std::int64_t count, const Exec& exec) {
    if (p.gathered || p.format == p.master.dtype || count == 0) return;
    store_work(p, p.mine.begin + begin, p.master.slice_rows(begin, count), exec);
}

std::vector<TensorShard> checkpoint_shards(const ModelState& state) {
    std::vector<TensorShard> shards;
    // `block`: columns that one element of the tensor stands for; 128 for scales.
    const auto add_shard = [&](const std::string& name, const Param& p, const TensorView& view,
                               std::int64_t block) {
        const auto blocks = [block](std::int64_t n) { return (n + block - 1) / block; };
        TensorShard s{.name = name,
                      .global_shape = p.global_shape,
                      .view = view,
                      .replicated = p.cut == TpCut::replicated,
                      .dp_part = !p.owners.empty()};
        const int last = p.global_shape.rank - 1;
        s.global_shape.dims[static_cast<std::size_t>(last)] = blocks(p.global_shape[last]);
        s.row_count = p.global_shape.rank == 1 ? 1 : s.global_shape[0];
        s.col_count = s.global_shape[last];
        if (p.cut == TpCut::rows) {
            s.row_begin = p.range.begin;
            s.row_count = p.range.count;
        } else if (p.cut == TpCut::cols) {
            s.col_begin = p.range.begin / block;
            s.col_count = blocks(p.range.count);
        }
        if (s.dp_part) {  // of these rows, without padding, the ones that are this dp rank's
            s.row_count = std::clamp<std::int64_t>(s.row_count - p.mine.begin, 0, p.mine.count);
            s.row_begin = s.row_count == 0 ? 0 : s.row_begin + p.mine.begin;
        }
        shards.push_back(s);
    };
    const auto add_moment = [&](const std::string& prefix, const Param& p, const Scaled& t) {
        add_shard(prefix + p.name, p, t.data, 1);
        if (t.scale.shape.rank > 0)  // also where it is only planned
            add_shard(prefix + p.name + ".scale", p, t.scale, kQuantBlock);
    };
    for (const Param& p : state.params)
        add_shard(p.name, p, p.master, 1);
    for (const Param& p : state.params)
        add_moment("optimizer.m/", p, p.m);
    for (const Param& p : state.params)
        add_moment("optimizer.v/", p, p.v);
    return shards;
}

}  // namespace stoa
