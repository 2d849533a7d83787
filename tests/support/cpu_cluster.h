#pragma once
// The figures of this machine for the cost model: kernels and links, each rank of one thread, all
// ranks at once; measured in rounds, so that what is compared sees the same machine.
#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/attention.h"
#include "kernels/core/buffer.h"
#include "kernels/matmul.h"
#include "parallel/collectives.h"
#include "parallel/mesh.h"
#include "trainer/cost_model/cost_model.h"

namespace stoa::test {

template <class Fn>
double seconds_of(const Fn& fn) {
    const auto begin = std::chrono::steady_clock::now();
    fn();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}
inline double median(std::vector<double> v) {
    std::ranges::sort(v);
    return v.empty() ? 0.0 : v[v.size() / 2];
}

/// Products of a block of width 384 in the three orders of a step: FLOP/s of one round.
inline double measure_gemm() {
    constexpr std::int64_t kRows = 1024, kIn = 384, kOut = 1152;
    static const Tensor x({kRows, kIn}, DType::fp32), w({kOut, kIn}, DType::fp32),
        y({kRows, kOut}, DType::fp32);
    const double s = seconds_of([] {
        matmul({.c = y, .a = x, .b = w, .transpose_b = true}, {});
        matmul({.c = x, .a = y, .b = w}, {});
        matmul({.c = w, .a = y, .b = x, .transpose_a = true, .chain = true}, {});
    });
    return 3.0 * 2.0 * kRows * kIn * kOut / s;
}

/// Causal attention, forward and backward, in FLOP/s of the model's count.
inline double measure_attention() {
    constexpr std::int64_t kBatch = 2, kSeq = 256, kHeads = 4, kDim = 64;
    const Shape shape{kBatch, kSeq, kHeads, kDim};
    static const Tensor q(shape, DType::fp32), k(shape, DType::fp32), v(shape, DType::fp32),
        out(shape, DType::fp32), d_out(shape, DType::fp32), d_q(shape, DType::fp32),
        d_k(shape, DType::fp32), d_v(shape, DType::fp32);
    static const Tensor lse({kBatch, kHeads, kSeq}, DType::fp32);
    static const Tensor key_begin({kBatch * kSeq}, DType::int32),
        key_end({kBatch * kSeq}, DType::int32);
    for (std::int64_t r = 0; r < kBatch * kSeq; ++r)
        key_end.as<std::int32_t>()[static_cast<std::size_t>(r)] =
            static_cast<std::int32_t>(r % kSeq + 1);
    const double s = seconds_of([] {
        attention_forward({.out = out,
                           .lse = lse,
                           .q = q,
                           .k = k,
                           .v = v,
                           .key_begin = key_begin,
                           .key_end = key_end,
                           .scale = 0.125},
                          {});
        attention_backward({.d_q = d_q,
                            .d_k = d_k,
                            .d_v = d_v,
                            .d_out = d_out,
                            .out = out,
                            .lse = lse,
                            .q = q,
                            .k = k,
                            .v = v,
                            .key_begin = key_begin,
                            .key_end = key_end,
                            .scale = 0.125},
                           {});
    });
    return 3.5 * 2.0 * kBatch * kSeq * kSeq * kHeads * kDim / s;
}

/// Bytes/s of one rank in a reduce-scatter and an all-gather of 2 MB over `comm`.
inline double measure_link(const Communicator& comm) {
    static const Tensor t({1 << 19}, DType::fp32);
    barrier(comm);
    const double s = seconds_of([&] { all_reduce(t, ReduceOp::sum, comm, {}); });
    return 2.0 * (comm.size() - 1) / comm.size() * static_cast<double>(t.view.bytes()) / s;
}

/// One thread of this CPU as a device. `memory_rate`: bytes/s of what is neither product nor
/// attention, as the model counts bytes (from a step whose time is known).
inline Cluster cpu_cluster(double gemm, double attention, double link, double memory_rate) {
    Cluster c;
    c.name = "this machine";
    c.memory_gb = 1e6;
    c.fp32_tflops = c.bf16_tflops = c.fp8_tflops = gemm / 1e12;  // narrow operands are widened
    c.gemm = c.gemm_fp8 = c.memory = c.link = c.network = 1.0;
    c.attention = attention / gemm;
    c.bandwidth_gb_s = memory_rate / 1e9;
    c.node_devices = 1024;
    c.link_gb_s = c.network_gb_s = link / 1e9;
    c.sum_bytes = 4;
    return c;
}

/// The rate at which the model predicts `seconds` for `config`, with the other figures as they are.
inline double memory_rate_of(const RunConfig& config, double seconds, Cluster c) {
    double low = 1e7, high = 1e12;
    for (int i = 0; i < 80; ++i) {
        const double rate = std::sqrt(low * high);
        c.bandwidth_gb_s = rate / 1e9;
        (predict_step(config, c).seconds > seconds ? low : high) = rate;
    }
    return std::sqrt(low * high);
}

}  // namespace stoa::test
