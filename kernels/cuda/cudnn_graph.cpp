#include "kernels/cuda/cudnn_graph.h"

#include <utility>

#include "kernels/core/error.h"
#include "kernels/core/log.h"

namespace stoa::cuda {
namespace {

std::string last_words() {
    char text[2048] = {};
    cudnnGetLastErrorString(text, sizeof text);
    return text;
}

std::int64_t number_of(const CudnnDescriptor& d, cudnnBackendAttributeName_t name) {
    std::int64_t value = -1, count = 0;
    check_cudnn(cudnnBackendGetAttribute(d.get(), name, CUDNN_TYPE_INT64, 1, &count, &value),
                "attribute");
    return value;
}

}  // namespace

void check_cudnn(cudnnStatus_t status, const char* what) {
    if (status == CUDNN_STATUS_SUCCESS) return;
    throw DeviceError({.what = "cuDNN refused or failed",
                       .where = what,
                       .actual = std::string(cudnnGetErrorString(status)) + ": " + last_words()});
}

CudnnDescriptor::CudnnDescriptor(cudnnBackendDescriptorType_t type) {
    check_cudnn(cudnnBackendCreateDescriptor(type, &handle_), "descriptor");
}
CudnnDescriptor::~CudnnDescriptor() {
    if (handle_ != nullptr) (void)cudnnBackendDestroyDescriptor(handle_);
}
CudnnDescriptor::CudnnDescriptor(CudnnDescriptor&& other) noexcept
    : handle_(std::exchange(other.handle_, nullptr)) {}
CudnnDescriptor& CudnnDescriptor::operator=(CudnnDescriptor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
}
void CudnnDescriptor::set(cudnnBackendAttributeName_t name, const CudnnDescriptor& other) {
    set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, other.handle_);
}
void CudnnDescriptor::set_bytes(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                                std::int64_t count, const void* values) {
    check_cudnn(cudnnBackendSetAttribute(handle_, name, type, count, values), "attribute");
}
void CudnnDescriptor::finalize(const char* what) {
    check_cudnn(cudnnBackendFinalize(handle_), what);
}

namespace {

cudnnDataType_t data_type(GraphType t) {
    switch (t) {
        case GraphType::bf16:
            return CUDNN_DATA_BFLOAT16;
        case GraphType::fp16:
            return CUDNN_DATA_HALF;
        case GraphType::int32:
            return CUDNN_DATA_INT32;
        case GraphType::boolean:
            return CUDNN_DATA_BOOLEAN;
        default:
            return CUDNN_DATA_FLOAT;
    }
}

cudnnPointwiseMode_t pointwise_mode(GraphOp op) {
    switch (op) {
        case GraphOp::multiply:
            return CUDNN_POINTWISE_MUL;
        case GraphOp::add:
            return CUDNN_POINTWISE_ADD;
        case GraphOp::subtract:
            return CUDNN_POINTWISE_SUB;
        case GraphOp::divide:
            return CUDNN_POINTWISE_DIV;
        case GraphOp::exp:
            return CUDNN_POINTWISE_EXP;
        case GraphOp::log:
            return CUDNN_POINTWISE_LOG;
        case GraphOp::greater_equal:
            return CUDNN_POINTWISE_CMP_GE;
        case GraphOp::less:
            return CUDNN_POINTWISE_CMP_LT;
        case GraphOp::select:
            return CUDNN_POINTWISE_BINARY_SELECT;
        default:
            return CUDNN_POINTWISE_GEN_INDEX;
    }
}

/// The graph's descriptors: they live until the plan is made.
struct Lowered {
    std::vector<CudnnDescriptor> tensors, details, operations;

