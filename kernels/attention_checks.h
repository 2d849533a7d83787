#pragma once
// Rules that the sparse attentions share.
#include "kernels/core/tensor_view.h"
#include "kernels/importance_attention.h"

namespace stoa {

/// key_begin (batch * len): the start of each token's document.
inline void require_documents(const ConstTensorView& key_begin, std::int64_t batch,
                              std::int64_t len, const char* name) {
    require_numel(key_begin, batch * len, name);
    require_dtype(key_begin, DType::int32, name);
    if (key_begin.device.is_cuda()) return;  // the host does not read device memory
    const auto begins = key_begin.as<std::int32_t>();
    for (std::int64_t r = 0; r < batch * len; ++r) {
        const std::int64_t t = r % len, begin = begins[static_cast<std::size_t>(r)];
        const bool same = t > 0 && begin == begins[static_cast<std::size_t>(r - 1)];
        require(begin == t || (same && begin < t), name, "the start of each token's document",
                std::to_string(begin));
    }
}

inline void require_rule(const KeyRule& rule) {
    require(rule.window >= 1, "importance_attention: window", ">= 1", std::to_string(rule.window));
    require(rule.sinks >= 0, "importance_attention: sinks", ">= 0", std::to_string(rule.sinks));
    require(rule.keep >= 0, "importance_attention: keep", ">= 0", std::to_string(rule.keep));
}

/// A gradient is given where its input is, in its shape and dtype.
inline void require_like(const ConstTensorView& gradient, const ConstTensorView& of,
                         const char* name) {
    require(gradient.empty() == of.empty(), name, "given where its input is", gradient.shape.str());
    if (of.empty()) return;
    require_shape(gradient, of.shape, name);
    require_dtype(gradient, of.dtype, name);
}

/// The gradient towards a head's sink_logit, query by query: given where sink_logit is.
inline void require_sink_gradient(const ConstTensorView& d_sink, const ConstTensorView& sink_logit,
                                  const ConstTensorView& q, const char* name) {
    require(d_sink.empty() == sink_logit.empty(), name, "given where sink_logit is",
            d_sink.shape.str());
    if (sink_logit.empty()) return;
    require_shape(d_sink, {q.shape[0], q.shape[1], q.shape[2]}, name);
    require_dtype(d_sink, sink_logit.dtype, name);
}

}  // namespace stoa
