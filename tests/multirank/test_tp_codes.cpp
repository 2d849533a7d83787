// Tensor parallel shards of whole quantiser blocks hold the 8-bit codes and exponents that a single
// rank holds: of the weights at the start and after optimizer steps, of the activations that the
// feed-forward layers save, and of their gradients. Every rank computes the (1,1) side by itself.
#include <mpi.h>

#include <cstring>

#include "kernels/elementwise.h"
#include "kernels/quantize.h"
#include "kernels/random_normal.h"
#include "tests/support/catch.h"
#include "tests/support/tiny_run.h"
#include "trainer/model/ffn.h"
#include "trainer/optimizer.h"

using namespace stoa;
using namespace stoa::test;

namespace {

constexpr std::int64_t kMicroBatch = 2, kRowsPerSequence = 128;  // 256 rows: one chunk of the FFN

// d_ff 512 and q_cols 512: 128 or more columns on each of 4 ranks. Every block's FFN is 8-bit.
RunConfig code_config(Recipe recipe, std::int64_t tp) {
    RunConfig c = tiny_config({.micro_batch = kMicroBatch,
                               .recipe = recipe,
                               .global_batch = kMicroBatch,
                               .whole_blocks = true,
                               .seq_len = kRowsPerSequence},
                              1, tp);
    c.model.head_dim = 64;
    c.model.n_layers = 2;
    c.precision.edge_blocks = 0;
    return c;
}

// The same model on one rank and on this rank of a tp mesh over the world.
struct Pair {
    Mesh mesh;
    TrainState whole, part;
};
Pair make_pair(Recipe recipe) {
    int size = 1;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    Pair p{.mesh = make_mesh(1, size)};
    p.whole = make_train_state(code_config(recipe, 1), 0, 1, Exec{});
    p.part = make_train_state(code_config(recipe, size), p.mesh.tp_rank(), size, Exec{});
    return p;
}

// part is whole[row:, col:], byte for byte. Only `rows` rows: a shard may end in padding.
bool is_slice(ConstTensorView part, ConstTensorView whole, std::int64_t row, std::int64_t col,
              std::int64_t rows) {
    if (part.empty() || part.dtype != whole.dtype) return false;
    const std::int64_t size = size_of(part.dtype), bytes = part.cols() * size;
    for (std::int64_t r = 0; r < rows; ++r)
        if (std::memcmp(part.data + r * bytes, whole.data + ((row + r) * whole.cols() + col) * size,
                        static_cast<std::size_t>(bytes)) != 0)
            return false;
    return true;
}
bool is_slice(ConstTensorView part, ConstTensorView whole, std::int64_t row, std::int64_t col) {
    return is_slice(part, whole, row, col, part.rows());
}

// Codes and exponents; an axis with as many exponents as codes is not cut into blocks.
bool same_codes(const Scaled& part, const Scaled& whole, std::int64_t row, std::int64_t col) {
    if (part.data.dtype != DType::e4m3) return false;
    const std::int64_t row_step = whole.scale.rows() == whole.data.rows() ? 1 : kQuantBlock;
    const std::int64_t col_step = whole.scale.cols() == whole.data.cols() ? 1 : kQuantBlock;
    return is_slice(part.data, whole.data, row, col) &&
           is_slice(part.scale, whole.scale, row / row_step, col / col_step);
}

bool is_ffn(const Param& p) { return p.name.find(".mlp.") != std::string::npos; }

// Fills t, a shard of p, with values that depend on the logical element only.
void fill(const Param& p, TensorView t, std::uint64_t seed, double std) {
    Tensor wide(t.shape, DType::fp32);
    const bool matrix = t.shape.rank == 2;
    random_normal({.x = matrix ? wide.view : wide.view.reshaped({1, t.numel()}),
                   .key = p.key(seed),
                   .std = std,
                   .row_begin = p.row_begin(),
                   .col_begin = p.col_begin(),
                   .logical_rows = matrix ? p.global_shape[0] : 1,
                   .logical_cols = p.global_shape[matrix ? 1 : 0]},
                  Exec{});
    cast(t, wide, Exec{});
}

// The same for activations: column `col` of a (rows, logical_cols) tensor on one rank.
void fill(TensorView t, std::uint64_t key, double std) {
    Tensor wide(t.shape, DType::fp32);
    random_normal(
        {.x = wide, .key = key, .std = std, .logical_rows = t.rows(), .logical_cols = t.cols()},
        Exec{});
    cast(t, wide, Exec{});
}

// Layer 0's FFN alone, forward and backward, from given x_mid and d_y.
void run_ffn(TrainState& s, const Communicator& tp, Recompute recompute) {
    const Exec exec{};
    place_activations(s, kMicroBatch, kRowsPerSequence);
    zero_grads(s.model, exec);
    zero(s.acts.nonfinite, exec);
    const BlockContext context{.dims = s.dims,
                               .state = s.model,
                               .norm_eps = s.config.model.norm_eps,
                               .acts = s.acts,
                               .tp = tp,
                               .exec = exec};
    const BlockWeights &w = s.model.work.blocks[0], &g = s.model.grads.blocks[0];
    const BlockSaved& saved = s.acts.saved[0];
    fill(saved.x_mid, 5, 1.0);
    RowSums sums = stream_sums(context);
    ffn_forward(context, w, saved, &sums);
    if (recompute != Recompute::none) {
        zero(saved.h2.data, exec);
        zero(saved.act.data, exec);
        ffn_recompute(context, w, saved);
    }
    fill(s.acts.d_x, 6, 1e-3);
    ffn_backward(context, w, g, saved, s.acts.d_x, sums);
}

}  // namespace

