#include <algorithm>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/ops.h"

namespace stoa::cpu {

void embedding_forward(const EmbeddingArgs& args) {
    dispatch_dtype(args.y.dtype, [&]<Element T>(T) {
        const std::int64_t d = args.y.cols(), vocab_local = args.table.rows();
        const T* const table = args.table.as<T>().data();
        T* const rows = args.y.as<T>().data();
        const std::int32_t* const tokens = args.tokens.as<std::int32_t>().data();
        parallel_for(args.tokens.numel(), grain_for(d), [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t r = begin; r < end; ++r) {
                const std::int64_t row = tokens[r] - args.vocab_begin;
                if (row >= 0 && row < vocab_local)
                    std::copy_n(table + row * d, d, rows + r * d);
                else
                    std::fill_n(rows + r * d, d, T{});
            }
        });
    });
}

namespace {

template <Element T>
void add_row_at_random(const EmbeddingBackwardArgs& args, std::int64_t r, std::int64_t row,
                       const T* in, bf16* out, std::int64_t begin, std::int64_t end) {
    StochasticRounding rounding = args.rounding;
    rounding.call += static_cast<std::uint64_t>(r);
    std::uint32_t random[kRandomRun];
    for (std::int64_t c = begin; c < end; c += kRandomRun) {
        const std::int64_t n = std::min(kRandomRun, end - c);
        random_halves(random, rounding, rounding.element(row, c), n);
        for (std::int64_t i = 0; i < n; ++i)
            out[c + i] = to_bf16_stochastic(widen(out[c + i]) + widen(in[c + i]), random[i]);
    }
}

/// Tokens repeat, so the threads divide the columns: each adds the rows in their order.
template <Element T, Element G>
void add_rows(const EmbeddingBackwardArgs& args) {
    const std::int64_t d = args.d_y.cols(), vocab_local = args.d_table.rows();
    const T* const d_y = args.d_y.as<T>().data();
    G* const d_table = args.d_table.as<G>().data();
    const auto tokens = args.tokens.as<std::int32_t>();
    const std::int64_t grain = std::max<std::int64_t>(64, grain_for(std::ssize(tokens)));
    parallel_for(d, grain, [&](std::int64_t begin, std::int64_t end) {
        vectorised([&] {
            for (std::size_t r = 0; r < tokens.size(); ++r) {
                const std::int64_t row = tokens[r] - args.vocab_begin;
                if (row < 0 || row >= vocab_local) continue;
                const T* const in = d_y + static_cast<std::int64_t>(r) * d;
                G* const out = d_table + row * d;
                if constexpr (std::is_same_v<G, bf16>) {
                    if (args.rounding.enabled()) {
                        add_row_at_random(args, static_cast<std::int64_t>(r), row, in, out, begin,
                                          end);
                        continue;
                    }
                }
                for (std::int64_t c = begin; c < end; ++c)
                    out[c] = narrow_to<G>(widen(out[c]) + widen(in[c]));
            }
        });
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
