#include <algorithm>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/ops.h"

namespace stoa::cpu {

void embedding_forward(const EmbeddingArgs& args) {
    dispatch_dtype(args.y.dtype, [&]<Element T>(T) {
        const std::int64_t d = args.y.cols(), vocab_local = args.table.rows();
        const T* const table = args.table.as<T>().data();
        T* y = args.y.as<T>().data();
        for (const std::int32_t token : args.tokens.as<std::int32_t>()) {
            const std::int64_t row = token - args.vocab_begin;
            if (row >= 0 && row < vocab_local)
                std::copy_n(table + row * d, d, y);
            else
                std::fill_n(y, d, T{});
            y += d;
        }
    });
}

namespace {

template <Element T, Element G>
void add_rows(const EmbeddingBackwardArgs& args) {
    const std::int64_t d = args.d_y.cols(), vocab_local = args.d_table.rows();
    const T* d_y = args.d_y.as<T>().data();
    G* const d_table = args.d_table.as<G>().data();
    const auto tokens = args.tokens.as<std::int32_t>();
    vectorised([&] {
        for (std::size_t r = 0; r < tokens.size(); ++r, d_y += d) {
            const std::int64_t row = tokens[r] - args.vocab_begin;
            if (row < 0 || row >= vocab_local) continue;
            G* const out = d_table + row * d;
            for (std::int64_t c = 0; c < d; ++c)
                out[c] = narrow_to<G>(widen(out[c]) + widen(d_y[c]));
        }
    });
}

}  // namespace

void embedding_backward(const EmbeddingBackwardArgs& args) {
    dispatch_dtype(args.d_y.dtype, [&]<Element T>(T) {
        if (args.d_table.dtype == DType::bf16) {
            if constexpr (!std::is_same_v<T, double>) add_rows<T, bf16>(args);
        } else {
            add_rows<T, Wide<T>>(args);
        }
    });
}

}  // namespace stoa::cpu
