// The library's attention on the host: the graphs' operations one by one, each in fp32 and rounded
// to its result's type, on the strides that the graphs name. So a mask, a stride or an operation
// that is wrong in them shows in conformance.
#include <cmath>
#include <limits>

#include "kernels/cuda/host/device_pages.h"
#include "kernels/cuda/host/recording.h"
#include "kernels/cuda/sdpa_graph.h"

namespace stoa::cuda {
namespace {

struct Values {
    bool known = false;
    std::vector<float> v;  // packed
};

struct Interpreter {
    const OpGraph& graph;
    const SdpaCall& call;
    std::vector<Values> values;
    std::vector<float> delta;

    Interpreter(const OpGraph& g, const SdpaCall& c) : graph(g), call(c), values(g.tensors.size()) {
        const SdpaShape& s = c.shape;
        delta.resize(static_cast<std::size_t>(s.batch * s.n_heads * s.q_len));
    }

    static std::size_t place(const Dims& strides, const Dims& i) {
        std::int64_t at = 0;
        for (std::size_t d = 0; d < 4; ++d)
            at += i[d] * strides[d];
        return static_cast<std::size_t>(at);
    }
    template <class Fn>
    static void for_each(const Dims& dims, const Fn& fn) {
        for (std::int64_t i = 0; i < dims[0]; ++i)
            for (std::int64_t j = 0; j < dims[1]; ++j)
                for (std::int64_t k = 0; k < dims[2]; ++k)
                    for (std::int64_t l = 0; l < dims[3]; ++l)
                        fn(Dims{i, j, k, l});
    }

    /// The memory of an id, as T.
    template <class T>
    T* memory(std::int64_t id) {
        const auto as = [](const void* p) { return static_cast<T*>(const_cast<void*>(p)); };
        switch (static_cast<SdpaTensor>(id)) {
            case SdpaTensor::q:
                return as(call.q);
            case SdpaTensor::k:
                return as(call.k);
            case SdpaTensor::v:
                return as(call.v);
            case SdpaTensor::out:
                return as(call.out);
            case SdpaTensor::lse:
                return as(call.lse);
            case SdpaTensor::key_begin:
                return as(call.key_begin);
            case SdpaTensor::key_end:
                return as(call.key_end);
            case SdpaTensor::d_out:
                return as(call.d_out);
            case SdpaTensor::d_q:
                return as(call.d_q);
            case SdpaTensor::d_k:
                return as(call.d_k);
            case SdpaTensor::d_v:
                return as(call.d_v);
            default:
                return as(delta.data());
        }
    }
    float scalar(std::int64_t id) const {
        if (id == static_cast<std::int64_t>(SdpaTensor::scale))
            return static_cast<float>(call.scale);
        return id == static_cast<std::int64_t>(SdpaTensor::masked) ? kSdpaMasked : 1.0f;
    }
    /// fn(T{}) for the type of a tensor in memory.
    template <class Fn>
    static void with_type(GraphType t, const Fn& fn) {
        if (t == GraphType::bf16) return fn(bf16{});
        if (t == GraphType::fp16) return fn(fp16{});
        if (t == GraphType::int32) return fn(std::int32_t{});
        fn(float{});
    }
    static float number(std::int32_t x) { return static_cast<float>(x); }
    template <Element T>
    static float number(T x) {
        return static_cast<float>(widen(x));
    }

    const Values& read(std::size_t i) {
        const GraphTensor& t = graph.tensors[i];
        Values& x = values[i];
        if (x.known) return x;
        if (t.place == GraphPlace::between)
            throw DeviceError({.what = "a graph reads what no step has computed"});
        x.known = true;
        if (t.place == GraphPlace::scalar) {
            x.v = {scalar(t.id)};
            return x;
        }
        with_type(t.type, [&]<class T>(T) {
            const T* const from = memory<T>(t.id);
            for_each(t.dims,
                     [&](const Dims& at) { x.v.push_back(number(from[place(t.strides, at)])); });
        });
        return x;
    }
    /// An element, one that an axis of size 1 spreads.
    float element(std::size_t i, Dims at) {
        const Dims& dims = graph.tensors[i].dims;
        for (std::size_t d = 0; d < 4; ++d)
            if (dims[d] == 1) at[d] = 0;
        return values[i].v[place(packed_strides(dims), at)];
    }
    void write(std::size_t i, std::vector<float> v) {
        const GraphTensor& t = graph.tensors[i];
        for (float& x : v) {
            if (t.type == GraphType::bf16) x = to_float(to_bf16(x));
            if (t.type == GraphType::fp16) x = to_float(to_fp16(x));
        }
        values[i] = {true, std::move(v)};
        if (t.place != GraphPlace::memory) return;
        with_type(t.type, [&]<class T>(T) {
            if constexpr (Element<T>) {
                T* const to = memory<T>(t.id);
                const Dims packed = packed_strides(t.dims);
                for_each(t.dims, [&](const Dims& at) {
                    to[place(t.strides, at)] = narrow_to<T>(values[i].v[place(packed, at)]);
                });
            }
        });
    }

