// The terms of one step. Formulas: docs/cost_model.md.
#include <algorithm>
#include <cmath>

#include "configs/attention_config.h"
#include "configs/recipe.h"
#include "trainer/cost_model/cost_model.h"
#include "trainer/memory_advice.h"

namespace stoa {
namespace {

constexpr double kGiga = 1e9, kTera = 1e12;

double d(std::int64_t x) { return static_cast<double>(x); }
double bytes_of(DType t) { return d(size_of(t)); }

/// One kind of product: rows x n x k, `count` times in forward; its operands' format.
struct Product {
    double rows, n, k, count;
    DType format;
    bool again = true;  // full recompute makes it a second time: the blocks' products, but the last
    double flop() const { return 2.0 * rows * n * k; }
};

// Of one micro-batch on one rank (trainer/model/block.cpp, ffn.cpp, loss.cpp).
std::vector<Product> products_of(const RunConfig& c) {
    const ModelConfig& m = c.model;
    const Formats f = formats_of(c.precision);
    const double rows = d(c.batch.micro_batch * c.stages.back().seq_len), tp = d(c.parallel.tp);
    const double q = d(m.n_heads * m.head_dim) / tp, kv = d(m.n_kv_heads * m.head_dim) / tp;
    const double ff = d(m.d_ff) / tp, width = d(m.d_model), layers = d(m.n_layers);
    double edges = 0;  // blocks whose feed-forward has the wider format
    for (std::int64_t l = 0; l < m.n_layers; ++l)
        edges += ffn_format(f, c, l) == f.ffn_edge ? 1 : 0;
    return {{rows, q, width, layers, f.attention},
            {rows, kv, width, 2 * layers, f.attention},
            {rows, width, q, layers, f.attention},
            {rows, ff, width, 2 * edges, f.ffn_edge},
            {rows, width, ff, edges, f.ffn_edge, false},
            {rows, ff, width, 2 * (layers - edges), f.ffn},
            {rows, width, ff, layers - edges, f.ffn, false},
            {rows, d(m.vocab_size) / tp, width, 1, f.residual, false}};
}

double peak_of(const Cluster& cl, DType format) {
    if (format == DType::e4m3) return kTera * cl.fp8_tflops * cl.gemm_fp8;
    return kTera * (size_of(format) >= 4 ? cl.fp32_tflops : cl.bf16_tflops) * cl.gemm;
}

// Small products do not fill the device: t = flop / peak + half / peak.
double product_seconds(const Product& p, const Cluster& cl) {
    return (p.flop() + kGiga * cl.gemm_half_gflop) / peak_of(cl, p.format);
}

// Two products in backward for one in forward; full recompute makes the blocks' again, but the
// last.
double gemm_seconds(const RunConfig& c, const Cluster& cl) {
    double sum = 0;
    for (const Product& p : products_of(c)) {
        const bool again = p.again && c.parallel.recompute == Recompute::full;
        sum += p.count * (again ? 4.0 : 3.0) * product_seconds(p, cl);
    }
    return sum;
}

// What a query of a causal layer reads, on average: half of the sequence; or window, sinks and
// selected keys, and of a tree the nodes between them.
double keys_of_query(const AttentionConfig& a, std::int64_t layer, double seq) {
    const LayerAttention kind = layer_attention(a, layer);
    double keys = d(a.window + a.sinks);
    if (kind == LayerAttention::importance) keys += d(a.keep) + a.dense_rows * seq / 2;
    if (kind == LayerAttention::tree) {
        const double levels =
            std::ceil(std::log(std::max(2.0, seq / d(a.leaf))) / std::log(d(a.fanout)));
        keys += d(a.leaf) / 2 + d(a.beam * a.leaf) + levels * d(a.beam * a.fanout + a.fanout - 1);
    }
    return kind == LayerAttention::dense ? seq / 2 : std::min(keys, seq / 2);
}

// 4 rows keys q_cols in forward; 5 products of that size instead of 2 in
// backward [Dao et al. 2022].
double attention_seconds(const RunConfig& c, const Cluster& cl) {
    const double seq = d(c.stages.back().seq_len), rows = d(c.batch.micro_batch) * seq;
    const double q = d(c.model.n_heads * c.model.head_dim) / d(c.parallel.tp);
    double pairs = 0.0;  // of a query, all layers
    for (std::int64_t l = 0; l < c.model.n_layers; ++l)
        pairs += keys_of_query(attention_of(c, c.stages.back()), l, seq);
    const double forward = 4.0 * rows * pairs * q;
    const bool wide = size_of(formats_of(c.precision).attention) >= 4;
    const double rate = kTera * (wide ? cl.fp32_tflops : cl.bf16_tflops) * cl.attention;
    const double passes = c.parallel.recompute == Recompute::full ? 4.5 : 3.5;
    return passes * forward / rate;
}

// Bytes that kernels without reuse move, per token: norms, residual additions, rope, SwiGLU,
// quantisation; the logits. Backward moves about twice of forward's.
double elementwise_seconds(const RunConfig& c, const Cluster& cl) {
    const ModelConfig& m = c.model;
    const Formats f = formats_of(c.precision);
    const double tp = d(c.parallel.tp), share = c.parallel.sequence ? tp : 1.0;
    const double q = d((m.n_heads + m.n_kv_heads) * m.head_dim) / tp, ff = d(m.d_ff) / tp;
    const double width = d(m.d_model), res = bytes_of(f.residual), att = bytes_of(f.attention);
    const bool fp8 = f.ffn == DType::e4m3;
    const double between = fp8 ? 2.0 : bytes_of(f.ffn);  // before codes
    double forward = 10.0 * width * res / share + 4.0 * q * att + 3.0 * ff * between;
    if (fp8)  // read once, written as codes along rows and along columns
        forward += (width + 3.0 * ff) * (between + 2.0);
    const double again = c.parallel.recompute == Recompute::none ? 0.0 : 1.0;
    const double logits = 6.0 * d(m.vocab_size) / tp * bytes_of(f.residual);
    const double tokens = d(c.batch.micro_batch * c.stages.back().seq_len);
    return tokens * (d(m.n_layers) * (3.0 + again) * forward + logits) /
           (kGiga * cl.bandwidth_gb_s * cl.memory);
}

/// A group of `ranks`, `near` of them on one node.
struct Wire {
    double bytes_per_s, latency_s;
};
// Ring collectives use the links of all the group's devices on a node [Thakur et al. 2005].
Wire wire_of(const Cluster& cl, double ranks, double near) {
    const double link = kGiga * cl.link_gb_s * cl.link;
    if (ranks <= near) return {link, 1e-6 * cl.link_latency_us};
    const double out = kGiga * cl.network_gb_s * cl.network * std::max(1.0, near);
    return {std::min(link, out), 1e-6 * cl.network_latency_us};
}
// reduce-scatter or all-gather of `bytes` over a ring: (n - 1) / n of them pass each link.
double ring_seconds(const Wire& w, double ranks, double bytes) {
    if (ranks <= 1) return 0.0;
    return (ranks - 1) / ranks * bytes / w.bytes_per_s + std::log2(ranks) * w.latency_s;
}

// Sums of the residual stream: two in forward, two in backward of each block, each a reduce-scatter
// and an all-gather; full recompute repeats one.
double tp_seconds(const RunConfig& c, const Cluster& cl) {
    const double tp = d(c.parallel.tp);
    const double bytes =
        d(c.batch.micro_batch * c.stages.back().seq_len * c.model.d_model) * cl.sum_bytes;
    const Wire w = wire_of(cl, tp, cl.node_devices);
    const double sums = d(c.model.n_layers) * (c.parallel.recompute == Recompute::full ? 5 : 4) + 2;
    return sums * 2.0 * ring_seconds(w, tp, bytes);
}

struct Parameters {
    double blocks = 0, rest = 0, ffn = 0;  // elements of a rank
};
Parameters parameters_of(const RunConfig& c) {
    const ModelConfig& m = c.model;
    const double tp = d(c.parallel.tp), width = d(m.d_model), layers = d(m.n_layers);
    Parameters p;
    p.ffn = layers * 3.0 * width * d(m.d_ff) / tp;
    p.blocks = p.ffn + layers * 2.0 * width * d((m.n_heads + m.n_kv_heads) * m.head_dim) / tp;
    p.rest = width * d(m.vocab_size) / tp * (m.tie_embeddings ? 1.0 : 2.0);
    return p;
}
double work_bytes(const RunConfig& c, const Parameters& p) {
    const Formats f = formats_of(c.precision);
    return p.ffn * bytes_of(f.ffn) + (p.blocks - p.ffn) * bytes_of(f.attention) +
           p.rest * bytes_of(f.residual);
}

// Of a step: gradients once per dp shard of a rank, working copies once, or with zero: 3 twice per
// micro-batch.
double dp_seconds(const RunConfig& c, const Cluster& cl) {
    const double dp = d(c.parallel.dp), tp = d(c.parallel.tp);
    if (dp <= 1) return 0.0;
    const Wire w = wire_of(cl, dp, std::max(1.0, std::floor(cl.node_devices / tp)));
    const Parameters p = parameters_of(c);
    const double passes = d(c.batch.global_batch) / (dp * d(c.batch.micro_batch));
    const double shards = d(virtual_mesh(c, c.parallel.dp, c.parallel.tp).dp_shards) / dp;
    const double grads = (p.blocks + p.rest) * bytes_of(formats_of(c.precision).grad);
    const double sums = shards * ring_seconds(w, dp, grads) * (c.parallel.zero == 0 ? 2.0 : 1.0);
    const double work = work_bytes(c, p);
    if (c.parallel.zero == 0) return sums;
    return sums + (c.parallel.zero >= 3 ? 2.0 * passes : 1.0) * ring_seconds(w, dp, work);
}

// AdamW: gradient read, master, m and v read and written, working copy written.
double optimizer_seconds(const RunConfig& c, const Cluster& cl) {
    const Formats f = formats_of(c.precision);
    const Parameters p = parameters_of(c);
    const double own = c.parallel.zero >= 1 ? d(c.parallel.dp) : 1.0;
    const double bytes = (p.blocks + p.rest) * (bytes_of(f.grad) + 2.0 * bytes_of(f.master) +
                                                2.0 * bytes_of(f.m) + 2.0 * bytes_of(f.v)) +
                         work_bytes(c, p);
    return bytes / own / (kGiga * cl.bandwidth_gb_s * cl.memory);
}

std::string limit_of(const StepCost& s) {
    const std::pair<double, const char*> parts[] = {
        {s.gemm + s.attention, "compute"},
        {s.elementwise + s.optimizer, "memory bandwidth"},
        {s.exposed_tp, "tp communication"},
        {s.exposed_dp, "dp communication"},
        {s.fixed + s.jitter, "waiting"}};
    return std::ranges::max(parts, {}, [](const auto& p) { return p.first; }).second;
}

}  // namespace

double model_flops_per_token(const RunConfig& config, bool causal) {
    const ModelConfig& m = config.model;
    RunConfig whole = config;
    whole.parallel.tp = 1;
    const Parameters p = parameters_of(whole);
    const double weights = p.blocks + d(m.d_model * m.vocab_size);  // the look-up is free
    const double square =
        12.0 * d(m.n_layers * m.n_heads * m.head_dim) * d(config.stages.back().seq_len);
    return 6.0 * weights + (causal ? 0.5 : 1.0) * square;
}

StepCost predict_step(const RunConfig& c, const Cluster& cl) {
    const double ranks = d(c.parallel.dp * c.parallel.tp);
    const double passes = d(c.batch.global_batch) / d(c.batch.micro_batch * c.parallel.dp);
    StepCost s;
    s.gemm = passes * gemm_seconds(c, cl);
    s.attention = passes * attention_seconds(c, cl);
    s.elementwise = passes * elementwise_seconds(c, cl);
    s.optimizer = optimizer_seconds(c, cl);
    s.tp_comm = passes * tp_seconds(c, cl);
    s.dp_comm = dp_seconds(c, cl);
    // Beside computation: tp next to the products of the same block; dp next to a backward pass,
    // with zero: 3 next to all.
    const double overlap = c.parallel.overlap != Overlap::off ? cl.overlap : 0.0;
    const double beside_dp =
        (c.parallel.zero >= 3 ? 1.0 : 2.0 / 3.0 / std::max(1.0, passes)) * s.compute();
    s.exposed_tp = s.tp_comm - std::min(overlap * s.tp_comm, s.gemm);
    s.exposed_dp = s.dp_comm - std::min(overlap * s.dp_comm, beside_dp);
    s.fixed = 1e-3 * cl.step_ms;
    const double busy = s.compute() + s.optimizer + s.exposed_tp + s.exposed_dp + s.fixed;
    s.jitter = busy * cl.jitter * std::log2(std::max(1.0, ranks / cl.node_devices));
    s.seconds = busy + s.jitter;
    s.tokens_per_s = d(c.batch.global_batch * c.stages.back().seq_len) / s.seconds;
    s.tokens_per_s_device = s.tokens_per_s / ranks;
    s.tflops_device = s.tokens_per_s_device * model_flops_per_token(c, true) / kTera;
    s.mfu = s.tflops_device / cl.bf16_tflops;
    s.limit = limit_of(s);
    return s;
}

}  // namespace stoa
