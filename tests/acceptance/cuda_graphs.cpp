// cuDNN's attention for GPUs that are only described: every graph that a training run of the named
// models asks for is finalised, its kernels are compiled for that GPU, and its plan says its
// workspace; what we do not promise is refused by name. Nothing runs: numbers are the business of
// conformance, where the graphs' operations run on the host, and of a GPU.
// Prints one JSON object last; exit code 0 only if all of it holds, 77 without cuDNN. --quick: one
// shape of each kind.
#include <fmt/format.h>

#include <string>

#if !defined(STOA_DESCRIBED_DRIVER)
int main() {
    fmt::print("{{\"skipped\": \"cuDNN of the CUDA toolkit was not found\"}}\n");
    return 77;
}
#else
#include <dlfcn.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/cuda/cudnn_graph.h"
#include "kernels/cuda/sdpa_graph.h"
#include "tests/support/described_driver.h"

using namespace stoa;
using namespace stoa::cuda;

namespace {

struct Gpu {
    const char* name;
    int capability;  // 90 = sm_90
    int multiprocessors;
    std::int64_t l2_bytes, shared_bytes, memory_bytes;  // shared: of a block that asks for it
};
constexpr Gpu kH200{"NVIDIA H200", 90, 132, 62914560, 232448, 150754820096};
constexpr Gpu kH100{"NVIDIA H100 80GB HBM3", 90, 132, 52428800, 232448, 85031714816};
constexpr Gpu kA100{"NVIDIA A100-SXM4-80GB", 80, 108, 41943040, 166912, 84974239744};

/// In the words of cuDNN's CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION; truth values are 0 and 1.
std::string describe(const Gpu& g) {
    return nlohmann::json{{"cudaDeviceId", 0},
                          {"deviceName", g.name},
                          {"deviceVer", 10 * g.capability},
                          {"driverVer", 13000},
                          {"isTccDriver", 0},
                          {"l2CacheSize", g.l2_bytes},
                          {"maxBlockSize", {1024, 1024, 64}},
                          {"maxCtasPerSM", 32},
                          {"maxGridSize", {2147483647, 65535, 65535}},
                          {"maxRegistersPerSM", 65536},
                          {"maxSharedMemoryPerBlock", 49152},
                          {"maxSharedMemoryPerBlockOptin", g.shared_bytes},
                          {"maxSharedMemoryPerSM", g.shared_bytes + 1024},
                          {"maxThreadsPerBlock", 1024},
                          {"maxThreadsPerSM", 2048},
                          {"memClockRateKHz", 3201000},
                          {"multiProcessorCount", g.multiprocessors},
                          {"pciDeviceId", 0},
                          {"regsPerBlock", 65536},
                          {"reservedSharedMemoryPerBlock", 1024},
                          {"smClockRateKHz", 1980000},
                          {"supportCoopLaunch", 1},
                          {"totalGlobalMem", g.memory_bytes},
                          {"warpSize", 32}}
        .dump();
}

struct Heads {
    const char* model;
    std::int64_t n_heads, n_kv_heads, head_dim;
};

/// As kernels/cuda/attention.cu asks for it.
SdpaShape shape_of(const Heads& h, std::int64_t batch, std::int64_t len, DType dtype) {
    return {.dtype = dtype,
            .batch = batch,
            .q_len = len,
            .k_len = len,
            .n_heads = h.n_heads,
            .n_kv_heads = h.n_kv_heads,
            .head_dim = h.head_dim,
            .q_row = h.n_heads * h.head_dim,
            .q_batch = len * h.n_heads * h.head_dim,
            .kv_row = h.n_kv_heads * h.head_dim,
            .kv_batch = len * h.n_kv_heads * h.head_dim,
            .d_kv_row = h.n_kv_heads * h.head_dim,
            .d_kv_batch = len * h.n_kv_heads * h.head_dim,
            .lse_head = len,
            .lse_batch = h.n_heads * len,
            .keys_batch = len};
}
/// The first piece of the backward, and the last, which sees the most keys.
std::vector<SdpaShape> backward_pieces(const SdpaShape& whole) {
    const SdpaSplit split = sdpa_split(whole, kSdpaScoreBytes);
    SdpaShape piece = whole;
    piece.batch = split.batch;
    piece.n_kv_heads = split.kv_heads;
    piece.n_heads = split.kv_heads * (whole.n_heads / whole.n_kv_heads);
    if (split.q_len == whole.q_len) return {piece};
    piece.q_len = split.q_len;
    piece.causal = false;
    piece.d_kv_row = whole.head_dim;
    piece.d_kv_batch = whole.k_len * whole.head_dim;
    SdpaShape first = piece;
    first.k_len = sdpa_piece_keys(whole, split.q_len);
    return {first, piece};
}

struct Suite {
    DescribedKernels& kernels;
    nlohmann::json plans = nlohmann::json::array(), refused = nlohmann::json::array(),
                   elsewhere = nlohmann::json::array();
    std::set<std::string> names;  // of the H200's kernels
    std::int64_t failures = 0;

