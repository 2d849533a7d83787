#include "kernels/device_scratch.h"

#include <algorithm>

#include "kernels/cuda/library_gemm.h"

namespace stoa {
namespace {

using cuda::round4;
constexpr std::int64_t kB = kQuantBlock;

bool is_8_bit(DType t) { return size_of(t) == 1; }
std::int64_t wide_size(DType t) { return size_of(wide_dtype(t)); }

std::int64_t rooms(std::initializer_list<std::int64_t> pieces) {
    std::int64_t bytes = 0;
    for (const std::int64_t p : pieces)
        bytes += scratch_room(p);
    return bytes;
}

struct Sides {
    std::int64_t m, n, k;
};
Sides sides_of(const MatmulArgs& a) {
    const std::int64_t whole_k = a.transpose_a ? a.a.rows() : a.a.cols();
    return {a.c.rows(), a.c.cols(), a.k_count > 0 ? a.k_count : whole_k - a.k_begin};
}

/// Whether both operands are what the library's product of codes asks for.
bool takes_codes(const MatmulArgs& args, const Sides& s) {
    if (!is_8_bit(args.a.dtype) || !is_8_bit(args.b.dtype)) return false;
    if (args.k_begin % kB != 0 || s.k % kB != 0 || s.n % 16 != 0 || s.m % 16 != 0) return false;
    if (args.a.dtype == DType::e5m2 && args.b.dtype == DType::e5m2) return false;
    const auto kind = [](const ConstTensorView& x, const ConstTensorView& scale) {
        return blocks_of({x.rows(), x.cols()}, {scale.rows(), scale.cols()});
    };
    const QuantBlocks a_kind = kind(args.a, args.a_scale), b_kind = kind(args.b, args.b_scale);
    const auto along_k = [](QuantBlocks blocks, bool k_is_row) {
        return blocks == QuantBlocks::square ||
               blocks == (k_is_row ? QuantBlocks::column : QuantBlocks::row);
    };
    if (!along_k(a_kind, args.transpose_a) || !along_k(b_kind, !args.transpose_b)) return false;
    return a_kind != QuantBlocks::square || b_kind != QuantBlocks::square;
}

std::int64_t scale_bytes(const ConstTensorView& x, const ConstTensorView& scale, std::int64_t rows,
                         std::int64_t k) {
    const bool square =
        blocks_of({x.rows(), x.cols()}, {scale.rows(), scale.cols()}) == QuantBlocks::square;
    const std::int64_t k_blocks = k / kB;
    return 4 * (square ? (rows + kB - 1) / kB * round4(k_blocks) : k_blocks * round4(rows));
}

}  // namespace

std::int64_t attention_delta_bytes(const ConstTensorView& q) {
    return q.shape[0] * q.shape[1] * q.shape[2] * wide_size(q.dtype);
}

GpuLibraries gpu_libraries(int capability, bool has_cudnn) {
    return {.sdpa_forward = has_cudnn,
            .sdpa_backward = has_cudnn && capability == 90,
            .block_scaled_gemm = capability == 90};
}

MatmulScratch matmul_scratch(const MatmulArgs& args) {
    const Sides s = sides_of(args);
    MatmulScratch out;
    if (s.m == 0 || s.n == 0 || s.k == 0) return out;
    const auto held = [](DType t) { return is_8_bit(t) ? DType::bf16 : t; };
    const DType a_type = held(args.a.dtype), b_type = held(args.b.dtype);
    const DType type = a_type == b_type ? a_type : DType::fp32, c_type = args.c.dtype;
    const bool at_random = args.accumulate && c_type == DType::bf16 && args.rounding.enabled();
    if (at_random || (c_type != type && c_type != DType::fp32)) out.product = 4 * s.m * s.n;
    const auto widened = [&](const ConstTensorView& x) {
        return x.dtype == type ? 0 : x.numel() * size_of(type);
    };
    out.wide[0] = widened(args.a);
    out.wide[1] = widened(args.b);
    out.codes = takes_codes(args, s);
    if (!out.codes) return out;
    if (args.transpose_a) out.turned[0] = s.m * s.k;
    if (!args.transpose_b) out.turned[1] = s.n * s.k;
    out.scale[0] = scale_bytes(args.a, args.a_scale, s.m, s.k);
    out.scale[1] = scale_bytes(args.b, args.b_scale, s.n, s.k);
    return out;
}

FarListScratch far_list_scratch(std::int64_t batch, std::int64_t n_kv_heads, std::int64_t q_len,
                                std::int64_t len, const KeyRule& rule, std::int64_t tile_rows) {
    FarListScratch far{.tiles = (q_len + tile_rows - 1) / tile_rows,
                       // Those that the first query of a tile sees, and those that leave the
                       // window within it.
                       .capacity = std::min(len, rule.keep + rule.sinks + tile_rows)};
    far.counts = batch * n_kv_heads * far.tiles * 4;
    far.keys = far.counts * far.capacity;
    return far;
}

SelectKeysScratch select_keys_scratch(const SelectKeysArgs& a) {
    const std::int64_t rows = a.expiry.shape[0] * a.expiry.shape[1], len = a.expiry.shape[2];
    const std::int64_t keep = std::min(a.rule.keep, len);
    // Long enough that the room for kept tokens is no more than that of all tokens.
    SelectKeysScratch s{.segment = std::max<std::int64_t>(1024, keep)};
    s.segments = (len + s.segment - 1) / s.segment;
    const bool fp64 = !a.importance.empty() && a.importance.dtype == DType::fp64;
    s.importance = rows * s.segments * keep * (fp64 ? 8 : 4);
    s.token = rows * s.segments * keep * 4;
    return s;
}

ImportanceBackwardScratch importance_backward_scratch(const ImportanceAttentionBackwardArgs& a) {
    return {.delta = attention_delta_bytes(a.q),
            .dense = a.dense_rows.empty() || a.dense_rows.shape[1] == 0
                         ? 0
                         : a.q.shape[0] * a.k.shape[1],
            .far = far_list_scratch(a.q.shape[0], a.k.shape[2], a.q.shape[1], a.k.shape[1], a.rule,
                                    kFarRowsBackward)};
}

std::int64_t tree_places(const TreeRule& rule, std::int64_t len) {
    std::int64_t places = 0, span = rule.leaf;
    for (std::int64_t l = tree_levels(rule, len); l > 0; --l, span *= rule.fanout)
        places += len / span;
    return places;
}

std::int64_t tree_node_bytes(const ConstTensorView& k, const TreeRule& rule) {
    return k.shape[0] * k.shape[2] * tree_places(rule, k.shape[1]) * (4 * k.shape[3] + 2) *
           wide_size(k.dtype);
}

TreeBackwardScratch tree_backward_scratch(const TreeAttentionBackwardArgs& a) {
    const std::int64_t batch = a.q.shape[0], len = a.q.shape[1], dim = a.q.shape[3];
    const std::int64_t pairs = batch * a.k.shape[2], slots = tree_slots(a.rule);
    TreeBackwardScratch s{
        .nodes = tree_node_bytes(a.k, a.rule),
        .delta = attention_delta_bytes(a.q),
        .ends = batch * len * 4,
        .sums = pairs * tree_places(a.rule, len) * (2 * dim + 1) * wide_size(a.q.dtype),
        .chunk = std::min(len, std::max<std::int64_t>(1, kTreeListEntries / slots))};
    s.chunks = (len + s.chunk - 1) / s.chunk;
    s.entries = pairs * tree_levels(a.rule, len) * s.chunks * s.chunk * slots * 4;
    return s;
}

std::int64_t quantization_loss_warps(const ConstTensorView& x) {
    constexpr std::int64_t kMostWarps = 2048;
    return std::min(x.rows() * ((x.cols() + kB - 1) / kB), kMostWarps);
}

std::int64_t scratch_bytes(const MatmulArgs& args, const GpuLibraries& has) {
    const MatmulScratch s = matmul_scratch(args);
    const std::int64_t product = scratch_room(s.product),
                       codes = rooms({s.turned[0], s.turned[1], s.scale[0], s.scale[1]}),
                       wide = rooms({s.wide[0], s.wide[1], kGemmWorkspaceBytes});
    if (!s.codes) return product + wide;
    return product + (has.block_scaled_gemm ? codes + kGemmWorkspaceBytes : std::max(codes, wide));
}

std::int64_t scratch_bytes(const AttentionArgs& a, const GpuLibraries& has) {
    const cuda::SdpaShape s = cuda::sdpa_shape(a.q, a.k, a.causal);
    if (!has.sdpa_forward || !a.causal || cuda::sdpa_refusal(s)) return 0;
    return scratch_room(cuda::kSdpaForwardWorkspace);
}

std::int64_t scratch_bytes(const AttentionBackwardArgs& a, const GpuLibraries& has,
                           std::int64_t score_bytes) {
    const std::int64_t own = scratch_room(attention_delta_bytes(a.q));
    const cuda::SdpaShape whole = cuda::sdpa_shape(a.q, a.k, true);
    if (!a.causal || cuda::sdpa_refusal(whole)) return own;
    const cuda::SdpaSplit split = cuda::sdpa_split(whole, score_bytes);
    cuda::SdpaShape piece = whole;  // the first in batch and heads, the last in queries
    piece.batch = split.batch;
    piece.n_kv_heads = split.kv_heads;
    piece.n_heads = split.kv_heads * (whole.n_heads / whole.n_kv_heads);
    piece.q_len = split.q_len;
    const std::int64_t between =
        split.q_len == whole.q_len
            ? 0
            : rooms({cuda::sdpa_sum_bytes(whole), cuda::sdpa_part_bytes(whole)});
    if (!has.sdpa_backward) return std::max(own, between);  // it is asked first
    return between + rooms({cuda::sdpa_delta_bytes(piece), cuda::sdpa_backward_workspace(piece)});
}

std::int64_t scratch_bytes(const SelectKeysArgs& args) {
    const SelectKeysScratch s = select_keys_scratch(args);
    return rooms({s.importance, s.token});
}

std::int64_t scratch_bytes(const ImportanceAttentionArgs& a) {
    const FarListScratch far =
        far_list_scratch(a.q.shape[0], a.k.shape[2], a.q.shape[1], a.k.shape[1], a.rule, kFarRows);
    return rooms({far.keys, far.counts});
}

std::int64_t scratch_bytes(const ImportanceAttentionBackwardArgs& args) {
    const ImportanceBackwardScratch s = importance_backward_scratch(args);
    return rooms({s.delta, s.dense, s.far.keys, s.far.counts});
}

std::int64_t scratch_bytes(const TreeAttentionArgs& a) {
    return scratch_room(tree_node_bytes(a.k, a.rule));
}

std::int64_t scratch_bytes(const TreeAttentionBackwardArgs& args) {
    const TreeBackwardScratch s = tree_backward_scratch(args);
    return rooms({s.nodes, s.delta, s.ends, s.sums, s.entries});
}

std::int64_t scratch_bytes(const EmbeddingBackwardArgs& args) {
    return scratch_room(embedding_backward_scratch(args.d_y.rows()));
}

std::int64_t scratch_bytes(const QuantizationLossArgs& args) {
    return scratch_room(quantization_loss_warps(args.x) * 4 * 8);
}

}  // namespace stoa
