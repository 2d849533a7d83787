// The backward over a batch: a wave of documents at a time, in phases that the threads divide.
#include <cmath>
#include <numeric>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/tree_attend.h"
#include "kernels/cpu/tree_backward.h"
#include "kernels/cpu/tree_documents.h"
#include "kernels/working_memory.h"

namespace stoa::cpu {
namespace {

using Args = TreeAttentionBackwardArgs;

HeadRows rows_of(const ConstTensorView& t, const TreeSizes& n, const Document& doc) {
    const std::int64_t first =
        ((doc.batch * n.len + doc.begin) * n.n_heads + doc.kv_head * n.group()) * n.dim;
    return {t.data + first * size_of(t.dtype), t.dtype, n.n_heads * n.dim, n.dim};
}

/// Without memory, and without what it reads.
template <class W>
TreeBackward<W> plan_backward(const TreeRule& rule, const TreeSizes& n, const Document& doc) {
    TreeBackward<W> b;
    b.tree = make_tree<W>(rule, n.dim, doc.len);
    b.group = n.group();
    b.levels = n.levels;
    b.slots = n.slots;
    return b;
}
template <class W>
BackwardMemory wave_memory(std::vector<TreeBackward<W>>& all, const TreeRule& rule,
                           const TreeSizes& n, std::span<const Document> docs) {
    BackwardMemory need;
    for (const Document& doc : docs) {
        all.push_back(plan_backward<W>(rule, n, doc));
        const BackwardMemory own = place_backward<W>(all.back(), nullptr, nullptr);
        need.values += own.values, need.words += own.words;
    }
    return need;
}

template <class W>
void set_inputs(TreeBackward<W>& b, const Args& a, const TreeSizes& n, const Document& doc) {
    b.scale = static_cast<W>(a.scale);
    b.q = rows_of(a.q, n, doc);
    b.d_out = rows_of(a.d_out, n, doc);
    b.selection =
        a.selection.as<std::int32_t>().data() +
        ((doc.batch * n.n_kv_heads + doc.kv_head) * n.len + doc.begin) * n.levels * n.slots;
}

/// lse and delta of tokens [begin, end) side by side; d_sink.
template <class T, class W = Wide<T>>
void lay_out_queries(const Args& a, const TreeSizes& n, const Document& doc,
                     const TreeBackward<W>& b, std::int64_t begin, std::int64_t end) {
    vectorised([&] {
        for (std::int64_t t = begin; t < end; ++t)
            for (std::int64_t g = 0; g < b.group; ++g) {
                const std::int64_t h = doc.kv_head * b.group + g, row = doc.begin + t;
                const T *const x = head_row<T>(a.d_out, doc.batch, h, row), *const y = head_row<T>(
                                                                                a.out, doc.batch, h,
                                                                                row);
                const W delta = lane_sum<W>(
                    n.dim, [&](std::int64_t c) { return W{widen(x[c])} * W{widen(y[c])}; });
                const W lse = a.lse.as<W>()[static_cast<std::size_t>(
                    (doc.batch * n.n_heads + h) * n.len + row)];
                b.lse[t * b.group + g] = lse;
                b.delta[t * b.group + g] = delta;
                if (!a.d_sink.empty())
                    a.d_sink.as<W>()[static_cast<std::size_t>(
                        (doc.batch * n.len + row) * n.n_heads + h)] =
                        -std::exp(a.sink_logit.as<W>()[static_cast<std::size_t>(h)] - lse) * delta;
            }
    });
}

template <class T, class W = Wide<T>>
void store_query_gradients(const Args& a, const Document& doc, const TreeBackward<W>& b,
                           const Piece& piece) {
    struct DQTag;
    const std::int64_t count = piece.end - piece.begin;
    W* const d_q = scratch<DQTag, W>(count * b.group * b.tree.width);
    query_gradients(b, piece.begin, count, d_q);
    vectorised([&] {
        for (std::int64_t row = 0; row < count * b.group; ++row)
            narrow_row(head_row<T>(a.d_q, doc.batch, doc.kv_head * b.group + row % b.group,
                                   doc.begin + piece.begin + row / b.group),
                       d_q + row * b.tree.width, b.tree.dim);
    });
}

template <class T, class W = Wide<T>>
void store_token_gradients(const Args& a, const TreeSizes& n, const Document& doc,
                           const TreeBackward<W>& b, const Piece& piece) {
    struct SumsTag;
    const std::int64_t tokens = round_up(piece.end - piece.begin, kLanes);
    W* const d_k = scratch<SumsTag, W>(tokens * (2 * b.tree.width + 1));
    W *const d_v = d_k + tokens * b.tree.width, *const d_gate = d_v + tokens * b.tree.width;
    token_gradients(b, piece.begin, piece.end, d_k, d_v, d_gate);
    vectorised([&] {
        for (std::int64_t s = piece.begin; s < piece.end; ++s) {
            const std::int64_t row = (s - piece.begin) * b.tree.width;
            narrow_row(head_row<T>(a.d_k, doc.batch, doc.kv_head, doc.begin + s), d_k + row, n.dim);
            narrow_row(head_row<T>(a.d_v, doc.batch, doc.kv_head, doc.begin + s), d_v + row, n.dim);
        }
    });
    if (a.d_gate.empty()) return;
    W* const to =
        a.d_gate.as<W>().data() + (doc.batch * n.len + doc.begin) * n.n_kv_heads + doc.kv_head;
    for (std::int64_t s = piece.begin; s < piece.end; ++s)
        to[s * n.n_kv_heads] = s < a.rule.sinks ? W{0} : d_gate[s - piece.begin];
}

template <class T, class W = Wide<T>>
void backward_wave(const Args& a, const TreeSizes& n, std::span<const Document> docs) {
    struct ValuesTag;
    struct WordsTag;
    std::vector<TreeBackward<W>> all;
    const BackwardMemory need = wave_memory(all, a.rule, n, docs);
    for (std::size_t i = 0; i < all.size(); ++i)
        set_inputs(all[i], a, n, docs[i]);
    W* values = working_memory<ValuesTag, W>(need.values);
    auto* words = working_memory<WordsTag, std::int64_t>(need.words);
    std::vector<KeyTree<W>> trees;
    for (TreeBackward<W>& b : all) {
        const BackwardMemory own = place_backward(b, values, words);
        values += own.values, words += own.words;
        trees.push_back(b.tree);
    }
    plant_trees(std::span(trees), docs, a.k, a.v, a.gate);
    for (std::size_t i = 0; i < all.size(); ++i)
        all[i].tree = trees[i];

    const auto pieces = [&](const auto& count, const auto& step) {
        return pieces_of(docs.size(), count, step);
    };
    const auto len = [&](std::size_t i) { return docs[i].len; };
    const auto fixed = [](std::int64_t step) { return [step](std::size_t) { return step; }; };
    const auto blocks = [&](std::size_t i) { return count_blocks(all[i]); };
    for_each_piece(pieces(len, fixed(2048)), [&](const Piece& p) {
        lay_out_tokens(all[p.doc], p.begin, p.end);
        lay_out_queries<T>(a, n, docs[p.doc], all[p.doc], p.begin, p.end);
    });
    for_each_piece(pieces(blocks, fixed(16)), [&](const Piece& p) {
        for (std::int64_t i = p.begin; i < p.end; ++i)
            lay_out_block(all[p.doc], block_at(all[p.doc], i));
    });
    for_each_piece(pieces([&](std::size_t i) { return all[i].tree.n_levels; }, fixed(1)),
                   [&](const Piece& p) { list_queries(all[p.doc], p.begin); });
    for_each_piece(pieces(blocks, fixed(1)), [&](const Piece& p) {
        block_gradients(all[p.doc], block_at(all[p.doc], p.begin));
    });
    parallel_for(std::ssize(all), 1, [&](std::int64_t i, std::int64_t last) {
        for (; i < last; ++i)
            push_down(all[static_cast<std::size_t>(i)]);
    });
    for_each_piece(
        pieces(len, fixed(std::lcm(a.rule.leaf, std::int64_t{kLanes}))),
        [&](const Piece& p) { store_token_gradients<T>(a, n, docs[p.doc], all[p.doc], p); });
    for_each_piece(
        pieces(len,
               [&](std::size_t i) { return tree_chunk(a.rule, docs[i].len, n.group(), n.dim); }),
        [&](const Piece& p) { store_query_gradients<T>(a, docs[p.doc], all[p.doc], p); });
}

}  // namespace

void tree_attention_backward(const Args& a) {
    dispatch_dtype(a.q.dtype, [&]<Element T>(T) {
        const TreeSizes n = tree_sizes(a);
        for_each_wave(documents(a, n),
                      [&](std::span<const Document> docs) { backward_wave<T>(a, n, docs); });
    });
}

}  // namespace stoa::cpu

