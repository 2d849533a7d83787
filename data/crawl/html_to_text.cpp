// HTML to text in one pass over the bytes, without a tree: no depth of nesting and no missing end
// tag costs more than its own length.
#include <array>

#include "data/crawl/ascii.h"
#include "data/crawl/charset.h"
#include "data/crawl/html_entities.h"
#include "data/crawl/text_extract.h"

namespace stoa {
namespace {

template <std::size_t N>
bool is_one_of(std::string_view name, const std::array<std::string_view, N>& names) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

constexpr std::array<std::string_view, 43> kBlock = {
    "address", "article", "aside",   "blockquote", "body",  "br",       "center",     "dd",
    "details", "dir",     "div",     "dl",         "dt",    "fieldset", "figcaption", "figure",
    "footer",  "form",    "h1",      "h2",         "h3",    "h4",       "h5",         "h6",
    "header",  "hr",      "html",    "li",         "main",  "menu",     "nav",        "ol",
    "p",       "pre",     "section", "summary",    "table", "tbody",    "tfoot",      "thead",
    "title",   "tr",      "ul"};
// Dropped with everything up to the matching end tag.
constexpr std::array<std::string_view, 13> kDropped = {
    "script",  "style",  "noscript", "template", "svg",    "iframe", "noframes",
    "noembed", "select", "textarea", "object",   "canvas", "button"};
// What a <head> may hold; any other tag ends a head that was not closed.
constexpr std::array<std::string_view, 9> kHeadContent = {
    "title", "meta", "link", "script", "style", "base", "noscript", "template", "object"};

/// Collects text: folds white space, breaks lines, leaves out a line equal to the one before.
class TextLines {
public:
    void text(std::string_view s, bool pre) {
        for (const char c : s) {
            if (c == '\r') continue;
            if (pre && c == '\n') {
                end_line(true);
            } else if (pre ? c == '\t' || c == ' ' : is_space(c)) {
                if (pre || !line_.empty()) line_ += pre ? c : line_.back() == ' ' ? '\0' : ' ';
                if (!line_.empty() && line_.back() == '\0') line_.pop_back();
            } else if (static_cast<unsigned char>(c) >= 0x20 && c != 0x7f) {
                line_ += c;
            }
        }
    }
    void end_line(bool pre) {
        while (!line_.empty() && line_.back() == ' ')
            line_.pop_back();
        if (line_.empty()) {
            // Only <pre> keeps a blank line, and one of them at most.
            if (pre && out_.size() > 1 && out_.substr(out_.size() - 2) != "\n\n") out_ += '\n';
            return;
        }
        if (pre || line_ != last_) out_ += line_ + '\n';
        last_ = std::move(line_);
        line_.clear();
    }
    std::string take() {
        end_line(false);
        while (!out_.empty() && out_.back() == '\n')
            out_.pop_back();
        return std::move(out_);
    }

private:
    std::string out_, line_, last_;
};

/// The offset behind the tag that starts at `at`, minding quoted attribute values; npos when the
/// page ends first.
std::size_t tag_end(std::string_view html, std::size_t at) {
    char quote = 0;
    bool value = false;  // a quote opens a value only right after '='
    for (std::size_t i = at; i < html.size(); ++i) {
        const char c = html[i];
        if (quote) {
            if (c == quote) quote = 0;
        } else if (c == '>') {
            return i + 1;
        } else if (value && (c == '"' || c == '\'')) {
            quote = c;
        }
        if (!quote && !is_space(c)) value = c == '=';
    }
    return html.find('>', at) == html.npos ? html.npos
                                           : html.find('>', at) + 1;  // a quote left open
}

/// The name of the tag at `at` ("<div ..." or "</div ..."), lower case; "" when it is not a tag.
std::string tag_name(std::string_view html, std::size_t at) {
    std::size_t i = at + 1;
    if (i < html.size() && html[i] == '/') ++i;
    const std::size_t begin = i;
    while (i < html.size() && i - begin < 32 &&
           (is_alnum(html[i]) || html[i] == '-' || html[i] == ':'))
        ++i;
    if (i == begin || !is_alpha(html[begin])) return "";
    return to_lower(html.substr(begin, i - begin));
}

/// The offset of the end tag that closes `name` opened before `from`; npos when there is none.
/// Elements other than script-like raw text may nest.
std::size_t find_close(std::string_view html, std::size_t from, std::string_view name) {
    const bool raw = name == "script" || name == "style" || name == "textarea" ||
                     name == "iframe" || name == "noframes" || name == "noembed" || name == "title";
    int depth = 1;
    for (std::size_t at = html.find('<', from); at != html.npos; at = html.find('<', at + 1)) {
        const bool close = at + 1 < html.size() && html[at + 1] == '/';
        if ((!close && raw) || !iequals(html.substr(at + 1 + close, name.size()), name)) continue;
        const std::size_t behind = at + 1 + close + name.size();
        if (behind < html.size() && is_alnum(html[behind])) continue;
        depth += close ? -1 : 1;
        if (depth == 0) return at;
    }
    return html.npos;
}

struct Parser {
    std::string_view html;
    std::size_t at = 0;
    TextLines lines;
    int pre = 0;
    bool in_head = false;
    std::vector<std::string> unclosed;  // names known to have no end tag further on

