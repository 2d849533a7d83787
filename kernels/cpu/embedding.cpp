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

void embedding_backward(const EmbeddingBackwardArgs& args) {
    dispatch_dtype(args.d_y.dtype, [&]<Element T>(T) {
        const std::int64_t d = args.d_y.cols(), vocab_local = args.d_table.rows();
        const T* d_y = args.d_y.as<T>().data();
        Wide<T>* const d_table = args.d_table.as<Wide<T>>().data();
        const auto tokens = args.tokens.as<std::int32_t>();
        vectorised([&] {
            for (std::size_t r = 0; r < tokens.size(); ++r, d_y += d) {
                const std::int64_t row = tokens[r] - args.vocab_begin;
                if (row < 0 || row >= vocab_local) continue;
                Wide<T>* const out = d_table + row * d;
                for (std::int64_t c = 0; c < d; ++c)
                    out[c] += widen(d_y[c]);
            }
        });
    });
}

}  // namespace stoa::cpu