namespace stoa {
namespace {

template <class W>
std::int64_t tree_bytes(const AttentionSizes& s, const TreeRule& rule) {
    const cpu::TreeSizes n{
        s.batch, s.len, s.n_heads, s.n_kv_heads, s.dim, tree_levels(rule, s.len), tree_slots(rule)};
    std::vector<cpu::Document> docs;
    for (std::int64_t b = 0; b < n.batch; ++b)
        for (std::int64_t kv_head = 0; kv_head < n.n_kv_heads; ++kv_head)
            docs.push_back({b, kv_head, 0, n.len});
    std::int64_t forward = 0, values = 0, words = 0;
    cpu::for_each_wave(docs, [&](std::span<const cpu::Document> wave) {
        std::vector<cpu::KeyTree<W>> trees;
        forward = std::max(forward, cpu::make_trees(trees, wave, rule, n.dim));
        std::vector<cpu::TreeBackward<W>> all;
        const cpu::BackwardMemory need = cpu::wave_memory(all, rule, n, wave);
        values = std::max(values, need.values);
        words = std::max(words, need.words);
    });
    return (forward + values) * static_cast<std::int64_t>(sizeof(W)) +
           words * static_cast<std::int64_t>(sizeof(std::int64_t));
}

}  // namespace

std::int64_t tree_working_bytes(const AttentionSizes& s, const TreeRule& rule) {
    return s.dtype == DType::fp64 ? tree_bytes<double>(s, rule) : tree_bytes<float>(s, rule);
}
std::int64_t held_working_bytes() { return cpu::held_working_memory; }

}  // namespace stoa
