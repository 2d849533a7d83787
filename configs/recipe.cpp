#include "configs/recipe.h"

#include <algorithm>
#include <charconv>

namespace stoa {
namespace {

Formats recipe_formats(Recipe recipe) {
    const auto all = [](DType t) { return Formats{t, t, t, t, t, t, t, t, t}; };
    using enum DType;
    switch (recipe) {
        case Recipe::fp32:
            return all(fp32);
        case Recipe::fp64:
            return all(fp64);
        case Recipe::bf16:
            return {fp32, bf16, bf16, bf16, bf16, fp32, fp32, fp32, fp32};
        case Recipe::r30:
            return {fp32, bf16, fp16, e4m3, bf16, fp32, fp32, e4m3, bf16};
        case Recipe::r45:
            return {fp32, bf16, fp16, e4m3, bf16, bf16, fp32, e4m3, bf16};
        case Recipe::r50:
            return {fp32, bf16, fp16, e4m3, bf16, bf16, fp24, e4m3, e4m3};
    }
    return {};
}

DType dtype_of_format(Format f) {
    switch (f) {
        case Format::bf16:
            return DType::bf16;
        case Format::fp16:
            return DType::fp16;
        case Format::fp8:
            return DType::e4m3;
        case Format::fp24:
            return DType::fp24;
        case Format::automatic:
        case Format::fp32:
            break;
    }
    return DType::fp32;
}

}  // namespace

const char* recipe_name(Recipe recipe) {
    constexpr const char* names[] = {"fp32", "bf16", "r30", "r45", "r50", "fp64"};
    return names[static_cast<int>(recipe)];
}

Formats formats_of(const PrecisionConfig& p) {
    Formats f = recipe_formats(p.recipe);
    const auto override_with = [](DType& t, Format given) {
        if (given != Format::automatic) t = dtype_of_format(given);
    };
    override_with(f.ffn, p.ffn);
    override_with(f.attention, p.attention);
    override_with(f.grad, p.grads);
    override_with(f.master, p.master);
    if (f.ffn != DType::e4m3) f.ffn_edge = f.ffn;
    if (f.attention == DType::fp16 && p.wide_attention) f.attention = DType::bf16;
    switch (p.moments) {
        case Moments::automatic:
            break;
        case Moments::fp32:
            f.m = f.v = DType::fp32;
            break;
        case Moments::bf16:
            f.m = f.v = DType::bf16;
            break;
        case Moments::fp8_bf16:
            f.m = DType::e4m3, f.v = DType::bf16;
            break;
        case Moments::fp8:
            f.m = f.v = DType::e4m3;
            break;
    }
    return f;
}

DType ffn_format(const Formats& formats, const RunConfig& config, std::int64_t layer) {
    const std::int64_t edge = config.precision.edge_blocks;
    const bool at_edge = layer < edge || layer >= config.model.n_layers - edge;
    const bool widened = std::ranges::find(config.precision.wide_layers, layer) !=
                         config.precision.wide_layers.end();
    return at_edge || widened ? formats.ffn_edge : formats.ffn;
}

bool parse_layer_range(const std::string& text, std::int64_t& first, std::int64_t& last) {
    const char* const end = text.data() + text.size();
    auto [at, error] = std::from_chars(text.data(), end, first);
    if (error != std::errc{}) return false;
    last = first;
    if (at == end) return first >= 0;
    if (*at != '-') return false;
    const auto [stop, error2] = std::from_chars(at + 1, end, last);
    return error2 == std::errc{} && stop == end && first >= 0 && first <= last;
}

Recompute recompute_of(const RunConfig& config, std::int64_t layer) {
    const auto& ranges = config.parallel.recompute_layers;
    if (ranges.empty()) return config.parallel.recompute;
    for (const std::string& text : ranges) {
        std::int64_t first = 0, last = -1;
        if (parse_layer_range(text, first, last) && first <= layer && layer <= last)
            return config.parallel.recompute;
    }
    return Recompute::none;
}

bool is_elastic(const RunConfig& config) {
    return config.parallel.determinism != Determinism::fast &&
           size_of(formats_of(config.precision).grad) >= 4;
}

VirtualMesh virtual_mesh(const RunConfig& config, std::int64_t dp, std::int64_t tp) {
    const ParallelConfig& p = config.parallel;
    if (is_elastic(config) && p.dp_shards > 0) return {p.dp_shards, p.tp_chunks};
    if (p.zero < 2) return {dp, tp};
    return {std::max(dp, config.batch.global_batch / config.batch.micro_batch), tp};
}

}  // namespace stoa
