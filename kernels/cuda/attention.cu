// Attention on CUDA: the library in pieces that its workspace allows, or our own kernels.
#include "kernels/cuda/device.h"
#include "kernels/cuda/lane_groups.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sdpa.h"

namespace stoa::cuda {
namespace {

/// What the library asks of an address.
bool aligned(std::initializer_list<const std::byte*> all) {
    return std::ranges::all_of(
        all, [](const std::byte* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; });
}

template <class T>
STOA_KERNEL void add_kernel(float* sum, const T* x, std::int64_t n) {
    const std::int64_t i = global_thread();
    if (i < n) sum[i] += widen(x[i]);
}
/// Rows of `cols` into rows `ld` apart.
template <class T>
STOA_KERNEL void store_rows_kernel(T* y, const float* sum, std::int64_t n, std::int64_t cols,
                                   std::int64_t ld) {
    const std::int64_t i = global_thread();
    if (i < n) y[i / cols * ld + i % cols] = narrow_to<T>(sum[i]);
}
Launch over(const char* name, std::int64_t n, Stream stream) {
    return {.name = name, .blocks = blocks_for(n, kThreads), .threads = kThreads, .stream = stream};
}

/// The part of a call from batch entry `b` and kv head `kv` on.
SdpaCall part_of(SdpaCall c, std::int64_t b, std::int64_t batch, std::int64_t kv,
                 std::int64_t kv_heads) {
    SdpaShape& s = c.shape;
    const std::int64_t group = s.n_heads / s.n_kv_heads, size = size_of(s.dtype);
    const std::int64_t at_q = (b * s.q_batch + kv * group * s.head_dim) * size;
    const std::int64_t at_kv = (b * s.kv_batch + kv * s.head_dim) * size;
    const std::int64_t at_d_kv = (b * s.d_kv_batch + kv * s.head_dim) * size;
    c.q += at_q, c.out += at_q, c.d_out += at_q, c.d_q += at_q;
    c.k += at_kv, c.v += at_kv;
    c.d_k += at_d_kv, c.d_v += at_d_kv;
    c.lse += b * s.lse_batch + kv * group * s.lse_head;
    c.key_begin += b * s.keys_batch, c.key_end += b * s.keys_batch;
    s.batch = batch;
    s.n_heads = kv_heads * group;
    s.n_kv_heads = kv_heads;
    return c;
}

/// One kv head, its queries in pieces from the first on. d_k and d_v are sums over pieces, in fp32
/// and in their order; a piece's own are in the elements' type.
template <class T>
bool backward_by_queries(const SdpaCall& whole, std::int64_t rows, Stream stream) {
    const SdpaShape& s = whole.shape;
    const std::int64_t n = s.k_len * s.head_dim;
    const Scratch sums(stream, sdpa_sum_bytes(s)), parts(stream, sdpa_part_bytes(s));
    float* const sum = sums.as<float>();
    T* const part = parts.as<T>();
    fill_bytes(sums.as<std::byte>(), 0, sdpa_sum_bytes(s), stream);
    for (std::int64_t begin = 0; begin < s.q_len; begin += rows) {
        SdpaCall c = whole;
        c.shape.q_len = std::min(rows, s.q_len - begin);
        c.shape.k_len = sdpa_piece_keys(s, begin + c.shape.q_len);
        c.shape.causal = false;
        c.shape.d_kv_row = s.head_dim;
        c.shape.d_kv_batch = n;
        const std::int64_t at = begin * s.q_row * static_cast<std::int64_t>(sizeof(T));
        c.q += at, c.out += at, c.d_out += at, c.d_q += at;
        c.lse += begin;
        c.key_begin += begin, c.key_end += begin;
        c.d_k = reinterpret_cast<std::byte*>(part);
        c.d_v = reinterpret_cast<std::byte*>(part + n);
        if (!library_sdpa_backward(c, stream)) return false;
        const std::int64_t written = c.shape.k_len * s.head_dim;
        for (const std::int64_t half : {std::int64_t{0}, n})
            launch(over("attention_backward: add a piece", written, stream), add_kernel<T>,
                   sum + half, part + half, written);
    }
    launch(over("attention_backward: d_k", n, stream), store_rows_kernel<T>,
           reinterpret_cast<T*>(whole.d_k), sum, n, s.head_dim, s.d_kv_row);
    launch(over("attention_backward: d_v", n, stream), store_rows_kernel<T>,
           reinterpret_cast<T*>(whole.d_v), sum + n, n, s.head_dim, s.d_kv_row);
    return true;
}

}  // namespace

bool library_attention_forward(const AttentionArgs& a, Stream stream) {
    SdpaCall c{.shape = sdpa_shape(a.q, a.k, true),
               .scale = a.scale,
               .q = a.q.data,
               .k = a.k.data,
               .v = a.v.data,
               .out = a.out.data};
    if (!a.causal || sdpa_refusal(c.shape) || !aligned({c.q, c.k, c.v, c.out})) return false;
    c.key_begin = a.key_begin.as<std::int32_t>().data();
    c.key_end = a.key_end.as<std::int32_t>().data();
    c.lse = a.lse.as<float>().data();
    return library_sdpa_forward(c, stream);
}

bool library_attention_backward(const AttentionBackwardArgs& a, Stream stream,
                                std::int64_t score_bytes) {
    // The library reads out and lse through the pointers by which the forward writes them.
    SdpaCall whole{.shape = sdpa_shape(a.q, a.k, true),
                   .scale = a.scale,
                   .q = a.q.data,
                   .k = a.k.data,
                   .v = a.v.data,
                   .out = const_cast<std::byte*>(a.out.data),
                   .d_out = a.d_out.data,
                   .d_q = a.d_q.data,
                   .d_k = a.d_k.data,
                   .d_v = a.d_v.data};
    const SdpaShape& s = whole.shape;
    if (!a.causal || sdpa_refusal(s)) return false;
    if (!aligned(
            {whole.q, whole.k, whole.v, whole.out, whole.d_out, whole.d_q, whole.d_k, whole.d_v}))
        return false;
    whole.key_begin = a.key_begin.as<std::int32_t>().data();
    whole.key_end = a.key_end.as<std::int32_t>().data();
    whole.lse = const_cast<float*>(a.lse.as<float>().data());
    const SdpaSplit split = sdpa_split(s, score_bytes);
    for (std::int64_t b = 0; b < s.batch; b += split.batch)
        for (std::int64_t kv = 0; kv < s.n_kv_heads; kv += split.kv_heads) {
            const SdpaCall part = part_of(whole, b, std::min(split.batch, s.batch - b), kv,
                                          std::min(split.kv_heads, s.n_kv_heads - kv));
            const bool done = split.q_len == s.q_len ? library_sdpa_backward(part, stream)
                              : s.dtype == DType::bf16
                                  ? backward_by_queries<bf16>(part, split.q_len, stream)
                                  : backward_by_queries<fp16>(part, split.q_len, stream);
            if (!done) return false;
        }
    return true;
}

void attention_forward(const AttentionArgs& args, Stream stream) {
    if (!library_attention_forward(args, stream)) own_attention_forward(args, stream);
}

void attention_backward(const AttentionBackwardArgs& args, Stream stream) {
    if (!library_attention_backward(args, stream, kSdpaScoreBytes))
        own_attention_backward(args, stream);
}

}  // namespace stoa::cuda
