#include "data/crawl/read_documents.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "data/crawl/ascii.h"
#include "data/crawl/charset.h"
#include "data/crawl/text_extract.h"
#include "kernels/core/error.h"

namespace stoa {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kDocumentBytes = 4000;     // a .txt is cut at the next blank line,
constexpr std::size_t kMaxDocumentBytes = 8000;  // or else at the next line end
constexpr std::size_t kMaxLineBytes = std::size_t{1} << 20;   // of .txt
constexpr std::size_t kMaxFileBytes = std::size_t{64} << 20;  // .html, and a line of .jsonl
constexpr std::size_t kMaxNotes = 200;

enum class Kind { none, warc, text, json_lines, html };

struct Suffix {
    std::string_view name;
    Kind kind;
};
constexpr std::array<Suffix, 7> kSuffixes = {{{".warc", Kind::warc},
                                              {".wet", Kind::warc},
                                              {".txt", Kind::text},
                                              {".jsonl", Kind::json_lines},
                                              {".ndjson", Kind::json_lines},
                                              {".html", Kind::html},
                                              {".htm", Kind::html}}};

Kind kind_of(const std::string& path) {
    std::string name = to_lower(fs::path(path).filename().string());
    if (name.ends_with(".gz")) name.resize(name.size() - 3);
    for (const Suffix& suffix : kSuffixes)
        if (name.ends_with(suffix.name)) return suffix.kind;
    return Kind::none;
}

void note(BuildCorpusReport& report, const std::string& path, const std::string& text) {
    if (report.notes.size() < kMaxNotes) report.notes.push_back(fmt::format("{}: {}", path, text));
}

void note_damage(BuildCorpusReport& report, const std::string& path, const std::string& text) {
    ++report.damaged;
    note(report, path, text);
}

/// A file, gzip or not, read line by line.
class LineFile {
public:
    explicit LineFile(const std::string& path) : file_(gzopen(path.c_str(), "rb"), &gzclose) {
        if (file_) gzbuffer(file_.get(), 256 << 10);
    }
    /// The next line with its end, at most `limit` bytes of it. False at the end.
    bool next(std::string& line, std::size_t limit) {
        line.clear();
        while (line.size() < limit) {
            if (at_ == block_.size() && !refill()) break;
            const std::size_t room = std::min(block_.size() - at_, limit - line.size());
            const std::size_t end = block_.find('\n', at_);
            const std::size_t take = end == block_.npos ? room : std::min(room, end + 1 - at_);
            line.append(block_, at_, take);
            at_ += take;
            if (line.back() == '\n') break;
        }
        return !line.empty();
    }
    /// What stopped the reading before the end of the file, "" for nothing.
    std::string problem() const {
        if (!file_) return "cannot be opened";
        int code = Z_OK;
        const char* text = gzerror(file_.get(), &code);
        return code == Z_OK || code == Z_STREAM_END ? ""
                                                    : fmt::format("cannot be read on: {}", text);
    }

private:
    bool refill() {
        if (!file_) return false;
        block_.resize(256 << 10);
        at_ = 0;
        const int got = gzread(file_.get(), block_.data(), static_cast<unsigned>(block_.size()));
        block_.resize(got > 0 ? std::size_t(got) : 0);
        return got > 0;
    }

