// The order of work on the host's twin of a GPU (kernels/cuda/host/streams.h): what events order
// has its values whenever it runs, and an event that is missing is seen in one of the orders.
#include "kernels/cuda/device.h"
#include "kernels/cuda/host/device_pages.h"
#include "kernels/cuda/host/streams.h"
#include "kernels/device_memory.h"
#include "kernels/elementwise.h"
#include "tests/support/catch.h"
#include "tests/support/execs.h"

using namespace stoa;
using namespace stoa::test;
using namespace stoa::cuda;
using host::Order;

namespace {

constexpr std::int64_t kValues = 64;

struct Missing {
    bool input = false, result = false, room = false;  // the event that is not waited for
};

struct Place {
    CudaStream main, side;
    Device device{DeviceKind::cuda, 0};
    Tensor x = make_tensor({kValues}, DType::fp32, device), sum = x_like(), back = x_like();
    Buffer pinned = make_copy_buffer(4 * kValues, device);
    Tensor x_like() const { return make_tensor({kValues}, DType::fp32, device); }
    Exec exec() const { return {device, main.stream()}; }
    Exec beside() const { return {device, side.stream()}; }
    TensorView host() const { return {pinned.data(), DType::fp32, {kValues}, {}}; }
};

// x = 1; sum = x + x on the side stream, while x stays; then x = sum + sum = 4, and back = sum.
std::vector<float> two_streams(Order order, const Missing& missing) {
    Place p;
    Event written, summed, used;
    const host::OrderScope scope(order, p.main.stream());
    upload<float>(p.x.view, std::vector<float>(kValues, 1.0f), p.exec());
    written.record(p.main.stream());
    if (!missing.input) written.make_wait(p.side.stream());  // the sum waits for x
    add(p.sum.view, p.x.view, p.x.view, p.beside());
    summed.record(p.side.stream());
    copy(p.back.view, p.sum.view, p.beside());
    used.record(p.side.stream());
    if (!missing.result) summed.make_wait(p.main.stream());  // the new x waits for the sum
    add(p.x.view, p.sum.view, p.sum.view, p.exec());
    if (!missing.room) used.make_wait(p.main.stream());  // zeroes wait for the copy of what was
    zero(p.sum.view, p.exec());
    std::vector<float> all{read_back<float>(p.x.view, p.exec()).front()};
    all.push_back(read_back<float>(p.back.view, p.beside()).front());
    return all;
}

bool differs(const Missing& missing) {
    const std::vector<float> right{4.0f, 2.0f};
    return two_streams(Order::on_demand, missing) != right ||
           two_streams(Order::side_first, missing) != right;
}

}  // namespace

TEST_CASE("streams and events order work, and a missing event is seen") {
    for (const Order order : {Order::at_once, Order::on_demand, Order::side_first})
        CHECK(two_streams(order, {}) == std::vector<float>{4.0f, 2.0f});
    CHECK(differs({.input = true}));
    CHECK(differs({.result = true}));
    CHECK(differs({.room = true}));
}

TEST_CASE("what is overwritten while another stream reads it is seen in one of the orders") {
    const auto read_by_side = [](Order order, bool wait) {
        Place p;
        Event read;
        const host::OrderScope scope(order, p.main.stream());
        upload<float>(p.sum.view, std::vector<float>(kValues, 3.0f), p.beside());
        synchronize(p.beside());
        copy_from_device(p.pinned.data(), p.sum.view.data, 4 * kValues, p.side.stream());
        read.record(p.side.stream());
        if (wait) read.make_wait(p.main.stream());  // the zeroes wait for the copy
        zero(p.sum.view, p.exec());
        synchronize(p.exec());
        read.wait();  // the host waits for the copy
        return p.host().as<float>()[0];
    };
    const auto read_by_main = [](Order order, bool wait) {
        Place p;
        Event read;
        const host::OrderScope scope(order, p.main.stream());
        upload<float>(p.sum.view, std::vector<float>(kValues, 3.0f), p.exec());
        synchronize(p.exec());
        copy(p.back.view, p.sum.view, p.exec());
        read.record(p.main.stream());
        if (wait) read.make_wait(p.side.stream());  // the zeroes wait for the copy
        zero(p.sum.view, p.beside());
        return read_back<float>(p.back.view, p.exec())[0];
    };
    for (const Order order : {Order::at_once, Order::on_demand, Order::side_first}) {
        CHECK(read_by_side(order, true) == 3.0f);
        CHECK(read_by_main(order, true) == 3.0f);
    }
    CHECK(read_by_side(Order::on_demand, false) == 0.0f);
    CHECK(read_by_main(Order::side_first, false) == 0.0f);
}

TEST_CASE("the host sees a stream's work when it has waited for it, and not before") {
    Place p;
    Event copied;
    CHECK(copied.reached());
    copied.wait();  // never recorded: nobody waits
    const host::OrderScope scope(Order::on_demand, p.main.stream());
    std::vector<float> values(kValues, 1.0f);
    p.host().as<float>()[0] = 0.0f;
    upload<float>(p.x.view, values, p.exec());
    values.assign(kValues, 9.0f);  // pageable memory is free at once
    copy_from_device(p.pinned.data(), p.x.view.data, 4 * kValues, p.main.stream());
    copied.record(p.main.stream());
    CHECK_FALSE(copied.reached());
    CHECK(p.host().as<float>()[0] == 0.0f);
    copied.wait();
    CHECK(copied.reached());
    CHECK(p.host().as<float>()[0] == 1.0f);
    // Pinned memory is read when the stream comes there.
    copy_to_device(p.x.view.data, p.pinned.data(), 4 * kValues, p.main.stream());
    p.host().as<float>()[0] = 5.0f;
    CHECK(read_back<float>(p.x.view, p.exec()).front() == 5.0f);
}

TEST_CASE("an op's error comes from the wait that makes it run, or the next one") {
    const Exec exec = available_execs().back();
    const host::OrderScope scope(Order::on_demand, exec.stream);
    const auto fail = [] { throw DeviceError({.what = "a finding"}); };
    host::enqueue(exec.stream, fail);
    CHECK_THROWS_AS(synchronize(exec), DeviceError);
    host::enqueue(exec.stream, fail);
    { const DeviceBuffer buffer(64); }  // waits, and cannot throw
    CHECK_THROWS_AS(synchronize(exec), DeviceError);
    synchronize(exec);
}

TEST_CASE("an op keeps its scratch memory until it has run") {
    const Exec exec = available_execs().back();
    const host::OrderScope scope(Order::on_demand, exec.stream);
    const std::int64_t before = host::device_bytes();
    {
        const Scratch scratch(exec.stream, 4096);
        fill_bytes(scratch.as<std::byte>(), 1, 4096, exec.stream);
    }
    CHECK(host::device_bytes() > before);
    synchronize(exec);
    CHECK(host::device_bytes() == before);
}
