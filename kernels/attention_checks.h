#pragma once
// Rules that the sparse attentions share.
#include "kernels/core/tensor_view.h"

namespace stoa {

/// key_begin (batch * len): the start of each token's document.
inline void require_documents(const ConstTensorView& key_begin, std::int64_t batch,
                              std::int64_t len, const char* name) {
    require_numel(key_begin, batch * len, name);
    require_dtype(key_begin, DType::int32, name);
    const auto begins = key_begin.as<std::int32_t>();
    for (std::int64_t r = 0; r < batch * len; ++r) {
        const std::int64_t t = r % len, begin = begins[static_cast<std::size_t>(r)];
        const bool same = t > 0 && begin == begins[static_cast<std::size_t>(r - 1)];
        require(begin == t || (same && begin < t), name, "the start of each token's document",
                std::to_string(begin));
    }
}

/// A gradient is given where its input is, in its shape and dtype.
inline void require_like(const ConstTensorView& gradient, const ConstTensorView& of,
                         const char* name) {
    require(gradient.empty() == of.empty(), name, "given where its input is", gradient.shape.str());
    if (of.empty()) return;
    require_shape(gradient, of.shape, name);
    require_dtype(gradient, of.dtype, name);
}

}  // namespace stoa