    void text(std::size_t end);
    void drop(const std::string& name);
    void tag();
};

/// Text up to `end`, with its character references decoded.
void Parser::text(std::size_t end) {
    while (at < end) {
        const std::size_t amp = std::min(html.find('&', at), end);
        if (!in_head) lines.text(html.substr(at, amp - at), pre > 0);
        at = amp;
        if (at == end) break;
        std::string decoded;
        std::size_t used = decode_entity(html.substr(at, end - at), decoded);
        if (used == 0) {
            used = 1;
            decoded = "&";
        }
        if (decoded == "\xc2\xa0") decoded = " ";                                 // nbsp
        if (decoded == "\xc2\xad" || decoded == "\xe2\x80\x8b") decoded.clear();  // shy, zwsp
        if (!in_head) lines.text(decoded, pre > 0);
        at += used;
    }
}

/// Passes over the content of an element. One without an end tag: raw text runs to the end of the
/// page as in a browser; of the others only the tag goes.
void Parser::drop(const std::string& name) {
    if (std::find(unclosed.begin(), unclosed.end(), name) != unclosed.end()) return;
    const std::size_t close = find_close(html, at, name);
    if (close == html.npos) {
        unclosed.push_back(name);
        if (name == "script" || name == "style") at = html.size();
        return;
    }
    at = std::min(html.size(), tag_end(html, close));
}

/// The markup at `at`, where a '<' stands.
void Parser::tag() {
    if (html.substr(at, 4) == "<!--") {
        const std::size_t end = html.find("-->", at + 4);
        at = end == html.npos ? html.size() : end + 3;
        return;
    }
    const bool close = at + 1 < html.size() && html[at + 1] == '/';
    const bool other = at + 1 < html.size() && (html[at + 1] == '!' || html[at + 1] == '?');
    const std::string name = tag_name(html, at);
    if (name.empty() && !other) {  // "a < b"
        if (!in_head) lines.text("<", pre > 0);
        ++at;
        return;
    }
    at = std::min(html.size(), tag_end(html, at));
    if (other) return;
    if (name == "head") in_head = !close;
    if (in_head && name != "head" && !is_one_of(name, kHeadContent)) in_head = false;
    if (!close && is_one_of(name, kDropped)) return drop(name);
    if (name == "pre") {
        lines.end_line(false);
        pre = close ? std::max(0, pre - 1) : pre + 1;
    } else if (name == "title" && !close) {
        const bool head = in_head;
        in_head = false;
        const std::size_t end = find_close(html, at, "title");
        if (end != html.npos) text(end);
        in_head = head;
        lines.end_line(false);
    } else if (is_one_of(name, kBlock)) {
        lines.end_line(pre > 0);
    } else if (name == "td" || name == "th") {
        lines.text(" ", false);
    }
}

}  // namespace

std::string html_to_text(std::string_view html) {
    Parser p;
    p.html = html;
    while (p.at < html.size()) {
        p.text(std::min(html.find('<', p.at), html.size()));
        if (p.at < html.size()) p.tag();
    }
    return p.lines.take();
}

}  // namespace stoa
