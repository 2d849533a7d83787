// kernels/cuda/library_gemm.h by cuBLASLt. It counts in columns: our row-major c = op(a) op(b) is
// its c^T = op(b)^T op(a)^T, so b comes first and nothing is moved.
#include <cublasLt.h>

#include <map>
#include <tuple>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/library_gemm.h"
#include "kernels/device_scratch.h"

namespace stoa::cuda {
namespace {

void check_lt(cublasStatus_t status, const char* what) {
    if (status != CUBLAS_STATUS_SUCCESS)
        throw DeviceError({.what = "cuBLASLt refused or failed",
                           .where = what,
                           .actual = cublasLtGetStatusString(status)});
}

cudaDataType_t lt_type(DType t) {
    switch (t) {
        case DType::bf16:
            return CUDA_R_16BF;
        case DType::fp16:
            return CUDA_R_16F;
        case DType::fp64:
            return CUDA_R_64F;
        case DType::e4m3:
            return CUDA_R_8F_E4M3;
        case DType::e5m2:
            return CUDA_R_8F_E5M2;
        default:
            return CUDA_R_32F;
    }
}

struct Descriptor {
    cublasLtMatmulDesc_t handle = nullptr;
    Descriptor(cublasComputeType_t compute, cudaDataType_t scale) {
        check_lt(cublasLtMatmulDescCreate(&handle, compute, scale), "descriptor");
    }
    ~Descriptor() { (void)cublasLtMatmulDescDestroy(handle); }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    template <class T>
    void set(cublasLtMatmulDescAttributes_t what, const T& value) {
        check_lt(cublasLtMatmulDescSetAttribute(handle, what, &value, sizeof value), "attribute");
    }
};
struct Layout {
    cublasLtMatrixLayout_t handle = nullptr;
    Layout(DType type, std::int64_t rows, std::int64_t cols, std::int64_t ld) {
        check_lt(
            cublasLtMatrixLayoutCreate(&handle, lt_type(type), static_cast<std::uint64_t>(rows),
                                       static_cast<std::uint64_t>(cols), ld),
            "layout");
    }
    ~Layout() { (void)cublasLtMatrixLayoutDestroy(handle); }
    Layout(const Layout&) = delete;
    Layout& operator=(const Layout&) = delete;
};
struct Preference {
    cublasLtMatmulPreference_t handle = nullptr;
    Preference() { check_lt(cublasLtMatmulPreferenceCreate(&handle), "preference"); }
    ~Preference() { (void)cublasLtMatmulPreferenceDestroy(handle); }
    Preference(const Preference&) = delete;
    Preference& operator=(const Preference&) = delete;
    template <class T>
    void set(cublasLtMatmulPreferenceAttributes_t what, const T& value) {
        check_lt(cublasLtMatmulPreferenceSetAttribute(handle, what, &value, sizeof value),
                 "preference");
    }
};

std::uint32_t alignment_of(const void* p) {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    const std::uintptr_t lowest = address & (~address + 1);
    return lowest == 0 || lowest > 256 ? 256 : static_cast<std::uint32_t>(lowest);
}

/// All that the choice of an algorithm depends on: the same product always takes the same one.
using Key =
    std::tuple<std::int64_t, std::int64_t, std::int64_t, int, int, int, bool, bool, bool, int, int,
               std::uint32_t, std::uint32_t, std::uint32_t, std::int64_t, std::int64_t>;
struct Choice {
    bool found = false;
    cublasLtMatmulAlgo_t algo{};
};

/// A thread's handle and its choices; a thread works on one device. They live as long as the
/// thread: a handle takes milliseconds to make, and the ops have no place to keep one.
struct Library {
    cublasLtHandle_t handle = nullptr;
    std::map<Key, Choice> choices;
    Library() { check_lt(cublasLtCreate(&handle), "create"); }
    ~Library() { (void)cublasLtDestroy(handle); }
    Library(const Library&) = delete;
    Library& operator=(const Library&) = delete;
};
Library& library() {
    thread_local Library l;
    return l;
}

int blocks_key(const LibraryGemm::Operand& o) {
    return o.scale == nullptr ? -1 : static_cast<int>(o.blocks);
}
cublasLtMatmulMatrixScale_t scale_mode(QuantBlocks blocks) {
    return blocks == QuantBlocks::row ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F
                                      : CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
}

Layout stored(const LibraryGemm::Operand& o, std::int64_t rows, std::int64_t cols) {
    return o.transpose ? Layout(o.dtype, rows, cols, o.ld) : Layout(o.dtype, cols, rows, o.ld);
}

}  // namespace

bool library_gemm(const LibraryGemm& g, Stream stream) {
    Library& lt = library();
    const bool fp64 = g.a.dtype == DType::fp64;
    Descriptor op(fp64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F, fp64 ? CUDA_R_64F : CUDA_R_32F);
    const cublasOperation_t first = g.b.transpose ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t second = g.a.transpose ? CUBLAS_OP_T : CUBLAS_OP_N;
    op.set(CUBLASLT_MATMUL_DESC_TRANSA, first);
    op.set(CUBLASLT_MATMUL_DESC_TRANSB, second);
    if (g.a.scale != nullptr) {
        op.set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, scale_mode(g.b.blocks));
        op.set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, scale_mode(g.a.blocks));
        op.set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, g.b.scale);
        op.set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, g.a.scale);
    }
    // Stored (n, k) or (k, n) in rows is (k, n) or (n, k) in columns.
    const Layout b = stored(g.b, g.k, g.n), a = stored(g.a, g.m, g.k);
    const Layout c(g.c_dtype, g.n, g.m, g.n);
    const Key key{g.m,
                  g.n,
                  g.k,
                  static_cast<int>(g.a.dtype),
                  static_cast<int>(g.b.dtype),
                  static_cast<int>(g.c_dtype),
                  g.a.transpose,
                  g.b.transpose,
                  g.accumulate,
                  blocks_key(g.a),
                  blocks_key(g.b),
                  alignment_of(g.a.data),
                  alignment_of(g.b.data),
                  alignment_of(g.c),
                  g.a.ld,
                  g.b.ld};
    const auto [at, missing] = lt.choices.try_emplace(key);
    Choice& choice = at->second;
    if (missing) {
        Preference preference;
        preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                       static_cast<std::uint64_t>(kGemmWorkspaceBytes));
        preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(g.b.data));
        preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(g.a.data));
        preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(g.c));
        preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(g.c));
        cublasLtMatmulHeuristicResult_t result{};
        int found = 0;
        const cublasStatus_t status =
            cublasLtMatmulAlgoGetHeuristic(lt.handle, op.handle, b.handle, a.handle, c.handle,
                                           c.handle, preference.handle, 1, &result, &found);
        choice = {status == CUBLAS_STATUS_SUCCESS && found > 0, result.algo};
    }
    if (!choice.found) return false;
    const Scratch workspace(stream, kGemmWorkspaceBytes);
    const float alpha = 1.0f, beta = g.accumulate ? 1.0f : 0.0f;
    const double alpha64 = 1.0, beta64 = g.accumulate ? 1.0 : 0.0;
    check_lt(cublasLtMatmul(lt.handle, op.handle,
                            fp64 ? static_cast<const void*>(&alpha64) : &alpha, g.b.data, b.handle,
                            g.a.data, a.handle, fp64 ? static_cast<const void*>(&beta64) : &beta,
                            g.c, c.handle, g.c, c.handle, &choice.algo, workspace.as<std::byte>(),
                            static_cast<std::size_t>(kGemmWorkspaceBytes),
                            static_cast<cudaStream_t>(stream.handle)),
             "matmul");
    return true;
}

}  // namespace stoa::cuda
