// kernels/cuda/sdpa.h by cuDNN: plans are made once a shape, and run on the stream.
#include <map>
#include <memory>

#include "kernels/cuda/cudnn_graph.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/sdpa_graph.h"

namespace stoa::cuda {
namespace {

/// nullptr: the library has none, and is not asked again.
using Plans = std::map<SdpaShape, std::unique_ptr<CudnnPlan>>;

/// A thread's handle and its plans; a thread works on one device. They live as long as the thread:
/// a plan takes a second to make, and the ops have no place to keep one.
struct Library {
    cudnnHandle_t handle = nullptr;
    Plans forward, backward;
    Library() { check_cudnn(cudnnCreate(&handle), "create"); }
    ~Library() { (void)cudnnDestroy(handle); }
    Library(const Library&) = delete;
    Library& operator=(const Library&) = delete;
};
Library& library() {
    thread_local Library l;
    return l;
}

const CudnnPlan* plan_for(Plans& plans, const SdpaShape& shape,
                          OpGraph (*graph)(const SdpaShape&)) {
    const auto [at, missing] = plans.try_emplace(shape);
    if (missing)
        at->second =
            try_plan(graph(shape), {.handle = library().handle},
                     std::string("attention of head_dim ") + std::to_string(shape.head_dim) + ", " +
                         std::to_string(shape.q_len) + " queries");
    return at->second.get();
}

void run(const CudnnPlan& plan, const SdpaCall& c, float* delta, Stream stream) {
    float scale = static_cast<float>(c.scale), masked = kSdpaMasked, one = 1.0f;
    struct Place {
        SdpaTensor id;
        const void* data;
    };
    // What the plan does not name has no address.
    const Place all[] = {{SdpaTensor::q, c.q},
                         {SdpaTensor::k, c.k},
                         {SdpaTensor::v, c.v},
                         {SdpaTensor::out, c.out},
                         {SdpaTensor::lse, c.lse},
                         {SdpaTensor::key_begin, c.key_begin},
                         {SdpaTensor::key_end, c.shape.causal ? nullptr : c.key_end},
                         {SdpaTensor::d_out, c.d_out},
                         {SdpaTensor::d_q, c.d_q},
                         {SdpaTensor::d_k, c.d_k},
                         {SdpaTensor::d_v, c.d_v},
                         {SdpaTensor::delta, delta},
                         {SdpaTensor::scale, &scale},
                         {SdpaTensor::masked, &masked},
                         {SdpaTensor::one, delta == nullptr ? nullptr : &one}};
    std::vector<std::int64_t> ids;
    std::vector<void*> data;
    for (const Place& p : all) {
        if (p.data == nullptr) continue;
        ids.push_back(static_cast<std::int64_t>(p.id));
        data.push_back(const_cast<void*>(p.data));
    }
    const Scratch workspace(stream, plan.workspace_bytes);
    CudnnDescriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, data);
    pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, ids);
    void* const memory = workspace.as<std::byte>();
    pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, memory);
    pack.finalize("addresses of a plan");
    Library& l = library();
    check_cudnn(cudnnSetStream(l.handle, static_cast<cudaStream_t>(stream.handle)), "stream");
    check_cudnn(cudnnBackendExecute(l.handle, plan.plan.get(), pack.get()), "attention");
}

}  // namespace

bool has_cudnn() { return true; }

bool library_sdpa_forward(const SdpaCall& call, Stream stream) {
    const CudnnPlan* const plan = plan_for(library().forward, call.shape, sdpa_forward_graph);
    if (plan == nullptr) return false;
    run(*plan, call, nullptr, stream);
    return true;
}

bool library_sdpa_backward(const SdpaCall& call, Stream stream) {
    const CudnnPlan* const plan = plan_for(library().backward, call.shape, sdpa_backward_graph);
    if (plan == nullptr) return false;
    const Scratch delta(stream, sdpa_delta_bytes(call.shape));
    run(*plan, call, delta.as<float>(), stream);
    return true;
}

}  // namespace stoa::cuda
