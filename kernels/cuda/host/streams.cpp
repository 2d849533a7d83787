#include "kernels/cuda/host/streams.h"

#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <set>
#include <utility>

#include "kernels/cuda/device.h"
#include "kernels/cuda/host/device_pages.h"
#include "kernels/cuda/host/recording.h"

namespace stoa::cuda {
namespace {

struct HostStream {
    std::deque<std::function<void()>> ops;  // given, not yet run
    std::int64_t given = 0, done = 0;
};
/// A point behind the first `ticket` ops of a stream.
struct Point {
    std::shared_ptr<HostStream> stream;
    std::int64_t ticket = 0;
};

struct Streams {
    std::recursive_mutex mutex;  // held while an op runs that is not at once
    std::set<std::shared_ptr<HostStream>> all;
    host::Order order = host::Order::at_once;
    void* main = nullptr;
    std::exception_ptr late;  // of an op that ran where nothing can be thrown
};
Streams& streams() {
    static Streams* const s = new Streams;  // outlives the streams that end with the program
    return *s;
}

// A stream's handle is the owner of its HostStream; events keep it alive.
std::shared_ptr<HostStream> stream_of(Stream stream) {
    return stream.handle == nullptr ? nullptr
                                    : *static_cast<std::shared_ptr<HostStream>*>(stream.handle);
}
Point& point_of(void* handle) { return *static_cast<Point*>(handle); }

void run(const std::function<void()>& op) {
    const host::DeviceMemoryOpen open;
    op();
}

/// In the stream's order, up to the point. An op may be a wait for another stream's point.
void run_until(const Point& p) {
    const std::scoped_lock lock(streams().mutex);
    if (streams().late) std::rethrow_exception(std::exchange(streams().late, nullptr));
    while (p.stream != nullptr && p.stream->done < p.ticket) {
        const std::function<void()> op = std::move(p.stream->ops.front());
        p.stream->ops.pop_front();
        ++p.stream->done;
        op();
    }
}

}  // namespace

namespace host {
namespace {

/// In the order of the stream, whatever it is: a wait for an event opens no memory.
void give(Stream stream, std::function<void()> op) {
    Streams& all = streams();
    const std::shared_ptr<HostStream> s = stream_of(stream);
    if (runs_at_once(stream)) return op();
    const std::scoped_lock lock(all.mutex);
    s->ops.push_back(std::move(op));
    ++s->given;
    if (all.order == Order::side_first && stream.handle != all.main) run_until({s, s->given});
}

}  // namespace

bool runs_at_once(Stream stream) {
    return stream.handle == nullptr || streams().order == Order::at_once;
}

void enqueue(Stream stream, std::function<void()> op) {
    refuse_recording("work that start() is not told of");
    if (runs_at_once(stream)) return run(op);
    give(stream, [op = std::move(op)] { run(op); });
}

void finish(Stream stream) {
    refuse_recording("a wait");
    const std::scoped_lock lock(streams().mutex);
    if (const auto s = stream_of(stream)) run_until({s, s->given});
}
void finish_all() {
    refuse_recording("a wait");
    const std::scoped_lock lock(streams().mutex);
    for (const auto& s : streams().all)
        run_until({s, s->given});
}
void finish_quietly() noexcept {
    const std::scoped_lock lock(streams().mutex);
    try {
        finish_all();
    } catch (...) {
        streams().late = std::current_exception();
    }
}

OrderScope::OrderScope(Order order, Stream main) {
    streams().order = order;
    streams().main = main.handle;
}
OrderScope::~OrderScope() noexcept(false) {
    finish_all();
    streams().order = Order::at_once;
}

}  // namespace host

CudaStream::CudaStream() {
    const auto stream = std::make_shared<HostStream>();
    const std::scoped_lock lock(streams().mutex);
    streams().all.insert(stream);
    handle_ = new std::shared_ptr<HostStream>(stream);
}
CudaStream::~CudaStream() {
    const auto stream = stream_of({handle_});
    host::finish_quietly();  // its work is still done
    const std::scoped_lock lock(streams().mutex);
    streams().all.erase(stream);
    delete static_cast<std::shared_ptr<HostStream>*>(handle_);
}

Event::~Event() { delete static_cast<Point*>(handle_); }
void Event::record(Stream stream) {
    host::refuse_recording("an event");
    const std::scoped_lock lock(streams().mutex);
    if (handle_ == nullptr) handle_ = new Point;
    const auto s = stream_of(stream);
    point_of(handle_) = {s, s == nullptr ? 0 : s->given};
}
void Event::make_wait(Stream stream) const {
    host::refuse_recording("an event");
    if (handle_ == nullptr) return;
    const std::scoped_lock lock(streams().mutex);
    host::give(stream, [p = point_of(handle_)] { run_until(p); });
}
void Event::wait() const {
    host::refuse_recording("a wait");
    if (handle_ != nullptr) run_until(point_of(handle_));
}
bool Event::reached() const {
    if (handle_ == nullptr) return true;
    const std::scoped_lock lock(streams().mutex);
    const Point& p = point_of(handle_);
    return p.stream == nullptr || p.stream->done >= p.ticket;
}

}  // namespace stoa::cuda
