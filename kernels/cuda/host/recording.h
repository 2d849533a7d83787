#pragma once
// kernels/cuda/graph.h where kernels run on the host: while a thread records, its operations are
// kept instead of run. Each is kept with what a GPU would keep of it, its arguments byte by byte,
// so that a second recording of the same work can be held against it.
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/cuda/host/streams.h"
#include "kernels/cuda/launch_shape.h"

namespace stoa::cuda::host {

struct Operation {
    std::string name;
    std::int64_t blocks = 0;
    int threads = 0, shared_bytes = 0;
    const void* code = nullptr;     // the kernel; null where it is not one
    std::vector<std::string> args;  // bytes; what lies between the members of a struct is zero
    std::function<void()> run;
};

/// Scratch memory that recorded operations work in: theirs as long as they are.
struct RecordedScratch {
    std::byte* data = nullptr;
    std::int64_t bytes = 0;
};

/// Of the calling thread, for the scope.
class Recording {
public:
    /// `before`: the scratch memory of an earlier recording, which the same work gets again.
    Recording(Stream stream, std::span<const RecordedScratch> before);
    ~Recording();
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;

    /// work(), recorded.     errors: those of `work`; DeviceError where it keeps scratch memory
    void run(const std::function<void()>& work);
    void add(Stream stream, Operation op);
    std::byte* take_scratch(Stream stream, std::int64_t bytes);
    void give_back_scratch(std::byte* data);

    std::vector<Operation> ops;
    std::vector<RecordedScratch> scratch;  // all that was taken, in order

private:
    Stream stream_;
    std::span<const RecordedScratch> before_;
    int held_ = 0;  // pieces of scratch memory
};

/// The calling thread's; null: it runs what it starts.
Recording* recording();
/// For what a recording cannot hold.     errors: DeviceError while the thread records
void refuse_recording(const char* what);

template <class T>
std::string bytes_of(T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    __builtin_clear_padding(&value);
    return {reinterpret_cast<const char*>(&value), sizeof value};
}

/// enqueue(op) on what.stream, or what the calling thread's recording keeps of it. `args`: all that
/// op does depends on.
template <class... Args>
void start(const Launch& what, const void* code, std::function<void()> op, const Args&... args) {
    Recording* const r = recording();
    if (r == nullptr) return enqueue(what.stream, std::move(op));
    r->add(what.stream, {.name = what.name,
                         .blocks = what.blocks,
                         .threads = what.threads,
                         .shared_bytes = what.shared_bytes,
                         .code = code,
                         .args = {bytes_of(args)...},
                         .run = std::move(op)});
}

/// What the graphs of this process did.
struct GraphCounts {
    std::int64_t recorded = 0, replayed = 0;
};
GraphCounts graph_counts();

}  // namespace stoa::cuda::host
