#pragma once
// Where a test can run an op, and how: the same call for every place, on tensors in host memory.
#include <cstring>
#include <memory>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sdpa.h"

namespace stoa::test {

/// The CPU always; the CUDA kernels where there is a GPU, or where the program runs them on the
/// host. All on one stream, which lives as long as the program.
inline std::vector<Exec> available_execs() {
    std::vector<Exec> execs{Exec{}};
#if defined(STOA_HOST_KERNELS)
    if (!cuda::runs_kernels()) throw std::logic_error("linked without the kernels it asks for");
#endif
    if (!cuda::runs_kernels()) return execs;
    static const cuda::CudaStream stream;
    execs.push_back({{DeviceKind::cuda, 0}, stream.stream()});
    return execs;
}

// The tensors of an op's arguments. TensorViews are written, ConstTensorViews only read.
inline auto tensors(RmsNormArgs& a) { return std::tie(a.y, a.rstd, a.x, a.weight, a.sum, a.delta); }
inline auto tensors(RmsNormBackwardArgs& a) {
    return std::tie(a.d_x, a.d_weight, a.d_y, a.x, a.weight, a.rstd);
}
inline auto tensors(RopeArgs& a) { return std::tie(a.x, a.cos, a.sin, a.positions); }
inline auto tensors(SwigluArgs& a) { return std::tie(a.y, a.gate, a.up); }
inline auto tensors(SwigluBackwardArgs& a) {
    return std::tie(a.d_gate, a.d_up, a.d_y, a.gate, a.up);
}
inline auto tensors(EmbeddingArgs& a) { return std::tie(a.y, a.table, a.tokens); }
inline auto tensors(EmbeddingBackwardArgs& a) { return std::tie(a.d_table, a.d_y, a.tokens); }
inline auto tensors(RowMaxArgs& a) { return std::tie(a.row_max, a.logits); }
inline auto tensors(ExpSumArgs& a) {
    return std::tie(a.exp_sum, a.target_logit, a.logits, a.row_max, a.targets);
}
inline auto tensors(CrossEntropyArgs& a) {
    return std::tie(a.d_logits, a.loss_sum, a.logits, a.row_max, a.exp_sum, a.target_logit,
                    a.targets);
}
inline auto tensors(AdamwArgs& a) {
    return std::tie(a.param, a.m, a.v, a.m_scale, a.v_scale, a.grad);
}
inline auto tensors(QuantizeArgs& a) { return std::tie(a.codes, a.scale, a.nonfinite, a.x); }
inline auto tensors(DequantizeArgs& a) { return std::tie(a.y, a.codes, a.scale); }
inline auto tensors(QuantizationLossArgs& a) { return std::tie(a.sums, a.x); }
inline auto tensors(TwoWayCodes& c) {
    return std::tie(c.row, c.row_scale, c.column, c.column_scale);
}
inline auto tensors(QuantizeTwoWayArgs& a) {
    return std::tuple_cat(tensors(a.codes), std::tie(a.nonfinite, a.x));
}
inline auto tensors(SwigluQuantizeArgs& a) {
    return std::tuple_cat(tensors(a.codes), std::tie(a.y, a.nonfinite, a.gate, a.up));
}
inline auto tensors(SwigluQuantizeBackwardArgs& a) {
    return std::tuple_cat(tensors(a.d_gate_codes), tensors(a.d_up_codes),
                          std::tie(a.d_gate, a.d_up, a.nonfinite, a.d_y, a.gate, a.up));
}
inline auto tensors(RmsNormQuantizeArgs& a) {
    return std::tuple_cat(tensors(a.codes), tensors(a.norm), std::tie(a.nonfinite));
}
inline auto tensors(SelectKeysArgs& a) { return std::tie(a.expiry, a.importance, a.key_begin); }
inline auto tensors(ImportanceAttentionArgs& a) {
    return std::tie(a.out, a.lse, a.q, a.k, a.v, a.expiry, a.key_begin, a.gate, a.sink_logit,
                    a.dense_rows);
}
inline auto tensors(ImportanceAttentionBackwardArgs& a) {
    return std::tie(a.d_q, a.d_k, a.d_v, a.d_gate, a.d_sink, a.far_mass, a.d_out, a.out, a.lse, a.q,
                    a.k, a.v, a.expiry, a.key_begin, a.gate, a.sink_logit, a.dense_rows);
}
inline auto tensors(ImportanceDistilArgs& a) {
    return std::tie(a.d_importance, a.importance, a.key_begin, a.targets);
}
inline auto tensors(ImportanceGateArgs& a) { return std::tie(a.gate, a.importance, a.bias); }
inline auto tensors(ImportanceGateBackwardArgs& a) {
    return std::tie(a.d_gate, a.d_bias, a.importance);
}
inline auto tensors(TreeAttentionArgs& a) {
    return std::tie(a.out, a.lse, a.selection, a.q, a.k, a.v, a.key_begin, a.gate, a.sink_logit);
}
inline auto tensors(TreeAttentionBackwardArgs& a) {
    return std::tie(a.d_q, a.d_k, a.d_v, a.d_gate, a.d_sink, a.d_out, a.out, a.lse, a.selection,
                    a.q, a.k, a.v, a.key_begin, a.gate, a.sink_logit);
}
inline auto tensors(ImportanceCacheArgs& a) {
    return std::tie(a.out, a.q, a.k, a.v, a.gate, a.importance, a.sink_logit);
}
inline auto tensors(ImportanceCacheKeys& a) { return std::tie(a.k, a.v, a.gate, a.importance); }
inline auto tensors(TreeCacheAttendArgs& a) { return std::tie(a.out, a.q, a.sink_logit); }
inline auto tensors(RandomNormalArgs& a) { return std::tie(a.x); }
inline auto tensors(AttentionArgs& a) {
    return std::tie(a.out, a.lse, a.q, a.k, a.v, a.key_begin, a.key_end);
}
inline auto tensors(AttentionBackwardArgs& a) {
    return std::tie(a.d_q, a.d_k, a.d_v, a.d_out, a.out, a.lse, a.q, a.k, a.v, a.key_begin,
                    a.key_end);
}
inline auto tensors(MatmulArgs& a) { return std::tie(a.c, a.a, a.b, a.a_scale, a.b_scale); }

// The ops that take their tensors one by one, as the others.
struct AddArgs {
    TensorView y;
    ConstTensorView a, b;
};
struct CastArgs {
    TensorView y;
    ConstTensorView x;
};
struct ZeroArgs {
    TensorView x;
};
struct FlagArgs {
    TensorView flag;
    ConstTensorView x;
};
struct SquaresArgs {
    TensorView sum;
    ConstTensorView x;
    std::int64_t piece;
};
struct TreeTokens {
    ConstTensorView k, v, gate;
};
struct RopeTableArgs {
    TensorView cos, sin;
    double theta;
};
inline auto tensors(AddArgs& a) { return std::tie(a.y, a.a, a.b); }
inline auto tensors(CastArgs& a) { return std::tie(a.y, a.x); }
inline auto tensors(ZeroArgs& a) { return std::tie(a.x); }
inline auto tensors(FlagArgs& a) { return std::tie(a.flag, a.x); }
inline auto tensors(SquaresArgs& a) { return std::tie(a.sum, a.x); }
inline auto tensors(TreeTokens& a) { return std::tie(a.k, a.v, a.gate); }
inline auto tensors(RopeTableArgs& a) { return std::tie(a.cos, a.sin); }
inline void add_op(const AddArgs& a, const Exec& exec) { add(a.y, a.a, a.b, exec); }
inline void cast_op(const CastArgs& a, const Exec& exec) { cast(a.y, a.x, exec); }
inline void zero_op(const ZeroArgs& a, const Exec& exec) { zero(a.x, exec); }
inline void flag_op(const FlagArgs& a, const Exec& exec) { flag_nonfinite(a.flag, a.x, exec); }
inline void squares_op(const SquaresArgs& a, const Exec& exec) {
    sum_of_squares(a.sum, a.x, a.piece, exec);
}
inline void rope_table_op(const RopeTableArgs& a, const Exec& exec) {
    rope_table(a.cos, a.sin, {.theta = a.theta}, exec);
}

// The two ways of attention on CUDA, each by itself.
inline void own_attention(const AttentionArgs& a, const Exec& exec) {
    if (!exec.device.is_cuda()) return attention_forward(a, exec);
    cuda::own_attention_forward(a, exec.stream);
}
inline void own_attention_gradient(const AttentionBackwardArgs& a, const Exec& exec) {
    if (!exec.device.is_cuda()) return attention_backward(a, exec);
    cuda::own_attention_backward(a, exec.stream);
}
/// errors: runtime_error where the library does not take it
inline void library_attention(const AttentionArgs& a, const Exec& exec) {
    if (!exec.device.is_cuda()) return attention_forward(a, exec);
    if (!cuda::library_attention_forward(a, exec.stream))
        throw std::runtime_error("the library takes no such attention");
}
/// With room for `Bytes` of d_s at a time: little room makes pieces.
template <std::int64_t Bytes>
void library_attention_gradient(const AttentionBackwardArgs& a, const Exec& exec) {
    if (!exec.device.is_cuda()) return attention_backward(a, exec);
    if (!cuda::library_attention_backward(a, exec.stream, Bytes))
        throw std::runtime_error("the library takes no such attention");
}

/// Copies of host tensors on a device, each between guard bytes. Views of the same memory share
/// their copy.
class DeviceCopies {
public:
    explicit DeviceCopies(const Exec& exec) : exec_(exec) {}
    template <class View>
    void move(View& view) {
        if (view.empty()) return;
        Copy& copy = copy_of(view);
        copy.written |= std::is_same_v<View, TensorView>;
        view.data = copy.buffer.data() + kGuard;
        view.device = exec_.device;
    }
    /// Waits for the op, and brings back what it may have written.
    /// errors: runtime_error where it wrote outside, or into what is only read
    void copy_back() {
        for (const Copy& c : copies_) {
            std::vector<std::byte> all(static_cast<std::size_t>(c.bytes + 2 * kGuard));
            cuda::copy_from_device(all.data(), c.buffer.data(), std::ssize(all), exec_.stream);
            cuda::synchronize(exec_.stream);
            for (std::int64_t i = 0; i < kGuard; ++i)
                if (all[static_cast<std::size_t>(i)] != kMark ||
                    all[static_cast<std::size_t>(kGuard + c.bytes + i)] != kMark)
                    throw std::runtime_error("an op wrote outside a tensor");
            const auto size = static_cast<std::size_t>(c.bytes);
            if (c.written)
                std::memcpy(c.host, all.data() + kGuard, size);
            else if (std::memcmp(c.host, all.data() + kGuard, size) != 0)
                throw std::runtime_error("an op wrote into a tensor that it only reads");
        }
    }

private:
#if defined(__SANITIZE_ADDRESS__)
    static constexpr std::int64_t kGuard = 0;  // it guards every piece of memory itself, reads too
#else
    static constexpr std::int64_t kGuard = 256;  // a multiple of every alignment
#endif
    static constexpr std::byte kMark{0xA5};
    struct Copy {
        std::byte* host;
        std::int64_t bytes;
        cuda::DeviceBuffer buffer;
        bool written = false;
    };
    Copy& copy_of(const ConstTensorView& view) {
        for (Copy& c : copies_)
            if (c.host == view.data && c.bytes == view.bytes()) return c;
        copies_.push_back({const_cast<std::byte*>(view.data), view.bytes(),
                           cuda::DeviceBuffer(view.bytes() + 2 * kGuard)});
        Copy& c = copies_.back();
        std::vector<std::byte> all(static_cast<std::size_t>(c.bytes + 2 * kGuard), kMark);
        std::memcpy(all.data() + kGuard, view.data, static_cast<std::size_t>(c.bytes));
        cuda::copy_to_device(c.buffer.data(), all.data(), std::ssize(all), exec_.stream);
        cuda::synchronize(exec_.stream);
        return c;
    }
    Exec exec_;
    std::vector<Copy> copies_;
};

/// op(args, exec) on tensors in host memory, wherever exec is.
template <class Args, class Op>
void run_with(Args args, const Exec& exec, const Op& op) {
    if (!exec.device.is_cuda()) return op(args, exec);
    DeviceCopies copies(exec);
    std::apply([&](auto&... views) { (copies.move(views), ...); }, tensors(args));
    op(args, exec);
    copies.copy_back();
}
template <class Args>
void run(void (*op)(const Args&, const Exec&), std::type_identity_t<Args> args, const Exec& exec) {
    run_with(args, exec, op);
}
// The ops on caches, which stay where they are made.
inline void run_append(ImportanceCache& cache, const ImportanceCacheKeys& keys, const Exec& exec) {
    run_with(keys, exec, [&](const ImportanceCacheKeys& a, const Exec& e) {
        importance_cache_append(cache, a, e);
    });
}
inline void run_attend(ImportanceCache& cache, const ImportanceCacheArgs& args, const Exec& exec) {
    run_with(args, exec, [&](const ImportanceCacheArgs& a, const Exec& e) {
        importance_cache_attend(cache, a, e);
    });
}
inline void run_append(TreeCache& cache, const TreeTokens& tokens, const Exec& exec) {
    run_with(tokens, exec, [&](const TreeTokens& a, const Exec& e) {
        tree_cache_append(cache, a.k, a.v, a.gate, e);
    });
}
inline void run_attend(const TreeCache& cache, const TreeCacheAttendArgs& args, const Exec& exec) {
    run_with(args, exec,
             [&](const TreeCacheAttendArgs& a, const Exec& e) { tree_cache_attend(cache, a, e); });
}

}  // namespace stoa::test
