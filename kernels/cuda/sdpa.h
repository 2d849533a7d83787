#pragma once
// Dense attention on CUDA, in two ways: the vendor's library where it takes the shape, and our own
// kernels, which take all of kernels/attention.h and are slower.
//   The library gets the calls that promise causal rows (AttentionArgs::causal): there every row
//   has a key, and queries and keys are as many, so that a training run has one shape. Documents
//   go through its graph as key_begin, compared to the key's index in the mask.
#include <algorithm>
#include <compare>
#include <optional>

#include "kernels/attention.h"

namespace stoa::cuda {

/// One call of the library: contiguous heads of head_dim elements, the rest strided.
struct SdpaShape {
    DType dtype = DType::bf16;
    std::int64_t batch = 0, q_len = 0, k_len = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0;
    bool causal = true;  // key_end = t + 1 by the graph's own mask; else key_end is read
    // Elements from one row, head or batch entry to the next.
    std::int64_t q_row = 0, q_batch = 0, kv_row = 0, kv_batch = 0;  // of q, out, ...; of k, v
    std::int64_t d_kv_row = 0, d_kv_batch = 0;                      // of d_k, d_v
    std::int64_t lse_head = 0, lse_batch = 0, keys_batch = 0;       // keys: key_begin, key_end
    auto operator<=>(const SdpaShape&) const = default;
};

inline SdpaShape sdpa_shape(const ConstTensorView& q, const ConstTensorView& k, bool causal) {
    const std::int64_t q_len = q.shape[1], k_len = k.shape[1], heads = q.shape[2],
                       kv_heads = k.shape[2], dim = q.shape[3];
    return {.dtype = q.dtype,
            .batch = q.shape[0],
            .q_len = q_len,
            .k_len = k_len,
            .n_heads = heads,
            .n_kv_heads = kv_heads,
            .head_dim = dim,
            .causal = causal,
            .q_row = heads * dim,
            .q_batch = q_len * heads * dim,
            .kv_row = kv_heads * dim,
            .kv_batch = k_len * kv_heads * dim,
            .d_kv_row = kv_heads * dim,
            .d_kv_batch = k_len * kv_heads * dim,
            .lse_head = q_len,
            .lse_batch = heads * q_len,
            .keys_batch = q_len};
}

/// The rules of the library, and of our promises about it: which one a shape breaks.
inline std::optional<ErrorFields> sdpa_refusal(const SdpaShape& s) {
    const auto refuse = [](const char* where, const char* expected, const std::string& got,
                           const char* hint = "the own kernel takes it, more slowly") {
        return ErrorFields{.what = "attention by cuDNN refuses this shape",
                           .where = where,
                           .expected = expected,
                           .actual = got,
                           .hint = hint};
    };
    const auto text = [](std::int64_t n) { return std::to_string(n); };
    if (s.dtype != DType::bf16 && s.dtype != DType::fp16)
        return refuse("dtype", "bf16 or fp16", dtype_name(s.dtype),
                      "use a 16-bit recipe; the own kernel takes it, more slowly");
    if (s.head_dim < 8 || s.head_dim > 256 || s.head_dim % 8 != 0)
        return refuse("head_dim", "a multiple of 8 up to 256", text(s.head_dim));
    if (s.batch < 1 || s.q_len < 1 || s.k_len < 1)
        return refuse("batch, q_len, k_len", ">= 1",
                      text(s.batch) + ", " + text(s.q_len) + ", " + text(s.k_len),
                      "there is nothing to compute");
    if (s.k_len > 0x7fffffff || s.q_len > s.k_len)
        return refuse("q_len", "at most k_len, and that an int32",
                      text(s.q_len) + " of " + text(s.k_len));
    if (s.n_kv_heads < 1 || s.n_heads < 1 || s.n_heads % s.n_kv_heads != 0)
        return refuse("n_kv_heads", "a divisor of n_heads",
                      text(s.n_kv_heads) + " for " + text(s.n_heads), "change the model's heads");
    if (s.causal && s.q_len != s.k_len)
        return refuse("causal", "as many queries as keys", text(s.q_len) + " and " + text(s.k_len));
    return std::nullopt;
}

/// d_s = p * (d_p - delta) is in memory as a whole in the deterministic backward, in the elements'
/// type: it grows with the square of the length. What is larger than this goes in pieces.
constexpr std::int64_t kSdpaScoreBytes = std::int64_t{2} << 30;
inline std::int64_t sdpa_score_bytes(const SdpaShape& s) {
    return s.batch * s.n_heads * s.q_len * s.k_len * size_of(s.dtype);
}
/// The pieces of a causal backward: batch entries, kv heads and queries of one. A function of the
/// shape alone. Pieces by entry or head change no bit; pieces by query round sums of d_k and d_v
/// once more.
struct SdpaSplit {
    std::int64_t batch = 0, kv_heads = 0, q_len = 0;
};
inline SdpaSplit sdpa_split(const SdpaShape& s, std::int64_t limit_bytes) {
    if (sdpa_score_bytes(s) <= limit_bytes) return {s.batch, s.n_kv_heads, s.q_len};
    const std::int64_t row = s.n_heads / s.n_kv_heads * s.k_len * size_of(s.dtype);  // a kv head's
    const std::int64_t most = limit_bytes / (row * s.q_len);
    if (most > 0) {
        const std::int64_t calls = (s.n_kv_heads + most - 1) / most;
        return {1, (s.n_kv_heads + calls - 1) / calls, s.q_len};
    }
    constexpr std::int64_t kTile = 128;
    const std::int64_t most_rows = std::max(kTile, limit_bytes / row / kTile * kTile);
    const std::int64_t pieces = (s.q_len + most_rows - 1) / most_rows;
    const std::int64_t rows = (s.q_len + pieces - 1) / pieces;
    return {1, 1, std::min(s.q_len, (rows + kTile - 1) / kTile * kTile)};
}
/// Keys of the piece that ends before query `end`: quarters of the whole, so that a length needs
/// four plans and not one a piece.
inline std::int64_t sdpa_piece_keys(const SdpaShape& s, std::int64_t end) {
    const std::int64_t quarter = (s.k_len + 3) / 4;
    return std::min(s.k_len, (end + quarter - 1) / quarter * quarter);
}

/// What a plan of the library asks for beside its tensors: to the byte that of cuDNN 9.19 on sm_90
/// (tests/acceptance/cuda_graphs). The backward has d_s in whole tiles, and with grouped heads the
/// gradients of k and v by query head.
constexpr std::int64_t kSdpaForwardWorkspace = 256;
inline std::int64_t sdpa_backward_workspace(const SdpaShape& s) {
    const auto whole = [](std::int64_t n, std::int64_t tile) {
        return (n + tile - 1) / tile * tile;
    };
    const std::int64_t heads = s.batch * s.n_heads, size = size_of(s.dtype);
    const std::int64_t grouped =
        s.n_heads == s.n_kv_heads ? 0 : 2 * heads * s.k_len * s.head_dim * size;
    return heads * whole(s.q_len, 64) * whole(s.k_len, 128) * size + grouped + 256;
}

inline std::int64_t sdpa_delta_bytes(const SdpaShape& s) {
    return s.batch * s.n_heads * s.q_len * 4;
}
/// Of a backward by pieces of queries: d_k and d_v in fp32, summed over pieces, and a piece's own.
inline std::int64_t sdpa_sum_bytes(const SdpaShape& s) { return 2 * s.k_len * s.head_dim * 4; }
inline std::int64_t sdpa_part_bytes(const SdpaShape& s) {
    return 2 * s.k_len * s.head_dim * size_of(s.dtype);
}

struct SdpaCall {
    SdpaShape shape;
    double scale = 1.0;
    const std::byte *q = nullptr, *k = nullptr, *v = nullptr;
    const std::int32_t *key_begin = nullptr, *key_end = nullptr;
    std::byte* out = nullptr;  // read by the backward
    float* lse = nullptr;      // likewise
    const std::byte* d_out = nullptr;
    std::byte *d_q = nullptr, *d_k = nullptr, *d_v = nullptr;
};
/// false: the library has no kernel for this on this GPU; nothing is written.   errors: DeviceError
bool library_sdpa_forward(const SdpaCall& call, Stream stream);
/// Deterministic. Writes d_q, d_k, d_v.
bool library_sdpa_backward(const SdpaCall& call, Stream stream);

/// The library's way, or false. `score_bytes` is kSdpaScoreBytes, and less in tests.
bool library_attention_forward(const AttentionArgs& args, Stream stream);
bool library_attention_backward(const AttentionBackwardArgs& args, Stream stream,
                                std::int64_t score_bytes);

/// Our own kernels. Every sum is one chain, whose order depends on the row's keys alone.
void own_attention_forward(const AttentionArgs& args, Stream stream);
void own_attention_backward(const AttentionBackwardArgs& args, Stream stream);

}  // namespace stoa::cuda
