// Graphs on the host's twin of a GPU (kernels/cuda/graph.h): what is recorded runs again as it was,
// and work that would do something else by now is found.
#include <cstring>

#include "kernels/cuda/graph.h"
#include "kernels/cuda/host/device_pages.h"
#include "kernels/cuda/host/recording.h"
#include "kernels/cuda/host/streams.h"
#include "kernels/device_memory.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/rms_norm.h"
#include "tests/support/catch.h"
#include "tests/support/execs.h"

using namespace stoa;
using namespace stoa::test;
using namespace stoa::cuda;

namespace {

constexpr std::int64_t kRows = 4, kCols = 32;

struct Place {
    CudaStream main, side;
    Exec exec{{DeviceKind::cuda, 0}, main.stream()};
    Tensor x = make_tensor({kRows, kCols}, DType::fp32, exec.device);
    Tensor y = make_tensor({kRows, kCols}, DType::fp32, exec.device);
    Tensor half = make_tensor({kCols, kCols}, DType::bf16, exec.device);
    Tensor rstd = make_tensor({kRows}, DType::fp32, exec.device);
    Tensor weight = make_tensor({kCols}, DType::fp32, exec.device);
    std::vector<float> host = std::vector<float>(kRows * kCols, 1.0f);

    void set(const Tensor& t, float value) {
        upload<float>(t.view, std::vector<float>(static_cast<std::size_t>(t.view.numel()), value),
                      exec);
    }
    float first(const Tensor& t) { return read_back<float>(t.view, exec).front(); }
    void norm(double eps) {
        rms_norm_forward({.y = y.view,
                          .rstd = rstd.view,
                          .x = x.view,
                          .weight = weight.view,
                          .eps = static_cast<float>(eps)},
                         exec);
    }
    /// x += x; y = half half^T of x, which takes scratch memory
    void work() {
        add(x.view, x.view, x.view, exec);
        matmul({.c = y.view, .a = x.view, .b = half.view, .transpose_b = true}, exec);
    }
};

std::string message_of(const std::function<void()>& f) {
    try {
        f();
    } catch (const DeviceError& e) {
        return e.what();
    }
    return "";
}

/// What a graph that recorded `before` says of a replay with `now`.
std::string finding(Place& p, const std::function<void()>& before,
                    const std::function<void()>& now) {
    Graph graph;
    graph.record(p.main.stream(), before);
    return message_of([&] { graph.replay(p.main.stream(), now); });
}

bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a graph starts what was recorded, in the order of the stream, on what is there then") {
    const host::Order order = GENERATE(host::Order::at_once, host::Order::on_demand);
    Place p;
    const host::OrderScope scope(order, p.main.stream());
    p.set(p.x, 1.0f);
    upload<bf16>(p.half.view, std::vector<bf16>(kCols * kCols, narrow_to<bf16>(0.5f)), p.exec);
    const auto work = [&] { p.work(); };
    Graph graph;
    CHECK_FALSE(graph.recorded());
    graph.record(p.main.stream(), work);
    CHECK(graph.recorded());
    CHECK(p.first(p.x) == 1.0f);  // nothing has run
    for (const float expected : {2.0f, 4.0f, 8.0f}) {
        graph.replay(p.main.stream(), work);
        CHECK(p.first(p.x) == expected);
        CHECK(p.first(p.y) == expected * 0.5f * kCols);
    }
    p.set(p.x, 3.0f);
    Graph moved = std::move(graph);
    moved.replay(p.main.stream(), work);
    CHECK(p.first(p.y) == 6.0f * 0.5f * kCols);
}

TEST_CASE("a graph's scratch memory is its own until it ends") {
    Place p;
    const auto work = [&] { p.work(); };
    const std::int64_t before = host::device_bytes();
    {
        Graph graph;
        graph.record(p.main.stream(), work);
        const std::int64_t held = host::device_bytes();
        CHECK(held > before);
        graph.replay(p.main.stream(), work);
        CHECK(host::device_bytes() == held);
    }
    CHECK(host::device_bytes() == before);
}

