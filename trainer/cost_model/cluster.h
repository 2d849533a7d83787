#pragma once
// What the cost model knows of machines: figures of data sheets, and which share of them is
// reached.
#include <string>

namespace stoa {

/// One kind of cluster, from a YAML file (configs/clusters/, docs/cost_model.md). Rates are
/// decimal: 1 GB = 1e9 bytes. Every key must be there.
struct Cluster {
    std::string name, source;
    // device
    double memory_gb = 0, bandwidth_gb_s = 0;
    double fp32_tflops = 0, bf16_tflops = 0, fp8_tflops = 0;
    // node: devices that share a fast link; bandwidth of one device in one direction
    double node_devices = 0, link_gb_s = 0, link_latency_us = 0;
    // network between nodes, of one device in one direction
    double network_gb_s = 0, network_latency_us = 0;
    // reached: shares of the figures above
    double gemm = 0, gemm_fp8 = 0;  // of large products, by the format of their operands
    double gemm_half_gflop = 0;     // work of a product that runs at half of that
    double attention = 0;           // of bf16 (of fp32 where operands are), in causal attention
    double memory = 0;              // of bandwidth, in elementwise kernels
    double link = 0, network = 0;
    double overlap = 0;    // share of communication that may lie beside computation
    double sum_bytes = 0;  // of a value in the sums of tensor parallel
    double step_ms = 0;    // of a step, whatever it does
    double jitter = 0;     // time that each doubling of the nodes adds, by waiting for the slowest
};

/// errors: ConfigError for a missing file, unknown or missing keys, values out of range
Cluster load_cluster(const std::string& path);
Cluster parse_cluster(const std::string& text, const std::string& path);

}  // namespace stoa
