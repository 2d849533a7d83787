#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>

#include "kernels/cuda/device.h"
#include "kernels/cuda/graph.h"
#include "kernels/cuda/host/recording.h"
#include "kernels/cuda/host/streams.h"

namespace stoa::cuda {
namespace {

thread_local host::Recording* t_recording = nullptr;
std::atomic<std::int64_t> recorded_graphs = 0, replayed_graphs = 0;

constexpr int kUninitialised = 0xff;  // NaN in every format

}  // namespace

namespace host {

Recording* recording() { return t_recording; }
void refuse_recording(const char* what) {
    if (t_recording != nullptr)
        throw DeviceError({.what = "a graph cannot hold this", .where = what});
}
GraphCounts graph_counts() { return {recorded_graphs, replayed_graphs}; }

Recording::Recording(Stream stream, std::span<const RecordedScratch> before)
    : stream_(stream), before_(before) {
    refuse_recording("a recording in another");
    if (stream.handle == nullptr)
        throw DeviceError({.what = "the default stream cannot be recorded"});
    t_recording = this;
}
Recording::~Recording() {
    t_recording = nullptr;
    for (std::size_t i = 0; i < scratch.size(); ++i)
        if (i >= before_.size() || before_[i].data != scratch[i].data) release(scratch[i].data);
}

void Recording::add(Stream stream, Operation op) {
    if (stream.handle != stream_.handle) refuse_recording("work of another stream");
    ops.push_back(std::move(op));
}

std::byte* Recording::take_scratch(Stream stream, std::int64_t bytes) {
    const std::size_t i = scratch.size();
    const bool again = i < before_.size() && before_[i].bytes == bytes;
    t_recording = nullptr;  // memory is taken now, not recorded
    std::byte* const data = again ? before_[i].data : allocate(bytes);
    t_recording = this;
    scratch.push_back({data, bytes});
    ++held_;
    add(stream, {.name = "scratch memory", .args = {bytes_of(data), bytes_of(bytes)}, .run = [=] {
                     std::memset(data, kUninitialised, static_cast<std::size_t>(bytes));
                 }});
    return data;
}

void Recording::give_back_scratch(std::byte* data) {
    const auto piece = std::ranges::find(scratch, data, &RecordedScratch::data);
    const std::size_t bytes = piece == scratch.end() ? 0 : static_cast<std::size_t>(piece->bytes);
    --held_;
    ops.push_back({.name = "scratch memory, given back", .args = {bytes_of(data)}, .run = [=] {
                       std::memset(data, kUninitialised, bytes);
                   }});
}

void Recording::run(const std::function<void()>& work) {
    work();
    if (held_ != 0) refuse_recording("scratch memory that is kept, or not its own");
}

}  // namespace host

struct Graph::State {
    std::vector<host::Operation> ops;
    std::vector<host::RecordedScratch> scratch;
    ~State() {
        for (const host::RecordedScratch& s : scratch)
            release(s.data);
    }
};

Graph::Graph() noexcept = default;
Graph::~Graph() = default;
Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;

namespace {

[[noreturn]] void refuse(std::size_t index, const std::string& what, const std::string& was,
                         const std::string& now) {
    throw DeviceError({.what = "a graph would not start what its work starts now",
                       .where = "operation " + std::to_string(index) + ", " + what,
                       .expected = "as recorded, " + was,
                       .actual = now,
                       .hint = "what changes from time to time has to lie in device memory, or the "
                               "work runs without a graph"});
}

// The 8 bytes at `at`, as a number: most arguments are one.
std::string number_at(const std::string& bytes, std::size_t at) {
    std::uint64_t value = 0;
    std::memcpy(&value, bytes.data() + at, std::min(sizeof value, bytes.size() - at));
    char text[32];
    std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
    return text;
}

void compare(std::size_t index, const host::Operation& was, const host::Operation& now) {
    if (was.name != now.name || was.code != now.code || was.args.size() != now.args.size())
        refuse(index, "the operation", was.name,
               was.name == now.name ? now.name + " of another type" : now.name);
    const auto shape = [](const host::Operation& op) {
        return std::to_string(op.blocks) + " blocks of " + std::to_string(op.threads) +
               " threads, " + std::to_string(op.shared_bytes) + " bytes shared";
    };
    if (shape(was) != shape(now)) refuse(index, was.name, shape(was), shape(now));
    for (std::size_t a = 0; a < was.args.size(); ++a) {
        const std::string &x = was.args[a], &y = now.args[a];
        if (x == y) continue;
        const auto [in_x, in_y] = std::ranges::mismatch(x, y);
        const auto word = static_cast<std::size_t>(in_x - x.begin()) / 8 * 8;
        refuse(index,
               was.name + ", argument " + std::to_string(a) +
                   (x.size() > 8 ? ", byte " + std::to_string(word) : ""),
               number_at(x, word), number_at(y, word));
    }
}

}  // namespace

void Graph::record(Stream stream, const std::function<void()>& work) {
    state_.reset();
    host::Recording r(stream, {});
    r.run(work);
    state_ = std::make_unique<State>();
    state_->ops = std::move(r.ops);
    state_->scratch = std::move(r.scratch);
    r.scratch.clear();
    ++recorded_graphs;
}

void Graph::replay(Stream stream, const std::function<void()>& work) {
    const std::vector<host::Operation>& ops = state_->ops;
    {
        host::Recording now(stream, state_->scratch);
        now.run(work);
        const std::size_t both = std::min(ops.size(), now.ops.size());
        for (std::size_t i = 0; i < both; ++i)
            compare(i, ops[i], now.ops[i]);
        if (ops.size() != now.ops.size())
            refuse(both, "the number of operations", std::to_string(ops.size()),
                   std::to_string(now.ops.size()));
    }
    for (const host::Operation& op : ops)
        host::enqueue(stream, op.run);
    ++replayed_graphs;
}

}  // namespace stoa::cuda