TEST_CASE("an argument that was baked in and has changed is found, with its kernel") {
    Place p;
    const std::string text = finding(
        p, [&] { p.norm(1e-5); }, [&] { p.norm(1e-6); });
    CAPTURE(text);
    CHECK(has(text, "operation 0, rms_norm"));
    CHECK(has(text, ", argument "));
    CHECK(has(text, "0x3727c5ac"));  // 1e-5f
    CHECK(has(text, "0x358637bd"));  // 1e-6f
    CHECK(finding(
              p, [&] { p.norm(1e-5); }, [&] { p.norm(1e-5); })
              .empty());
}

TEST_CASE("other operations, shapes and addresses than were recorded are found") {
    Place p;
    const auto sum = [&](const Tensor& to, std::int64_t rows) {
        const TensorView x = p.x.view.slice_rows(0, rows);
        add(to.view.slice_rows(0, rows), x, x, p.exec);
    };
    const auto both = [&] { sum(p.y, 4), sum(p.y, 4); };
    CHECK(has(finding(p, both, [&] { sum(p.y, 4); }), "the number of operations"));
    CHECK(has(finding(p, both, [&] { sum(p.y, 4), p.norm(1e-5); }), "operation 1"));
    CHECK(has(finding(p, both, [&] { sum(p.y, 4), sum(p.x, 4); }), "operation 1, add"));
    CHECK_FALSE(finding(p, both, [&] { sum(p.y, 4), sum(p.y, 2); }).empty());
    CHECK(has(finding(
                  p, [&] { cast(p.y.view, p.x.view, p.exec); },
                  [&] { cast(p.y.view, p.half.view.slice_rows(0, kRows), p.exec); }),
              "operation 0"));
    CHECK(has(finding(
                  p, [&] { fill_bytes(p.y.view.data, 0, 8, p.main.stream()); },
                  [&] { fill_bytes(p.y.view.data, 1, 8, p.main.stream()); }),
              "operation 0, fill, argument 1"));
}

TEST_CASE("what a graph cannot hold is refused, and the thread goes on") {
    Place p;
    const Stream stream = p.main.stream();
    const auto refusal = [&](const std::function<void()>& work) {
        Graph graph;
        const std::string text = message_of([&] { graph.record(stream, work); });
        CHECK_FALSE(graph.recorded());
        return text;
    };
    CHECK(has(refusal([&] { p.set(p.x, 1.0f); }), "host memory"));
    CHECK(has(refusal([&] { (void)p.first(p.x); }), "host memory"));
    CHECK(has(refusal([&] { synchronize(stream); }), "a wait"));
    CHECK(has(refusal([&] {
                  zero(p.x.view, {p.exec.device, p.side.stream()});
              }),
              "another stream"));
    CHECK(has(refusal([&] { (void)make_tensor({1}, DType::fp32, p.exec.device); }), "memory"));
    CHECK(has(refusal([&] { (void)allocate_on(stream, 8); }), "scratch memory"));
    CHECK(has(refusal([&] { Graph().record(stream, [] {}); }), "a recording in another"));
    CHECK(has(message_of([] { Graph().record(Stream{}, [] {}); }), "default stream"));
    p.set(p.x, 5.0f);
    CHECK(p.first(p.x) == 5.0f);
}

TEST_CASE("what lies between the members of an argument is not compared") {
    struct Padded {
        std::int8_t a;
        std::int64_t b;
    };
    const auto made = [](int filling, std::int8_t a) {
        alignas(Padded) std::byte memory[sizeof(Padded)];
        std::memset(memory, filling, sizeof memory);
        Padded p;
        std::memcpy(&p, memory, sizeof p);
        p.a = a;
        p.b = 2;
        return host::bytes_of(p);
    };
    CHECK(made(0x11, 1) == made(0xee, 1));
    CHECK(made(0x11, 1) != made(0x11, 3));
}
