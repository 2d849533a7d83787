#pragma once
// How the tree attention divides a batch: a document of one batch entry, for one kv head, is its
// unit; units are taken in waves that bound the memory of their trees, and work inside a wave is
// divided among the threads wherever it lies.
#include <limits>
#include <span>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/head_matrix.h"
#include "kernels/cpu/key_tree.h"
#include "kernels/cpu/scratch.h"

namespace stoa::cpu {

struct TreeSizes {
    std::int64_t batch, len, n_heads, n_kv_heads, dim, levels, slots;
    std::int64_t group() const { return n_heads / n_kv_heads; }
};
template <class Args>
TreeSizes tree_sizes(const Args& a) {
    return {a.q.shape[0],      a.q.shape[1], a.q.shape[2],
            a.k.shape[2],      a.q.shape[3], tree_levels(a.rule, a.q.shape[1]),
            tree_slots(a.rule)};
}

/// Tokens count from the document's beginning.
struct Document {
    std::int64_t batch, kv_head, begin, len;
};
template <class Args>
std::vector<Document> documents(const Args& a, const TreeSizes& n) {
    std::vector<Document> all;
    for (std::int64_t b = 0; b < n.batch; ++b)
        for (std::int64_t kv_head = 0; kv_head < n.n_kv_heads; ++kv_head) {
            const auto* const begins = a.key_begin.template as<std::int32_t>().data() + b * n.len;
            for (std::int64_t begin = 0, end = 0; begin < n.len; begin = end) {
                for (end = begin + 1; end < n.len && begins[end] == begins[begin];)
                    ++end;
                all.push_back({b, kv_head, begin, end - begin});
            }
        }
    return all;
}

/// fn(wave) for consecutive units: one, or several of together at most kWaveTokens.
constexpr std::int64_t kWaveTokens = 1 << 16;
template <class Fn>
void for_each_wave(std::span<const Document> docs, const Fn& fn) {
    for (std::size_t first = 0, last = 0; first < docs.size(); first = last) {
        std::int64_t tokens = 0;
        for (; last < docs.size() && (last == first || tokens + docs[last].len <= kWaveTokens);
             ++last)
            tokens += docs[last].len;
        fn(docs.subspan(first, last - first));
    }
}

/// A piece of a wave's work: a range of something of unit `doc`.
struct Piece {
    std::size_t doc;
    std::int64_t begin, end;
};
/// Ranges of `step` (may depend on the unit) over count(i) things of every unit.
template <class Count, class Step>
std::vector<Piece> pieces_of(std::size_t docs, const Count& count, const Step& step) {
    std::vector<Piece> pieces;
    for (std::size_t i = 0; i < docs; ++i)
        for (std::int64_t n = count(i), at = 0, by = step(i); at < n; at += by)
            pieces.push_back({i, at, std::min(n, at + by)});
    return pieces;
}
template <class Fn>
void for_each_piece(const std::vector<Piece>& pieces, const Fn& fn) {
    parallel_for(std::ssize(pieces), 1, [&](std::int64_t i, std::int64_t last) {
        for (; i < last; ++i)
            fn(pieces[static_cast<std::size_t>(i)]);
    });
}

/// Fills the trees of a wave, whose memory is placed, from k, v and gate of the batch.
template <class W>
void plant_trees(std::span<KeyTree<W>> trees, std::span<const Document> docs,
                 const ConstTensorView& k, const ConstTensorView& v, const ConstTensorView& gate);

/// Trees for the units of a wave, without memory; returns the values that they take together.
template <class W>
std::int64_t make_trees(std::vector<KeyTree<W>>& trees, std::span<const Document> docs,
                        const TreeRule& rule, std::int64_t dim) {
    std::int64_t values = 0;
    trees.clear();
    for (const Document& doc : docs) {
        trees.push_back(make_tree<W>(rule, dim, doc.len));
        values += place_tree<W>(trees.back(), nullptr);
    }
    return values;
}

template <class T, class W>
void widen_row(W* out, const T* row, std::int64_t dim) {
    for (std::int64_t c = 0; c < dim; ++c)
        out[c] = widen(row[c]);
}
template <class T, class W>
void narrow_row(T* out, const W* row, std::int64_t dim) {
    for (std::int64_t c = 0; c < dim; ++c)
        out[c] = narrow_to<T>(row[c]);
}
/// Element (row, head, 0) of a (batch, len, heads, dim) tensor.
template <class T>
const T* head_row(const ConstTensorView& t, std::int64_t batch, std::int64_t head,
                  std::int64_t row) {
    return t.as<T>().data() + ((batch * t.shape[1] + row) * t.shape[2] + head) * t.shape[3];
}
template <class T>
T* head_row(const TensorView& t, std::int64_t batch, std::int64_t head, std::int64_t row) {
    return t.as<T>().data() + ((batch * t.shape[1] + row) * t.shape[2] + head) * t.shape[3];
}

template <class Args, class W>
void sinks_of(W* sink, const Args& a, std::int64_t first_head, std::int64_t group) {
    for (std::int64_t g = 0; g < group; ++g)
        sink[g] = a.sink_logit.empty()
                      ? -std::numeric_limits<W>::infinity()
                      : a.sink_logit.template as<W>()[static_cast<std::size_t>(first_head + g)];
}

}  // namespace stoa::cpu
