// Linked instead of the .cu files when the build has no CUDA toolkit.
#include "kernels/cuda/device.h"
#include "kernels/cuda/graph.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sdpa.h"

namespace stoa::cuda {
namespace {

constexpr const char* kReason =
    "this build has no CUDA backend (STOA_CUDA=OFF or no toolkit was found)";
[[noreturn]] void refuse() {
    throw DeviceError({.what = kReason, .hint = "run on the CPU, or build with the CUDA toolkit"});
}

}  // namespace

std::vector<DeviceInfo> list_devices(std::string& reason) {
    reason = kReason;
    return {};
}
bool runs_kernels() { return false; }
bool has_cudnn() { return false; }
int toolkit_version() { return 0; }

void use_device(int) { refuse(); }
std::int64_t free_bytes() { refuse(); }
std::byte* allocate(std::int64_t) { refuse(); }
void release(std::byte*) noexcept {}
std::byte* allocate_on(Stream, std::int64_t) { refuse(); }
void release_on(Stream, std::byte*) noexcept {}
void reserve_scratch(Stream, std::int64_t) { refuse(); }
std::int64_t scratch_peak_bytes() { refuse(); }
std::byte* allocate_pinned(std::int64_t) { refuse(); }
void release_pinned(std::byte*) noexcept {}
void copy_to_device(std::byte*, const std::byte*, std::int64_t, Stream) { refuse(); }
void copy_from_device(std::byte*, const std::byte*, std::int64_t, Stream) { refuse(); }
void copy_on_device(std::byte*, const std::byte*, std::int64_t, Stream) { refuse(); }
void fill_bytes(std::byte*, int, std::int64_t, Stream) { refuse(); }
void synchronize(Stream) { refuse(); }
Event::~Event() = default;
void Event::record(Stream) { refuse(); }
void Event::make_wait(Stream) const {}
void Event::wait() const {}
bool Event::reached() const { return true; }
Stopwatch::Stopwatch(Stream) { refuse(); }
Stopwatch::~Stopwatch() = default;
void Stopwatch::start() { refuse(); }
double Stopwatch::stop_ms() { refuse(); }
CudaStream::CudaStream() = default;
CudaStream::~CudaStream() = default;
struct Graph::State {};
Graph::Graph() noexcept = default;
Graph::~Graph() = default;
Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;
void Graph::record(Stream, const std::function<void()>&) { refuse(); }
void Graph::replay(Stream, const std::function<void()>&) { refuse(); }

void matmul(const MatmulArgs&, Stream) { refuse(); }
void attention_forward(const AttentionArgs&, Stream) { refuse(); }
void attention_backward(const AttentionBackwardArgs&, Stream) { refuse(); }
void own_attention_forward(const AttentionArgs&, Stream) { refuse(); }
void own_attention_backward(const AttentionBackwardArgs&, Stream) { refuse(); }
bool library_attention_forward(const AttentionArgs&, Stream) { refuse(); }
bool library_attention_backward(const AttentionBackwardArgs&, Stream, std::int64_t) { refuse(); }
void rms_norm_forward(const RmsNormArgs&, Stream) { refuse(); }
void rms_norm_backward(const RmsNormBackwardArgs&, Stream) { refuse(); }
void rope_table(TensorView, TensorView, const RopeAngles&, Stream) { refuse(); }
void rope(const RopeArgs&, Stream) { refuse(); }
void swiglu_forward(const SwigluArgs&, Stream) { refuse(); }
void swiglu_backward(const SwigluBackwardArgs&, Stream) { refuse(); }
void embedding_forward(const EmbeddingArgs&, Stream) { refuse(); }
void embedding_backward(const EmbeddingBackwardArgs&, Stream) { refuse(); }
void cross_entropy_row_max(const RowMaxArgs&, Stream) { refuse(); }
void cross_entropy_exp_sum(const ExpSumArgs&, Stream) { refuse(); }
void cross_entropy_finish(const CrossEntropyArgs&, Stream) { refuse(); }
void zero(TensorView, Stream) { refuse(); }
void add(TensorView, ConstTensorView, ConstTensorView, Stream) { refuse(); }
void cast(TensorView, ConstTensorView, Stream) { refuse(); }
void add_rows(TensorView, ConstTensorView, Stream) { refuse(); }
void sum_of_squares(TensorView, ConstTensorView, std::int64_t, Stream) { refuse(); }
void flag_nonfinite(TensorView, ConstTensorView, Stream) { refuse(); }
void adamw(const AdamwArgs&, Stream) { refuse(); }
void quantize(const QuantizeArgs&, Stream) { refuse(); }
void dequantize(const DequantizeArgs&, Stream) { refuse(); }
void quantization_loss(const QuantizationLossArgs&, Stream) { refuse(); }
void select_keys(const SelectKeysArgs&, Stream) { refuse(); }
void importance_attention_forward(const ImportanceAttentionArgs&, Stream) { refuse(); }
void importance_attention_backward(const ImportanceAttentionBackwardArgs&, Stream) { refuse(); }
void importance_distil(const ImportanceDistilArgs&, Stream) { refuse(); }
void importance_gate_forward(const ImportanceGateArgs&, Stream) { refuse(); }
void importance_gate_backward(const ImportanceGateBackwardArgs&, Stream) { refuse(); }
void tree_attention_forward(const TreeAttentionArgs&, Stream) { refuse(); }
void tree_attention_backward(const TreeAttentionBackwardArgs&, Stream) { refuse(); }
void quantize_two_way(const QuantizeTwoWayArgs&, Stream) { refuse(); }
void swiglu_quantize(const SwigluQuantizeArgs&, Stream) { refuse(); }
void swiglu_quantize_backward(const SwigluQuantizeBackwardArgs&, Stream) { refuse(); }
void rms_norm_quantize(const RmsNormQuantizeArgs&, Stream) { refuse(); }
void random_normal(const RandomNormalArgs&, Stream) { refuse(); }
void importance_cache_attend(ImportanceCache&, const ImportanceCacheArgs&, Stream) { refuse(); }
void importance_cache_append(ImportanceCache&, const ImportanceCacheKeys&, Stream) { refuse(); }
std::int64_t tree_cache_bytes(const TreeRule&, std::int64_t, std::int64_t, std::int64_t, DType) {
    refuse();
}
void tree_cache_append(TreeCache&, const ConstTensorView&, const ConstTensorView&,
                       const ConstTensorView&, Stream) {
    refuse();
}
void tree_cache_attend(const TreeCache&, const TreeCacheAttendArgs&, Stream) { refuse(); }

}  // namespace stoa::cuda
