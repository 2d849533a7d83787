#pragma once
// One backward pass with a given loss scale, and what the scale must not show in.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/elementwise.h"
#include "trainer/model/loss.h"
#include "trainer/model/transformer.h"

namespace stoa::test {

/// The loss scale S is a power of two, and so is the scale of an 8-bit block: S moves exponents
/// only. A pass with S = 2^k must give the codes of the pass with S = 1, exponents k higher, and
/// the same gradients over S, bit for bit.
struct ScaledPass {
    std::vector<std::byte> saved;      // forward codes and exponents of every layer
    std::vector<std::byte> codes;      // d_y, d_gate, d_up as matmul operands, by row and by column
    std::vector<std::byte> exponents;  // their scales
    std::vector<double> ffn_grads;     // of the last block, over S
    std::vector<double> grads;         // all, over S
};

/// Forward and backward of `mb` from the initial weights. The operands of the gradient are those of
/// the first block, its last chunk: what the scratch still holds.
inline ScaledPass backward_pass(const RunConfig& config, const MicroBatch& mb, int log2_scale) {
    RunConfig one = config;
    one.batch.global_batch = one.batch.micro_batch;  // whose gradients are whole after it
    TrainState s = make_train_state(one, 0, 1, Exec{});
    load_micro_batch(s, mb, Exec{});
    zero_grads(s.model, Exec{});
    zero(s.acts.loss_sum, Exec{});
    const double scale = std::ldexp(1.0, log2_scale);
    model_forward(s, Mesh{}, Exec{});
    loss_forward_backward(s, scale / static_cast<double>(mb.valid_tokens()), Communicator{},
                          Exec{});
    model_backward(s, Mesh{}, Exec{});
    ScaledPass out;
    const auto append = [](std::vector<std::byte>& to, const TensorView& t) {
        to.insert(to.end(), t.data, t.data + t.bytes());
    };
    const auto append_grads = [&](std::vector<double>& to, const TensorView& t) {
        dispatch_dtype(t.dtype, [&]<Element T>(T) {
            for (const T g : t.as<T>())
                to.push_back(static_cast<double>(widen(g)) / scale);
        });
    };
    for (const BlockSaved& b : s.acts.saved)
        for (const Scaled& t : {b.h2, b.gate, b.up, b.act}) {
            append(out.saved, t.data);
            append(out.saved, t.scale);
        }
    const BlockScratch& t = s.acts.scratch;
    for (const Scaled& d :
         {t.d_y_row, t.d_y_col, t.d_gate_row, t.d_gate_col, t.d_up_row, t.d_up_col}) {
        append(out.codes, d.data);
        append(out.exponents, d.scale);
    }
    const BlockWeights& last = s.model.grads.blocks.back();
    for (const Scaled& g : {last.gate, last.up, last.down})
        append_grads(out.ffn_grads, g.data);
    append_grads(out.grads, s.model.norm_grads);
    append_grads(out.grads, s.model.matrix_grads);
    return out;
}

inline bool higher_by(const std::vector<std::byte>& exponents, const std::vector<std::byte>& base,
                      int k) {
    return std::ranges::equal(exponents, base, [&](std::byte a, std::byte b) {
        return std::to_integer<int>(a) == std::to_integer<int>(b) + k;
    });
}

}  // namespace stoa::test