TEST_CASE("weight codes of a tp shard are those of the whole, also after steps", "[multirank]") {
    const Recipe recipe = GENERATE(Recipe::r30, Recipe::r45, Recipe::r50);
    Pair pair = make_pair(recipe);
    std::vector<std::byte> before;
    for (std::int64_t step = 0; step <= 3; ++step) {
        if (step > 0)
            for (TrainState* s : {&pair.whole, &pair.part}) {
                for (const Param& p : s->model.params)
                    fill(p, p.grad, static_cast<std::uint64_t>(step), 1e-2);
                adamw_step(s->model, s->config, 1e-2, 0.5, step, Mesh{}, Exec{});
            }
        for (std::size_t i = 0; i < pair.whole.model.params.size(); ++i) {
            const Param &w = pair.whole.model.params[i], &p = pair.part.model.params[i];
            const std::int64_t row = p.row_begin(), col = p.col_begin();
            CAPTURE(p.name, step, pair.mesh.tp_rank(), recipe_name(recipe));
            if (p.is_norm()) {
                CHECK(is_slice(p.master, w.master, 0, 0));
                continue;
            }
            const std::int64_t rows = p.cut == TpCut::rows ? p.range.count : p.master.rows();
            CHECK(is_slice(p.master, w.master, row, col, rows));
            CHECK(is_slice(p.m.data, w.m.data, row, col, rows));
            CHECK(is_slice(p.m.scale, w.m.scale, row, col / kQuantBlock, rows));
            CHECK(is_slice(p.v.data, w.v.data, row, col, rows));
            if (is_ffn(p)) CHECK(same_codes(p.work, w.work, row, col));
        }
        const TensorView codes = pair.part.model.work.blocks[0].gate.data;
        const std::vector<std::byte> now(codes.data, codes.data + codes.bytes());
        CHECK(now != before);  // the steps move the codes
        before = now;
    }
    close_mesh(pair.mesh);
}

TEST_CASE("activation and gradient codes of a tp shard are those of the whole", "[multirank]") {
    const Recipe recipe = GENERATE(Recipe::r30, Recipe::r50);
    const Recompute recompute = GENERATE(Recompute::none, Recompute::selective);
    Pair pair = make_pair(recipe);
    run_ffn(pair.whole, Communicator{}, recompute);
    run_ffn(pair.part, pair.mesh.tp, recompute);
    const std::int64_t ff = pair.mesh.tp_rank() * pair.part.dims.d_ff;  // this rank's columns
    CAPTURE(pair.mesh.tp_rank(), recipe_name(recipe), recompute == Recompute::none);

    const BlockSaved &w = pair.whole.acts.saved[0], &p = pair.part.acts.saved[0];
    CHECK(same_codes(p.h2, w.h2, 0, 0));  // replicated
    CHECK(same_codes(p.gate, w.gate, 0, ff));
    CHECK(same_codes(p.up, w.up, 0, ff));
    CHECK(same_codes(p.act, w.act, 0, ff));

    const BlockScratch &ws = pair.whole.acts.scratch, &ps = pair.part.acts.scratch;
    CHECK(same_codes(ps.h_row, ws.h_row, 0, 0));
    CHECK(same_codes(ps.d_y_row, ws.d_y_row, 0, 0));
    CHECK(same_codes(ps.d_y_col, ws.d_y_col, 0, 0));
    CHECK(same_codes(ps.act_row, ws.act_row, 0, ff));
    CHECK(same_codes(ps.d_gate_row, ws.d_gate_row, 0, ff));
    CHECK(same_codes(ps.d_gate_col, ws.d_gate_col, 0, ff));
    CHECK(same_codes(ps.d_up_row, ws.d_up_row, 0, ff));
    CHECK(same_codes(ps.d_up_col, ws.d_up_col, 0, ff));

    const BlockWeights &wg = pair.whole.model.grads.blocks[0],
                       &pg = pair.part.model.grads.blocks[0];
    CHECK(is_slice(pg.gate.data, wg.gate.data, ff, 0));
    CHECK(is_slice(pg.up.data, wg.up.data, ff, 0));
    CHECK(is_slice(pg.down.data, wg.down.data, 0, ff));
    close_mesh(pair.mesh);
}