    void fail(const std::string& what) {
        ++failures;
        fmt::print(stderr, "FAILED {}\n", what);
    }
    /// One graph for one GPU. Its kernel is compiled for that GPU, and its workspace is to the byte
    /// what the memory plan has for it.
    nlohmann::json finalise(const std::string& what, const SdpaShape& s, bool backward,
                            const Gpu& gpu) {
        const std::int64_t images = kernels.images;
        const OpGraph graph = backward ? sdpa_backward_graph(s) : sdpa_forward_graph(s);
        const CudnnPlan plan = make_plan(graph, {.described = describe(gpu)});
        const std::string kernel = kernels.name;
        if (kernels.images == images) fail(what + ": no kernel was compiled");
        if (kernel.find("sdpa") == std::string::npos ||
            kernel.find(backward ? "bprop" : "fprop") == std::string::npos)
            fail(what + ": a kernel of another kind: " + kernel);
        if (!kernels.compiled_for(gpu.capability) ||
            kernel.find("sm" + std::to_string(gpu.capability)) == std::string::npos)
            fail(what + ": not the kernel of this GPU: " + kernel);
        const std::int64_t planned = backward ? sdpa_backward_workspace(s) : kSdpaForwardWorkspace;
        // The rule is that of sm_90; an A100's forward takes none of the 256 bytes.
        if (gpu.capability == 90 ? plan.workspace_bytes != planned : plan.workspace_bytes > planned)
            fail(fmt::format("{}: a workspace of {} bytes, planned are {}", what,
                             plan.workspace_bytes, planned));
        fmt::print(stderr, "{:52} {:2} steps, engine {}, {:8.1f} MiB  {}\n", what,
                   graph.steps.size(), plan.engine,
                   static_cast<double>(plan.workspace_bytes) / (1 << 20), kernel);
        return {{"what", what},
                {"steps", graph.steps.size()},
                {"engine", plan.engine},
                {"workspace_bytes", plan.workspace_bytes},
                {"kernel", kernel}};
    }
    void supported(const std::string& what, const SdpaShape& s, bool backward) {
        try {
            plans.push_back(finalise(what, s, backward, kH200));
            names.insert(std::string(kernels.name));
        } catch (const Error& e) {
            fail(what + ": " + e.what());
        }
    }
    /// A model's attention at one length: forward whole, backward in its pieces.
    void model(const Heads& h, std::int64_t batch, std::int64_t len, DType dtype) {
        const std::string what =
            fmt::format("{} {} x {} heads {}/{} x {} {}", h.model, batch, len, h.n_heads,
                        h.n_kv_heads, h.head_dim, dtype_name(dtype));
        const SdpaShape s = shape_of(h, batch, len, dtype);
        supported(what + " forward", s, false);
        for (const SdpaShape& piece : backward_pieces(s))
            supported(fmt::format("{} backward {}x{}x{} of {}", what, piece.batch, piece.n_heads,
                                  piece.q_len, piece.k_len),
                      piece, true);
    }
    /// By our rule, with all its fields, before cuDNN is asked.
    void unsupported(const std::string& where, const SdpaShape& s) {
        for (const bool backward : {false, true}) {
            try {
                (void)(backward ? sdpa_backward_graph(s) : sdpa_forward_graph(s));
                fail("not refused: " + where);
            } catch (const ShapeError& e) {
                const ErrorFields& f = e.fields();
                if (f.where != where || f.what.empty() || f.expected.empty() || f.actual.empty() ||
                    f.hint.empty())
                    fail(where + ": a refusal without its fields: " + e.what());
                if (!backward)
                    refused.push_back({{"where", f.where},
                                       {"expected", f.expected},
                                       {"got", f.actual},
                                       {"hint", f.hint}});
            }
        }
    }
    /// What cuDNN itself refuses must be an error of ours, too.
    void refused_by_cudnn(const std::string& what, const OpGraph& graph, const Gpu& gpu) {
        try {
            (void)make_plan(graph, {.described = describe(gpu)});
            fail("cuDNN takes " + what);
        } catch (const DeviceError& e) {
            refused.push_back({{"where", what}, {"got", e.fields().actual}});
        }
    }
};

void supported_shapes(Suite& suite, bool quick) {
    const std::vector<Heads> models{{"124M", 12, 12, 64},
                                    {"125m.yaml", 12, 4, 64},
                                    {"1b.yaml", 16, 8, 128},
                                    {"3B", 24, 8, 128},
                                    {"8B", 32, 8, 128}};
    if (quick) {
        suite.model(models[0], 4, 4096, DType::bf16);
        suite.model(models[4], 1, 8192, DType::fp16);
        suite.model(models[4], 1, 131072, DType::bf16);
        suite.model({"wide heads", 16, 2, 256}, 1, 4096, DType::bf16);
        return;
    }
    for (const Heads& m : models)
        for (const std::int64_t len : {4096, 8192, 32768, 131072})
            for (const DType dtype : {DType::bf16, DType::fp16})
                suite.model(m, len == 4096 ? 4 : 1, len, dtype);
    for (const std::int64_t dim : {64, 128, 256})
        for (const std::int64_t group : {1, 4, 8})
            suite.model({"groups", 16, 16 / group, dim}, 2, 2048, DType::bf16);
    for (const std::int64_t dim : {8, 72, 80, 96, 192})
        suite.model({"other heads", 8, 2, dim}, 1, 1024, DType::bf16);
    for (const std::int64_t len : {64, 77, 1000})
        suite.model({"other lengths", 8, 2, 128}, 3, len, DType::bf16);
    // The elastic mesh: how many heads a rank has must not change its kernels.
    std::set<std::string> forward, backward;
    for (const std::int64_t tp : {1, 2, 4, 8}) {
        suite.model({"8B, a rank", 32 / tp, 8 / tp, 128}, 1, 8192, DType::bf16);
        const std::size_t last = suite.plans.size() - 1;
        forward.insert(suite.plans[last - 1]["kernel"]);
        backward.insert(suite.plans[last]["kernel"]);
    }
    if (forward.size() != 1 || backward.size() != 1)
        suite.fail("the number of heads changes the kernel");
}

void unsupported_shapes(Suite& suite) {
    const SdpaShape fine = shape_of({"", 8, 2, 128}, 1, 1024, DType::bf16);
    const auto with = [&](auto change) {
        SdpaShape s = fine;
        change(s);
        return s;
    };
    for (const DType dtype : {DType::fp32, DType::fp64, DType::e4m3})
        suite.unsupported("dtype", with([&](SdpaShape& s) { s.dtype = dtype; }));
    for (const std::int64_t dim : {0, 4, 100, 127, 264, 512})
        suite.unsupported("head_dim", with([&](SdpaShape& s) { s.head_dim = dim; }));
    for (const std::int64_t heads : {0, 3, 16})
        suite.unsupported("n_kv_heads", with([&](SdpaShape& s) { s.n_kv_heads = heads; }));
    suite.unsupported("batch, q_len, k_len", with([](SdpaShape& s) { s.batch = 0; }));
    suite.unsupported("batch, q_len, k_len", with([](SdpaShape& s) { s.q_len = 0; }));
    suite.unsupported("q_len", with([](SdpaShape& s) { s.q_len = 2048; }));
    suite.unsupported("q_len", with([](SdpaShape& s) { s.k_len = std::int64_t{1} << 31; }));
    suite.unsupported("causal", with([](SdpaShape& s) { s.q_len = 512; }));

    // Behind our rules: cuDNN's answer to a damaged graph, and to documents on an older GPU.
    OpGraph no_output = sdpa_forward_graph(fine);
    no_output.steps.pop_back();
    suite.refused_by_cudnn("a graph without its last step", no_output, kH200);
    OpGraph odd = sdpa_forward_graph(fine);
    odd.tensors[0].dims[3] = odd.tensors[3].dims[3] = 120;  // q and out, but not k
    suite.refused_by_cudnn("a graph whose q is not as wide as its k", odd, kH200);
    suite.refused_by_cudnn("the backward with documents on an A100", sdpa_backward_graph(fine),
                           kA100);
}

/// Other GPUs, as far as they are promised: the H100 all, the A100 the forward.
void other_gpus(Suite& suite) {
    const SdpaShape s = shape_of({"8B", 32, 8, 128}, 1, 4096, DType::bf16);
    const auto on = [&](const Gpu& gpu, bool backward) {
        const std::string what = std::string(gpu.name) + (backward ? " backward" : " forward");
        try {
            suite.elsewhere.push_back(suite.finalise(what, s, backward, gpu));
        } catch (const Error& e) {
            suite.fail(what + ": " + e.what());
        }
    };
    on(kH100, false);
    on(kH100, true);
    on(kA100, false);
}

int run(bool quick) {
    // Before cuDNN looks for libcuda.so.1: it then finds this one, even beside a real driver.
    void* const driver = dlopen(STOA_DESCRIBED_DRIVER, RTLD_NOW | RTLD_GLOBAL);
    if (driver == nullptr) throw DeviceError({.what = "no described driver", .actual = dlerror()});
    using Kernels = DescribedKernels*();
    Suite suite{*reinterpret_cast<Kernels*>(dlsym(driver, "stoa_described_kernels"))()};
    const auto begin = std::chrono::steady_clock::now();
    supported_shapes(suite, quick);
    unsupported_shapes(suite);
    other_gpus(suite);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    const nlohmann::json report{{"gpu", kH200.name},
                                {"cudnn", cudnnGetVersion()},
                                {"finalised", suite.plans.size()},
                                {"refused", suite.refused},
                                {"other_gpus", suite.elsewhere},
                                {"kernels", suite.names},
                                {"plans", suite.plans},
                                {"failures", suite.failures},
                                {"seconds", elapsed.count()}};
    fmt::print("{}\n", report.dump());
    return suite.failures == 0 && !suite.plans.empty() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        return run(argc > 1 && std::string(argv[1]) == "--quick");
    } catch (const std::exception& e) {
        fmt::print(stderr, "{}\n", e.what());
        return 1;
    }
}
#endif
