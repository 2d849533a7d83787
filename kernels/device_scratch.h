#pragma once
// What the ops on a GPU take beside their arguments while they run. The launches allocate by these
// functions and the memory plan adds up by them, so the two cannot differ. Ops of one stream follow
// one another: a run needs the largest. Views need shapes and types alone, no data.
#include "kernels/core/buffer.h"
#include "kernels/cuda/sdpa.h"
#include "kernels/embedding.h"
#include "kernels/importance_attention.h"
#include "kernels/matmul.h"
#include "kernels/quantize.h"
#include "kernels/tree_attention.h"

namespace stoa {

/// What the vendor's libraries have a kernel for on a GPU; what they have not, ours do.
struct GpuLibraries {
    bool sdpa_forward = true, sdpa_backward = true;  // cuDNN's attention
    bool block_scaled_gemm = true;                   // cuBLASLt's products of 8-bit blocks of 128
};
/// Of the versions that the tests finalise graphs with; `has_cudnn`: the program has it.
GpuLibraries gpu_libraries(int capability, bool has_cudnn = true);

/// The pool hands out whole steps of this.
constexpr std::int64_t kScratchStep = 512;
constexpr std::int64_t scratch_room(std::int64_t bytes) { return align_up(bytes, kScratchStep); }

/// cuBLASLt's, in every product: what sm_90 is advised to have.
constexpr std::int64_t kGemmWorkspaceBytes = std::int64_t{32} << 20;

/// The pieces of one matmul, each 0 where it needs none. 8-bit operands go to the library as codes
/// where it has the product, else in a wider type; the two ways are not there at once.
struct MatmulScratch {
    bool codes = false;           // the library's way with 8-bit operands can be tried
    std::int64_t product = 0;     // fp32: c is rounded, or added to at random, apart
    std::int64_t turned[2] = {};  // codes of a, b contracted along rows
    std::int64_t scale[2] = {};   // their scales as the library reads them
    std::int64_t wide[2] = {};    // a, b in the type that both can be held in
};
MatmulScratch matmul_scratch(const MatmulArgs& args);

/// By tiles of queries of a kv head, lists of keys that left the window (importance_keys.h).
struct FarListScratch {
    std::int64_t tiles = 0, capacity = 0, keys = 0, counts = 0;
};
FarListScratch far_list_scratch(std::int64_t batch, std::int64_t n_kv_heads, std::int64_t q_len,
                                std::int64_t len, const KeyRule& rule, std::int64_t tile_rows);
constexpr std::int64_t kFarRows = 128;         // queries that share a list in the forward
constexpr std::int64_t kFarRowsBackward = 64;  // and in the backward

/// Delta of the queries (batch, q_len, n_heads, head_dim), Wide.
std::int64_t attention_delta_bytes(const ConstTensorView& q);

struct SelectKeysScratch {
    std::int64_t segment = 0, segments = 0, importance = 0, token = 0;
};
SelectKeysScratch select_keys_scratch(const SelectKeysArgs& args);

struct ImportanceBackwardScratch {
    std::int64_t delta = 0, dense = 0;
    FarListScratch far;
};
ImportanceBackwardScratch importance_backward_scratch(const ImportanceAttentionBackwardArgs& args);

/// Nodes of the tree, and in the backward delta, documents' ends, sums of the nodes' gradients and
/// the sorted lists of who has expanded a node.
std::int64_t tree_node_bytes(const ConstTensorView& k, const TreeRule& rule);
std::int64_t tree_places(const TreeRule& rule, std::int64_t len);  // of all levels, of a kv head
constexpr std::int64_t kTreeListEntries = 4096;  // of a chunk: they are sorted in shared memory
struct TreeBackwardScratch {
    std::int64_t nodes = 0, delta = 0, ends = 0, sums = 0;
    std::int64_t chunk = 0, chunks = 0, entries = 0;  // of the lists: queries of a chunk
};
TreeBackwardScratch tree_backward_scratch(const TreeAttentionBackwardArgs& args);

/// Two links a row.
constexpr std::int64_t embedding_backward_scratch(std::int64_t rows) { return 8 * rows; }
/// Each has four sums of its own.
std::int64_t quantization_loss_warps(const ConstTensorView& x);

/// All pieces that one call holds at once, each rounded to the pool's step.
std::int64_t scratch_bytes(const MatmulArgs& args, const GpuLibraries& has);
std::int64_t scratch_bytes(const AttentionArgs& args, const GpuLibraries& has);
/// `score_bytes`: what a piece of the library may have of d_s.
std::int64_t scratch_bytes(const AttentionBackwardArgs& args, const GpuLibraries& has,
                           std::int64_t score_bytes = cuda::kSdpaScoreBytes);
std::int64_t scratch_bytes(const SelectKeysArgs& args);
std::int64_t scratch_bytes(const ImportanceAttentionArgs& args);
std::int64_t scratch_bytes(const ImportanceAttentionBackwardArgs& args);
std::int64_t scratch_bytes(const TreeAttentionArgs& args);
std::int64_t scratch_bytes(const TreeAttentionBackwardArgs& args);
std::int64_t scratch_bytes(const EmbeddingBackwardArgs& args);
std::int64_t scratch_bytes(const QuantizationLossArgs& args);

}  // namespace stoa