    void tensor(const GraphTensor& from) {
        CudnnDescriptor t(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
        t.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, from.id);
        t.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, data_type(from.type));
        t.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64,
              std::vector<std::int64_t>(from.dims.begin(), from.dims.end()));
        t.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64,
              std::vector<std::int64_t>(from.strides.begin(), from.strides.end()));
        t.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, std::int64_t{16});
        t.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, from.place == GraphPlace::between);
        t.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, from.place == GraphPlace::scalar);
        t.finalize("tensor of a graph");
        tensors.push_back(std::move(t));
    }
    CudnnDescriptor& detail(cudnnBackendDescriptorType_t type) {
        return details.emplace_back(type);
    }
    CudnnDescriptor& operation(cudnnBackendDescriptorType_t type) {
        return operations.emplace_back(type);
    }
    void matmul(const GraphStep& s) {
        CudnnDescriptor& how = detail(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
        how.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
        how.finalize("matmul");
        CudnnDescriptor& op = operation(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
        op.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
        op.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, tensors[s.a]);
        op.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, tensors[s.b]);
        op.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, tensors[s.y]);
        op.finalize("matmul of a graph");
    }
    void pointwise(const GraphStep& s) {
        CudnnDescriptor& how = detail(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
        how.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, pointwise_mode(s.op));
        how.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
        if (s.op == GraphOp::index) how.set(CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, s.axis);
        how.finalize("pointwise");
        CudnnDescriptor& op = operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
        op.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
        op.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, tensors[s.a]);
        if (s.b != kNone) op.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, tensors[s.b]);
        if (s.c != kNone) op.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, tensors[s.c]);
        op.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, tensors[s.y]);
        op.finalize("pointwise of a graph");
    }
    void reduce(const GraphStep& s) {
        CudnnDescriptor& how = detail(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
        how.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
        how.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE,
                s.op == GraphOp::reduce_max ? CUDNN_REDUCE_TENSOR_MAX : CUDNN_REDUCE_TENSOR_ADD);
        how.finalize("reduction");
        CudnnDescriptor& op = operation(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
        op.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
        op.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, tensors[s.a]);
        op.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, tensors[s.y]);
        op.finalize("reduction of a graph");
    }
    void reshape(const GraphStep& s) {
        CudnnDescriptor& op = operation(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
        op.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, tensors[s.a]);
        op.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, tensors[s.y]);
        op.finalize("reshape of a graph");
    }
    explicit Lowered(const OpGraph& graph) {
        for (const GraphTensor& t : graph.tensors)
            tensor(t);
        for (const GraphStep& s : graph.steps) {
            if (s.op == GraphOp::matmul)
                matmul(s);
            else if (s.op == GraphOp::reshape)
                reshape(s);
            else if (s.op == GraphOp::reduce_max || s.op == GraphOp::reduce_sum)
                reduce(s);
            else
                pointwise(s);
        }
    }
};

}  // namespace

CudnnPlan make_plan(const OpGraph& graph, const PlanDevice& device) {
    const Lowered lowered(graph);
    std::vector<cudnnBackendDescriptor_t> operations;
    for (const CudnnDescriptor& op : lowered.operations)
        operations.push_back(op.get());
    CudnnDescriptor whole(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    whole.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, operations);
    // A handle names the device to the graph and the plan; a description goes to choice and plan.
    const bool described = device.handle == nullptr;
    CudnnDescriptor properties(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
    if (described) {
        const char* const json = device.described.c_str();
        properties.set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                       std::vector<char>(json, json + device.described.size() + 1));
        properties.finalize("description of a device");
    } else {
        whole.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, device.handle);
    }
    whole.finalize("graph");
    CudnnDescriptor proposals(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    proposals.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, whole);
    proposals.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, CUDNN_HEUR_MODE_A);
    if (described) proposals.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, properties);
    proposals.finalize("choice of an engine");

    constexpr std::int64_t kMost = 16;
    std::vector<CudnnDescriptor> configs;
    std::vector<cudnnBackendDescriptor_t> handles;
    for (std::int64_t i = 0; i < kMost; ++i) {
        configs.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
        handles.push_back(configs.back().get());
    }
    std::int64_t found = 0;
    check_cudnn(
        cudnnBackendGetAttribute(proposals.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                 CUDNN_TYPE_BACKEND_DESCRIPTOR, kMost, &found, handles.data()),
        "engines");
    std::string reason = "no engine takes this graph";
    for (std::int64_t i = 0; i < found; ++i) {
        CudnnDescriptor& config = configs[static_cast<std::size_t>(i)];
        try {
            CudnnDescriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
            plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
            if (described)
                plan.set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, properties);
            else
                plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, device.handle);
            plan.finalize("plan");
            const CudnnDescriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
            cudnnBackendDescriptor_t handle = engine.get();
            std::int64_t count = 0;
            check_cudnn(cudnnBackendGetAttribute(config.get(), CUDNN_ATTR_ENGINECFG_ENGINE,
                                                 CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &handle),
                        "engine");
            const std::int64_t bytes = number_of(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
            return {std::move(plan), number_of(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX), bytes};
        } catch (const DeviceError& e) {
            reason = e.fields().where + ": " + e.fields().actual;
        }
    }
    throw DeviceError({.what = "cuDNN has no kernel for a graph", .actual = reason});
}

std::unique_ptr<CudnnPlan> try_plan(const OpGraph& graph, const PlanDevice& device,
                                    const std::string& what) {
    try {
        return std::make_unique<CudnnPlan>(make_plan(graph, device));
    } catch (const DeviceError& e) {
        log_warn("{}: {}; our own kernels take it, more slowly", what, e.what());
        return nullptr;
    }
}

}  // namespace stoa::cuda
