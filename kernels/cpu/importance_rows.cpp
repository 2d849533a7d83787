#include "kernels/cpu/importance_rows.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cpu/select_keys.h"

namespace stoa::cpu {
namespace {

/// Rows [from, from + count) of one head's k, v, gate and importance go to row `to`.
void move_rows(const ImportanceCache& c, std::int64_t head, std::int64_t to, std::int64_t from,
               std::int64_t count) {
    for (const Tensor* t : {&c.k, &c.v, &c.gate, &c.importance}) {
        const std::int64_t bytes = t->view.bytes() / t->view.shape[0] / row_count(c);
        std::byte* const rows = t->view.data + head * row_count(c) * bytes;
        std::memmove(rows + to * bytes, rows + from * bytes,
                     static_cast<std::size_t>(count * bytes));
    }
}
double importance_of(const ImportanceCache& c, std::int64_t head, std::int64_t row) {
    return c.importance.as<double>()[static_cast<std::size_t>(head * row_count(c) + row)];
}
/// Far rows in order of age: older is better among equals, and a lower row is older.
Ranked<double> rank_of_row(const ImportanceCache& c, std::int64_t head, std::int64_t row) {
    return rank_of(importance_of(c, head, row), row);
}
/// Of the kept rows the one to go.
std::int64_t least_kept(const ImportanceCache& c, std::int64_t head) {
    std::int64_t least = c.rule.sinks;
    for (std::int64_t row = least + 1; row < c.far_keys; ++row)
        if (rank_of_row(c, head, least).better_than(rank_of_row(c, head, row))) least = row;
    return least;
}

/// The oldest token of a full window leaves it.
void leave_window(ImportanceCache& c) {
    const std::int64_t token = c.length - c.window_keys, row = c.window_begin;
    const bool is_sink = token < c.rule.sinks, room = c.far_keys < far_room(c);
    for (std::int64_t head = 0; head < c.k.view.shape[0]; ++head) {
        if (is_sink || (room && c.rule.keep > 0)) {
            move_rows(c, head, c.far_keys, row, 1);
            continue;
        }
        if (c.rule.keep == 0) continue;
        const std::int64_t least = least_kept(c, head);
        if (!rank_of_row(c, head, row).better_than(rank_of_row(c, head, least))) continue;
        move_rows(c, head, least, least + 1, c.far_keys - least - 1);
        move_rows(c, head, c.far_keys - 1, row, 1);
    }
    if (is_sink || (room && c.rule.keep > 0)) ++c.far_keys;
    ++c.window_begin;
    --c.window_keys;
}

template <class W>
W value_at(const ConstTensorView& t, std::int64_t i) {
    if (t.empty()) return W{0};
    return t.dtype == DType::fp64 ? static_cast<W>(t.as<double>()[static_cast<std::size_t>(i)])
                                  : static_cast<W>(t.as<float>()[static_cast<std::size_t>(i)]);
}

/// Token i of a call goes to a row of one head.
void put_token(const ImportanceCache& c, const ImportanceCacheKeys& a, std::int64_t i,
               std::int64_t head, std::int64_t row) {
    const std::int64_t heads = c.k.view.shape[0], from = i * heads + head,
                       to = head * row_count(c) + row;
    const std::int64_t bytes = c.k.view.shape[2] * size_of(c.k.view.dtype);
    std::memcpy(c.k.view.data + to * bytes, a.k.data + from * bytes,
                static_cast<std::size_t>(bytes));
    std::memcpy(c.v.view.data + to * bytes, a.v.data + from * bytes,
                static_cast<std::size_t>(bytes));
    const auto at = static_cast<std::size_t>(to);
    c.importance.as<double>()[at] = value_at<double>(a.importance, from);
    if (c.gate.view.dtype == DType::fp64)
        c.gate.as<double>()[at] = value_at<double>(a.gate, from);
    else
        c.gate.as<float>()[at] = value_at<float>(a.gate, from);
}

}  // namespace

void push(ImportanceCache& c, const ImportanceCacheKeys& a) {
    if (c.window_keys == c.rule.window) leave_window(c);
    const bool at_end = c.window_begin + c.window_keys == row_count(c);
    for (std::int64_t head = 0; at_end && head < c.k.view.shape[0]; ++head)
        move_rows(c, head, far_room(c), c.window_begin, c.window_keys);
    if (at_end) c.window_begin = far_room(c);
    for (std::int64_t head = 0; head < c.k.view.shape[0]; ++head)
        put_token(c, a, 0, head, c.window_begin + c.window_keys);
    ++c.window_keys;
    ++c.length;
}

Tensor select_with(const ImportanceCache& c, const ConstTensorView& importance,
                   std::int64_t count) {
    const std::int64_t heads = c.k.view.shape[0], old = held(c), len = old + count;
    Tensor expiry({heads, len}, DType::int32);
    for (std::int64_t h = 0; h < heads; ++h) {
        std::vector<Ranked<double>> kept;
        for (std::int64_t row = std::min(c.rule.sinks, c.far_keys); row < c.far_keys; ++row)
            kept.push_back(rank_of_row(c, h, row));
        const auto importance_at = [&](std::int64_t s) {
            return s < old ? importance_of(c, h, row_of(c, s))
                           : value_at<double>(importance, (s - old) * heads + h);
        };
        select_in_document(expiry.as<std::int32_t>().data() + h * len, 0, len, c.rule,
                           importance_at, kept, c.far_keys);
    }
    return expiry;
}

// Rows only go to lower ones, the older first, so that none is lost.
void take(ImportanceCache& c, const ImportanceCacheKeys& a, const Tensor& expiry) {
    const std::int64_t len = expiry.view.shape[1], old = held(c), count = len - old,
                       window = std::min(c.rule.window, c.window_keys + count);
    std::int64_t far = 0;
    for (std::int64_t h = 0; h < c.k.view.shape[0]; ++h) {
        const std::int32_t* const until = expiry.as<std::int32_t>().data() + h * len;
        const auto put = [&](std::int64_t token, std::int64_t row) {
            if (token < old)
                move_rows(c, h, row, row_of(c, token), 1);
            else
                put_token(c, a, token - old, h, row);
        };
        far = 0;
        for (std::int64_t s = 0; s < len - window; ++s)
            if (until[s] == len) put(s, far++);
        for (std::int64_t s = len - window; s < len; ++s)
            put(s, far_room(c) + s - (len - window));
    }
    c.far_keys = far;
    c.window_begin = far_room(c);
    c.window_keys = window;
    c.length += count;
}

}  // namespace stoa::cpu
