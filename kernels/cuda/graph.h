#pragma once
// CUDA graphs: work that a stream gets again and again, with the same kernels and arguments, is
// recorded once and then started in one call.
#include <functional>
#include <memory>

#include "kernels/core/exec.h"

namespace stoa::cuda {

/// What `work` does besides starting operations on one stream is not part of the graph, and a value
/// that it passes to a kernel stays what it was when it was recorded: what changes from time to
/// time has to lie in device memory. It copies nothing from or to host memory and does not wait.
/// Scratch memory (device.h) that it takes and gives back is part of the graph.
class Graph {
public:
    Graph() noexcept;
    ~Graph();  // the GPU finishes what it is at
    Graph(Graph&&) noexcept;
    Graph& operator=(Graph&&) noexcept;

    bool recorded() const { return state_ != nullptr; }
    /// Records what `work` starts on the stream, which is not the default stream; nothing of it
    /// runs. What is made once (a library's handle, its plans, modules of kernels) has to be there:
    /// the same work has run before.
    /// errors: DeviceError; those of `work`; without a graph then
    void record(Stream stream, const std::function<void()>& work);
    /// Starts all of it, in the order of the stream. `work` as in record: in a build that runs
    /// kernels on the host it is recorded again and compared, operation by operation. A GPU does
    /// not look at it.
    /// errors: DeviceError, on the host with the operation and the argument that are others now
    void replay(Stream stream, const std::function<void()>& work);

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace stoa::cuda
