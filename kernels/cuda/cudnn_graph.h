#pragma once
// cuDNN's backend interface: an OpGraph becomes a plan that one engine carries out. Plain C++: it
// needs cudnn.h, neither nvcc nor a GPU.
#include <cudnn.h>

#include <memory>
#include <string>

#include "kernels/cuda/op_graph.h"

namespace stoa::cuda {

/// errors: DeviceError with cuDNN's own words
void check_cudnn(cudnnStatus_t status, const char* what);

/// The one owner of a backend descriptor.
class CudnnDescriptor {
public:
    explicit CudnnDescriptor(cudnnBackendDescriptorType_t type);
    ~CudnnDescriptor();
    CudnnDescriptor(CudnnDescriptor&& other) noexcept;
    CudnnDescriptor& operator=(CudnnDescriptor&& other) noexcept;
    cudnnBackendDescriptor_t get() const { return handle_; }
    template <class T>
    void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
             const std::vector<T>& values) {
        set_bytes(name, type, static_cast<std::int64_t>(values.size()), values.data());
    }
    template <class T>
    void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const T& value) {
        set_bytes(name, type, 1, &value);
    }
    void set(cudnnBackendAttributeName_t name, const CudnnDescriptor& other);
    void finalize(const char* what);

private:
    void set_bytes(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                   std::int64_t count, const void* values);
    cudnnBackendDescriptor_t handle_ = nullptr;
};

/// What a plan is made for: the device of `handle`, or one that is only described, in cuDNN's JSON.
struct PlanDevice {
    cudnnHandle_t handle = nullptr;
    std::string described;
};

struct CudnnPlan {
    CudnnDescriptor plan;
    std::int64_t engine = -1;  // cuDNN's number for it
    std::int64_t workspace_bytes = 0;
};
/// The first of the engines that cuDNN proposes whose kernels compile: the same for the same graph,
/// device and version of cuDNN. All arithmetic in fp32.
/// errors: DeviceError where no engine takes the graph
CudnnPlan make_plan(const OpGraph& graph, const PlanDevice& device);
/// The same; nullptr and a line in the log where no engine takes it.
std::unique_ptr<CudnnPlan> try_plan(const OpGraph& graph, const PlanDevice& device,
                                    const std::string& what);

}  // namespace stoa::cuda
