#pragma once
// What the tests of the sparse attentions share: packed documents, gates, prefixes.
#include <algorithm>
#include <cstring>
#include <vector>

#include "tests/support/tensors.h"

namespace stoa::test {

/// (batch * len): rows of documents of `document` tokens; entry b begins b tokens into its first.
inline Tensor packed_documents(std::int64_t batch, std::int64_t len, std::int64_t document) {
    Tensor key_begin({batch * len}, DType::int32);
    const auto begin = key_begin.as<std::int32_t>();
    for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t t = 0; t < len; ++t)
            begin[static_cast<std::size_t>(b * len + t)] = static_cast<std::int32_t>(
                std::max<std::int64_t>(0, (t + b) / document * document - b));
    return key_begin;
}

/// Random gates within [-2, 0]: a log sigmoid is never positive.
inline Tensor random_gates(Shape shape, DType wide, std::uint64_t seed) {
    Tensor gate = random_tensor(shape, wide, seed);
    const auto close = [](auto values) {
        for (auto& g : values)
            g -= 1;
    };
    if (wide == DType::fp64)
        close(gate.as<double>());
    else
        close(gate.as<float>());
    return gate;
}

/// The first `tokens` tokens of the first batch entry of a (batch, len, ...) tensor.
inline Tensor first_tokens(const Tensor& t, std::int64_t tokens) {
    Shape cut = t.view.shape;
    cut.dims[0] = 1;
    cut.dims[1] = tokens;
    Tensor out(cut, t.view.dtype);
    std::memcpy(out.view.data, t.view.data, static_cast<std::size_t>(out.view.bytes()));
    return out;
}

}  // namespace stoa::test
