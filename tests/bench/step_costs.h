#pragma once
// What the benchmarks of a training step share.
#include <algorithm>
#include <string>
#include <vector>

#include "configs/recipe.h"
#include "kernels/core/error.h"
#include "trainer/model/params.h"

namespace stoa::bench {

/// errors: ConfigError that names --recipes
inline Recipe recipe_from_name(const std::string& name) {
    for (const Recipe r : {Recipe::fp32, Recipe::bf16, Recipe::r30, Recipe::r45, Recipe::r50})
        if (name == recipe_name(r)) return r;
    throw ConfigError({.what = "no such recipe", .where = "--recipes", .actual = name});
}

/// Floating-point operations of one step: 6 per weight and token (the embedding look-up is free,
/// its use as the output layer is not), and causal attention's 6 * seq_len * q_cols per layer and
/// token (half of the full square), forward and backward.
inline double step_flop(const RunConfig& c) {
    const ModelConfig& m = c.model;
    const double tokens = static_cast<double>(c.batch.global_batch * c.stages[0].seq_len);
    const double weights = static_cast<double>(count_parameters(c)) -
                           (m.tie_embeddings ? 0.0 : static_cast<double>(m.vocab_size * m.d_model));
    const double attention =
        6.0 * static_cast<double>(m.n_layers * c.stages[0].seq_len * m.n_heads * m.head_dim);
    return tokens * (6.0 * weights + attention);
}

inline double quantile(std::vector<double> x, double q) {
    std::ranges::sort(x);
    return x[static_cast<std::size_t>(q * static_cast<double>(x.size() - 1))];
}

}  // namespace stoa::bench
