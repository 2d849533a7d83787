#pragma once
// What attention_quality trains on: rows of tokens of the far tasks (data/reasoning/far_tasks.h),
// and the bytes of C++ headers.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "data/reasoning/far_tasks.h"
#include "data/token_loader.h"

namespace stoa::test {

/// A task and how it is trained. A far task's filler makes up the length; a shape of 0 facts is
/// code.
struct QualityTask {
    std::string name;
    FarTaskKind kind = FarTaskKind::recall;
    FarShape shape;
    std::int64_t seq_len = 160;  // trained; measured at 1, 2, 4 and 8 times that
    std::int64_t batch = 32, steps = 400;
    double lr = 3e-3;
    std::int64_t window = 16, leaf = 4, fanout = 8, beam = 8;
    bool is_code() const { return shape.facts == 0; }
};

/// A row with its queries: tokens are symbols, targets the symbols of answers.
struct FarRow {
    std::vector<std::int32_t> tokens, targets;
    std::size_t first_query = 0;  // where in `tokens`
    FarPhrase query;              // the first
};

/// The task's shape in rows of seq_len / parts, for the beginning of training: fewer facts, as many
/// as fit, and questions right behind them.
inline FarShape far_part(const QualityTask& task, std::int64_t parts) {
    FarShape s = task.shape;
    if (parts == 1) return s;
    s.lead = s.gap = 0;
    s.facts = std::min(s.facts, std::max<std::int64_t>(1, 2 * s.facts / parts));
    for (;; --s.facts) {
        s.queries = std::min(s.queries, s.facts);
        const std::int64_t size =
            far_facts_size(task.kind, s) + s.queries * far_query_size(task.kind, s);
        if (s.facts == 1 || size < task.seq_len / parts) return s;
    }
}

/// Facts keep their number at any length; the filler between and behind them grows.
inline FarRow far_row(const QualityTask& task, FarShape shape, std::int64_t seq_len, Draws draws) {
    shape.fillers = seq_len + 1 - far_facts_size(task.kind, shape) -
                    shape.queries * far_query_size(task.kind, shape);
    const FarTask drawn = draw_far_task(task.kind, shape, draws);
    FarRow row;
    std::vector<std::int32_t> symbols, answers;
    const auto add = [&](const FarPhrase& p, bool asks) {
        for (std::size_t i = 0; i < p.symbols.size(); ++i) {
            symbols.push_back(static_cast<std::int32_t>(p.symbols[i]));
            answers.push_back(asks && i >= p.given ? symbols.back() : -1);
        }
    };
    for (const FarPhrase& p : drawn.context)
        add(p, false);
    row.first_query = symbols.size();
    row.query = drawn.queries[0];
    for (const FarPhrase& p : drawn.queries)
        add(p, true);
    row.tokens.assign(symbols.begin(), symbols.end() - 1);
    row.targets.assign(answers.begin() + 1, answers.end());
    return row;
}

inline void append_row(MicroBatch& mb, const std::vector<std::int32_t>& tokens,
                       const std::vector<std::int32_t>& targets) {
    ++mb.batch;
    mb.tokens.insert(mb.tokens.end(), tokens.begin(), tokens.end());
    mb.targets.insert(mb.targets.end(), targets.begin(), targets.end());
    mb.key_begin.insert(mb.key_begin.end(), tokens.size(), 0);
}

/// The headers of the C++ library, one after the other in the order of their names, up to
/// `most_bytes` of training text; every tenth file is held out. Empty where there are none.
struct CodeText {
    std::string train, held_out;
};
inline CodeText cpp_headers(std::size_t most_bytes) {
    namespace fs = std::filesystem;
    std::vector<fs::path> files;
    std::error_code none;
    for (fs::recursive_directory_iterator it("/usr/include/c++", none), end; it != end;
         it.increment(none))
        if (it->is_regular_file(none)) files.push_back(it->path());
    std::ranges::sort(files);
    CodeText text;
    for (std::size_t i = 0; i < files.size() && text.train.size() < most_bytes; ++i) {
        std::ifstream in(files[i], std::ios::binary);
        (i % 10 == 9 ? text.held_out : text.train) +=
            std::string(std::istreambuf_iterator<char>(in), {});
    }
    return text;
}

/// Row begins at `at`; the target of each byte is the next one.
inline void append_bytes(MicroBatch& mb, const std::string& text, std::size_t at) {
    const auto n = static_cast<std::size_t>(mb.seq_len);
    std::vector<std::int32_t> bytes;
    for (std::size_t t = at; t <= at + n; ++t)
        bytes.push_back(static_cast<unsigned char>(text[t]));
    append_row(mb, {bytes.begin(), bytes.end() - 1}, {bytes.begin() + 1, bytes.end()});
}

}  // namespace stoa::test
