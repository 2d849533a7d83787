#include <utility>

#include "kernels/cuda/check.h"
#include "kernels/cuda/graph.h"

namespace stoa::cuda {

struct Graph::State {
    cudaGraphExec_t exec = nullptr;
    State() = default;
    ~State() { (void)cudaGraphExecDestroy(exec); }  // when it runs, on completion
    State(const State&) = delete;
    State& operator=(const State&) = delete;
};

Graph::Graph() noexcept = default;
Graph::~Graph() = default;
Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;

namespace {

void check_graph(cudaError_t status, const char* what) {
    if (status == cudaSuccess || status == cudaErrorMemoryAllocation)
        return check_cuda(status, what);
    throw DeviceError(
        {.what = "the GPU takes no graph",
         .where = what,
         .actual = std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status),
         .hint = "STOA_GRAPHS=off in the environment trains without"});
}

/// The capture of a stream, ended in any case: a stream that is left capturing takes no work.
class Capture {
public:
    explicit Capture(cudaStream_t stream) : stream_(stream) {
        // Threads beside this one (a queue's collectives) go on with what a capture may not do.
        check_graph(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                    "record a graph");
    }
    ~Capture() {
        if (stream_ != nullptr) (void)cudaStreamEndCapture(stream_, &graph_);
        if (graph_ != nullptr) (void)cudaGraphDestroy(graph_);
    }
    Capture(const Capture&) = delete;
    Capture& operator=(const Capture&) = delete;
    cudaGraph_t end() {
        check_graph(cudaStreamEndCapture(std::exchange(stream_, nullptr), &graph_),
                    "end of a graph's recording");
        return graph_;
    }

private:
    cudaStream_t stream_;
    cudaGraph_t graph_ = nullptr;
};

}  // namespace

void Graph::record(Stream stream, const std::function<void()>& work) {
    state_.reset();
    Capture capture(static_cast<cudaStream_t>(stream.handle));
    work();
    auto state = std::make_unique<State>();
    check_graph(cudaGraphInstantiate(&state->exec, capture.end(), 0), "make a graph");
    state_ = std::move(state);
}

void Graph::replay(Stream stream, const std::function<void()>&) {
    check_graph(cudaGraphLaunch(state_->exec, static_cast<cudaStream_t>(stream.handle)),
                "start a graph");
}

}  // namespace stoa::cuda