    std::vector<float> matmul(const GraphStep& s) {
        const Dims &y = graph.tensors[s.y].dims, &a = graph.tensors[s.a].dims,
                   &b = graph.tensors[s.b].dims;
        const Dims a_at = packed_strides(a), b_at = packed_strides(b);
        const std::vector<float>&left = values[s.a].v, &right = values[s.b].v;
        std::vector<float> out;
        for_each(y, [&](const Dims& i) {
            const std::size_t l = place(a_at, {i[0], i[1], i[2], 0}),
                              r = place(b_at, {i[0], i[1] * b[1] / a[1], 0, i[3]});
            float sum = 0.0f;
            for (std::size_t k = 0; k < static_cast<std::size_t>(a[3]); ++k)
                sum += left[l + k] * right[r + k * static_cast<std::size_t>(b[3])];
            out.push_back(sum);
        });
        return out;
    }
    std::vector<float> reduce(const GraphStep& s) {
        const Dims &y = graph.tensors[s.y].dims, &a = graph.tensors[s.a].dims;
        const bool sum = s.op == GraphOp::reduce_sum;
        std::vector<float> out(static_cast<std::size_t>(y[0] * y[1] * y[2] * y[3]),
                               sum ? 0.0f : -std::numeric_limits<float>::infinity());
        for_each(a, [&](const Dims& i) {
            Dims to{};
            for (std::size_t d = 0; d < 4; ++d)
                to[d] = i[d] * y[d] / a[d];
            float& x = out[place(packed_strides(y), to)];
            const float with = element(s.a, i);
            x = sum ? x + with : std::max(x, with);
        });
        return out;
    }
    float compute(const GraphStep& s, const Dims& i) {
        const auto b = [&] { return element(s.b, i); };
        const float a = s.op == GraphOp::index ? 0.0f : element(s.a, i);
        switch (s.op) {
            case GraphOp::multiply:
                return a * b();
            case GraphOp::add:
                return a + b();
            case GraphOp::subtract:
                return a - b();
            case GraphOp::divide:
                return a / b();
            case GraphOp::exp:
                return std::exp(a);
            case GraphOp::log:
                return std::log(a);
            case GraphOp::greater_equal:
                return a >= b() ? 1.0f : 0.0f;
            case GraphOp::less:
                return a < b() ? 1.0f : 0.0f;
            case GraphOp::select:
                return element(s.c, i) != 0.0f ? a : b();
            case GraphOp::index:
                return static_cast<float>(i[static_cast<std::size_t>(s.axis)]);
            default:  // reshape: the same values, in y's order
                return a;
        }
    }
    /// y is another view of a's memory: the same, or its last two axes exchanged.
    std::vector<float> reshape(const GraphStep& s) {
        const GraphTensor &y = graph.tensors[s.y], &a = graph.tensors[s.a];
        const auto turn = [](const Dims& d) { return Dims{d[0], d[1], d[3], d[2]}; };
        const bool turned = y.dims == turn(a.dims) && y.strides == turn(a.strides);
        if (!turned && (y.dims != a.dims || y.strides != a.strides))
            throw DeviceError({.what = "a graph reshapes what is no view of the same memory"});
        std::vector<float> out;
        for_each(y.dims, [&](const Dims& i) { out.push_back(element(s.a, turned ? turn(i) : i)); });
        return out;
    }
    void run() {
        for (const GraphStep& s : graph.steps) {
            for (const std::size_t i : {s.a, s.b, s.c})
                if (i != kNone) (void)read(i);
            if (s.op == GraphOp::matmul) {
                write(s.y, matmul(s));
            } else if (s.op == GraphOp::reduce_max || s.op == GraphOp::reduce_sum) {
                write(s.y, reduce(s));
            } else if (s.op == GraphOp::reshape) {
                write(s.y, reshape(s));
            } else {
                std::vector<float> out;
                for_each(graph.tensors[s.y].dims,
                         [&](const Dims& i) { out.push_back(compute(s, i)); });
                write(s.y, std::move(out));
            }
        }
    }
};

}  // namespace

bool library_sdpa_forward(const SdpaCall& call, Stream stream) {
    if (sdpa_refusal(call.shape)) return false;
    const host::CountedScratch workspace(kSdpaForwardWorkspace);
    host::start(
        {.name = "library attention", .blocks = 1, .threads = 1, .stream = stream}, nullptr,
        [call, graph = sdpa_forward_graph(call.shape)] { Interpreter(graph, call).run(); }, call);
    return true;
}

bool library_sdpa_backward(const SdpaCall& call, Stream stream) {
    if (sdpa_refusal(call.shape)) return false;
    const host::CountedScratch delta(sdpa_delta_bytes(call.shape)),
        workspace(sdpa_backward_workspace(call.shape));
    host::start(
        {.name = "library attention_backward", .blocks = 1, .threads = 1, .stream = stream},
        nullptr,
        [call, graph = sdpa_backward_graph(call.shape)] { Interpreter(graph, call).run(); }, call);
    return true;
}

}  // namespace stoa::cuda