    std::unique_ptr<gzFile_s, int (*)(gzFile)> file_;
    std::string block_;
    std::size_t at_ = 0;
};

using OnDocument = std::function<void(std::string&&)>;

void read_crawl(const std::string& path, BuildCorpusReport& report, const OnDocument& on_document) {
    try {
        const WarcCounts counts = read_warc(path, [&](const WarcRecord& record) {
            ++report.records;
            std::string text = record_text(record);
            if (!text.empty()) on_document(std::move(text));
        });
        report.damaged += counts.damaged;
        for (const std::string& text : counts.notes)
            if (report.notes.size() < kMaxNotes) report.notes.push_back(text);
    } catch (const DataError& e) {
        ++report.damaged;
        if (report.notes.size() < kMaxNotes) report.notes.emplace_back(e.what());
    }
}

/// Takes the incomplete UTF-8 sequence off the end of `s`.
std::string take_cut_character(std::string& s) {
    for (std::size_t n = 1; n <= 3 && n <= s.size(); ++n) {
        const std::string tail = s.substr(s.size() - n);
        if (utf8_sequence(tail) != -static_cast<int>(n) ||
            static_cast<unsigned char>(tail[0]) < 0xc2)
            continue;
        s.resize(s.size() - n);
        return tail;
    }
    return "";
}

void read_text(const std::string& path, BuildCorpusReport& report, const OnDocument& on_document) {
    LineFile file(path);
    std::string part, line;
    const auto emit = [&] {
        if (trim(part).empty()) return part.clear();
        ++report.records;
        std::string text = page_text(part, "text/plain");
        part.clear();
        if (text.empty())
            note_damage(report, path, "a part that is neither UTF-8 nor windows-1252 text");
        else
            on_document(std::move(text));
    };
    std::string cut;  // the start of a character that a line limit fell into
    while (file.next(line, kMaxLineBytes)) {
        part += cut + line;
        cut = line.back() == '\n' ? "" : take_cut_character(part);
        const bool blank = trim(line).empty();
        if ((part.size() >= kDocumentBytes && blank) || part.size() >= kMaxDocumentBytes) emit();
    }
    part += cut;
    emit();
    if (!file.problem().empty()) note_damage(report, path, file.problem());
}

void read_json_lines(const std::string& path, BuildCorpusReport& report,
                     const OnDocument& on_document) {
    LineFile file(path);
    std::string line;
    std::int64_t number = 0, refused = 0, first = 0;
    while (file.next(line, kMaxFileBytes)) {
        ++number;
        if (trim(line).empty()) continue;
        ++report.records;
        std::int64_t bad = 0;
        const auto json = nlohmann::json::parse(to_valid_utf8(line, bad), nullptr, false);
        if (json.is_object() && json.contains("text") && json["text"].is_string()) {
            std::string text = page_text(json["text"].get_ref<const std::string&>(), "text/plain");
            if (!text.empty()) on_document(std::move(text));
        } else if (refused++ == 0) {
            first = number;
        }
    }
    report.damaged += refused;
    if (refused > 0)
        note(report, path,
             fmt::format("{} lines are no JSON object with a \"text\" string, the first is line {}",
                         refused, first));
    if (!file.problem().empty()) note_damage(report, path, file.problem());
}

void read_page(const std::string& path, BuildCorpusReport& report, const OnDocument& on_document) {
    LineFile file(path);
    std::string page, line;
    while (page.size() < kMaxFileBytes && file.next(line, kMaxFileBytes - page.size()))
        page += line;
    ++report.records;
    if (!file.problem().empty()) note_damage(report, path, file.problem());
    std::string text = page_text(page, "text/html");
    if (!text.empty()) on_document(std::move(text));
}

/// Regular files below `dir` with a readable suffix, sorted by path.
std::vector<std::string> walk(const std::string& dir) {
    std::vector<std::string> files;
    std::error_code error;
    fs::recursive_directory_iterator it(dir, error), end;
    for (; !error && it != end; it.increment(error)) {
        std::error_code ignored;
        if (it->is_regular_file(ignored) && kind_of(it->path().string()) != Kind::none)
            files.push_back(it->path().string());
    }
    if (error)
        throw DataError({.what = "cannot read the input directory",
                         .where = dir,
                         .expected = "a directory whose folders may all be listed",
                         .actual = error.message(),
                         .hint = "check its permissions, or name the files one by one"});
    std::sort(files.begin(), files.end());
    return files;
}

}  // namespace

std::string readable_suffixes() {
    std::string all;
    for (const Suffix& suffix : kSuffixes)
        all += fmt::format("{}{}", all.empty() ? "" : " ", suffix.name);
    return all + ", each also with .gz";
}

std::vector<std::string> list_input_files(const std::vector<std::string>& inputs) {
    std::vector<std::string> files;
    for (const std::string& input : inputs) {
        std::error_code error;
        const fs::file_status status = fs::status(input, error);
        if (!fs::exists(status))
            throw DataError({.what = "the input does not exist",
                             .where = input,
                             .expected = "a file or a directory",
                             .actual = error.message(),
                             .hint = "check the path"});
        const bool is_directory = fs::is_directory(status);
        if (is_directory) {
            const auto below = walk(input);
            files.insert(files.end(), below.begin(), below.end());
        } else if (fs::is_regular_file(status) && kind_of(input) != Kind::none) {
            files.push_back(input);
        }
        const std::string name = to_lower(fs::path(input).filename().string());
        if (!is_directory && (name.ends_with(".arc") || name.ends_with(".arc.gz")))
            throw DataError({.what = "ARC files (the format before WARC) are not supported",
                             .where = input,
                             .expected = "a WARC or WET file",
                             .actual = name,
                             .hint = "convert it first, for example with `warcio recompress`"});
        if (files.empty() || (!is_directory && files.back() != input))
            throw DataError({.what = is_directory ? "no readable file in the input directory"
                                                  : "an input of a kind that is not read",
                             .where = input,
                             .expected = "files ending in " + readable_suffixes(),
                             .actual = is_directory ? "none" : fs::path(input).filename().string(),
                             .hint = "rename the file if only its suffix is unusual"});
    }
    return files;
}

void read_documents(const std::string& path, BuildCorpusReport& report,
                    const OnDocument& on_document) {
    switch (kind_of(path)) {
        case Kind::warc:
            return read_crawl(path, report, on_document);
        case Kind::text:
            return read_text(path, report, on_document);
        case Kind::json_lines:
            return read_json_lines(path, report, on_document);
        case Kind::html:
            return read_page(path, report, on_document);
        case Kind::none:
            note_damage(report, path, "not a kind of file that is read");
    }
}

}  // namespace stoa
