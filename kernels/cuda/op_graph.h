#pragma once
// A graph of tensor operations as plain data: cudnn_graph.cpp makes a plan of the library's from
// it, and on the host its operations are computed one by one (host/host_sdpa.cpp).
#include <array>
#include <cstdint>
#include <vector>

namespace stoa::cuda {

using Dims = std::array<std::int64_t, 4>;
inline Dims packed_strides(const Dims& d) { return {d[1] * d[2] * d[3], d[2] * d[3], d[3], 1}; }

enum class GraphType : std::uint8_t { fp32, bf16, fp16, int32, boolean };
enum class GraphPlace : std::uint8_t {
    memory,   // the plan takes its address by its id
    scalar,   // one fp32, read from host memory when the plan runs
    between,  // never in memory
};
struct GraphTensor {
    std::int64_t id = 0;
    GraphType type = GraphType::fp32;
    GraphPlace place = GraphPlace::memory;
    Dims dims{}, strides{};
};

/// An axis of size 1 spreads over the other operand's. matmul: the last two axes; leading ones of b
/// may divide those of a, which then share b's in groups.
enum class GraphOp : std::uint8_t {
    matmul,         // a b
    multiply,       // a * b
    add,            // a + b
    subtract,       // a - b
    divide,         // a / b
    exp,            // of a
    log,            // of a
    greater_equal,  // a >= b
    less,           // a < b
    select,         // c ? a : b
    index,          // along an axis of a
    reduce_max,     // of a, over the axes where y has 1, or in groups where y's divides a's
    reduce_sum,     // likewise
    reshape,        // a's values in y's strides
};
constexpr std::size_t kNone = ~std::size_t{0};
struct GraphStep {
    GraphOp op = GraphOp::matmul;
    std::size_t y = kNone, a = kNone, b = kNone, c = kNone;  // places in OpGraph::tensors
    std::int64_t axis = -1;
};

struct OpGraph {
    std::vector<GraphTensor> tensors;
    std::vector<GraphStep> steps;

    std::size_t memory(std::int64_t id, GraphType type, const Dims& dims, const Dims& strides) {
        return append({id, type, GraphPlace::memory, dims, strides});
    }
    std::size_t scalar(std::int64_t id) {
        return append({id, GraphType::fp32, GraphPlace::scalar, {1, 1, 1, 1}, {1, 1, 1, 1}});
    }
    std::size_t between(GraphType type, const Dims& dims, const Dims& strides) {
        const auto id = static_cast<std::int64_t>(1000 + tensors.size());
        return append({id, type, GraphPlace::between, dims, strides});
    }
    std::size_t between(GraphType type, const Dims& dims) {
        return between(type, dims, packed_strides(dims));
    }
    /// Appends the step and returns y.
    std::size_t step(GraphOp op, std::size_t y, std::size_t a, std::size_t b = kNone,
                     std::size_t c = kNone, std::int64_t axis = -1) {
        steps.push_back({op, y, a, b, c, axis});
        return y;
    }

private:
    std::size_t append(const GraphTensor& t) {
        tensors.push_back(t);
        return tensors.size() - 1;
    }
};

}  // namespace stoa::cuda
