#pragma once
// The order of work where kernels run on the host. Everything that a device would do is a closure
// given to enqueue(). It runs at once; or, for tests, later: then what one stream needs of another
// and no event orders has not happened yet, or has already been overwritten, and shows in values.
#include <functional>

#include "kernels/core/exec.h"

namespace stoa::cuda::host {

/// `op` behind all that the stream has been given; device memory is open while it runs. Arguments
/// are captured by value, as a launch takes them. Its errors come from whoever makes it run.
void enqueue(Stream stream, std::function<void()> op);

enum class Order {
    at_once,     // each op when it is given
    on_demand,   // when the host waits for it, or an event that is waited for lies behind it
    side_first,  // as on_demand on the main stream; the others run as soon as events let them
};
/// For the scope; its end waits for all streams. The stream without a handle always runs at once.
/// No other thread gives work while a scope begins or ends.
class OrderScope {
public:
    explicit OrderScope(Order order, Stream main = {});
    ~OrderScope() noexcept(false);
    OrderScope(const OrderScope&) = delete;
    OrderScope& operator=(const OrderScope&) = delete;
};

/// Whether an op has run when enqueue() returns.
bool runs_at_once(Stream stream);
/// Runs all that the stream, or every stream, has been given.
void finish(Stream stream);
void finish_all();
/// The same; an error comes from the next wait.
void finish_quietly() noexcept;

}  // namespace stoa::cuda::host
