#include "configs/config_tree.h"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <sstream>

namespace stoa {
namespace {

constexpr int kMaxDepth = 16;       // the schema needs 4; aliases may nest without end
constexpr int kMaxNodes = 100'000;  // ... or multiply

struct Conversion {
    std::vector<Problem>& problems;
    int override_index = -1;  // >= 0: the text is the value of an override
    int nodes = 0;
    bool too_large = false;
};

Place place_of(const YAML::Mark& mark, int length, const Conversion& c) {
    if (c.override_index >= 0) return {Place::Kind::command_line, 0, 0, c.override_index, length};
    if (mark.is_null()) return {Place::Kind::file, 1, 1, 0, 1};
    return {Place::Kind::file, mark.line + 1, mark.column + 1, 0, std::max(length, 1)};
}

ConfigNode convert(const YAML::Node& node, const Place& fallback, int depth, Conversion& c) {
    ConfigNode out;
    out.place = fallback;
    if (depth > kMaxDepth || ++c.nodes > kMaxNodes) {
        if (!c.too_large)
            c.problems.push_back(
                {fallback, "values are nested too deep or too many",
                 "a configuration is at most 16 levels deep; check anchors and aliases"});
        c.too_large = true;
        return out;
    }
    if (node.IsNull() || !node.IsDefined()) return out;
    const std::string text = node.IsScalar() ? node.Scalar() : "";
    out.place = place_of(node.Mark(), static_cast<int>(text.size()), c);
    if (node.IsScalar()) {
        out.kind = ConfigNode::Kind::scalar;
        out.text = text;
    } else if (node.IsSequence()) {
        out.kind = ConfigNode::Kind::list;
        for (const auto& item : node)
            out.items.push_back(convert(item, out.place, depth + 1, c));
    } else {
        out.kind = ConfigNode::Kind::map;
        for (const auto& pair : node) {
            if (!pair.first.IsScalar()) {
                c.problems.push_back({place_of(pair.first.Mark(), 1, c),
                                      "a key is not a plain word",
                                      "write `key: value`; quote values that contain braces"});
                continue;
            }
            const std::string key = pair.first.Scalar();
            const Place at = place_of(pair.first.Mark(), static_cast<int>(key.size()), c);
            // yaml-cpp keeps both entries of a repeated key and answers with the first.
            if (const auto* earlier = out.find(key)) {
                out.damaged = true;
                c.problems.push_back({at, fmt::format("duplicate key '{}'", key),
                                      fmt::format("already given on line {}; keep one of them",
                                                  earlier->place.line)});
                continue;
            }
            ConfigNode value = convert(pair.second, at, depth + 1, c);
            out.entries.push_back({key, at, std::move(value)});
        }
    }
    return out;
}

std::string line_of(const std::string& text, int line) {
    std::istringstream in(text);
    std::string s;
    for (int i = 0; i < line; ++i)
        if (!std::getline(in, s)) return "";
    while (!s.empty() && (s.back() == '\r' || s.back() == '\n'))
        s.pop_back();
    return s;
}

/// The first line that is indented with a tab, 0 when none is. YAML forbids them and parsers answer
/// with messages about something else.
int tab_indented_line(const std::string& text) {
    std::istringstream in(text);
    std::string s;
    for (int line = 1; std::getline(in, s); ++line) {
        const std::size_t body = s.find_first_not_of(" \t\r");
        if (body == std::string::npos || s[body] == '#') continue;
        if (s.substr(0, body).find('\t') != std::string::npos) return line;
    }
    return 0;
}

/// yaml-cpp's message without its own position, in the words of this file.
std::string syntax_message(std::string msg) {
    if (msg.empty()) msg = "cannot be read";
    return "not valid YAML: " + msg;
}

/// Notes where the last document began.
struct DocumentStart : YAML::EventHandler {
    YAML::Mark mark;
    void OnDocumentStart(const YAML::Mark& m) override { mark = m; }
    void OnDocumentEnd() override {}
    void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
    void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
    void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t,
                  const std::string&) override {}
    void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                         YAML::EmitterStyle::value) override {}
    void OnSequenceEnd() override {}
    void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                    YAML::EmitterStyle::value) override {}
    void OnMapEnd() override {}
};

/// The only document of the text. Anything behind it is an error at its place. (YAML::LoadAll would
/// do, but never ends for text such as ",", of which the parser consumes nothing.) errors:
/// YAML::ParserException
YAML::Node load_document(const std::string& text) {
    const YAML::Node node = YAML::Load(text);
    std::istringstream in(text);
    YAML::Parser parser(in);
    DocumentStart start;
    if (!parser.HandleNextDocument(start) || !parser.HandleNextDocument(start)) return node;
    const bool markers = ("\n" + text).find("\n---") != std::string::npos ||
                         ("\n" + text).find("\n...") != std::string::npos;
    throw YAML::ParserException(start.mark, markers ? "a second document begins here; give one"
                                                    : "this does not belong here");
}

bool check_text(const ConfigSource& source, std::vector<Problem>& problems) {
    constexpr std::size_t kMaxBytes = 1 << 20;
    if (source.text.size() > kMaxBytes) {
        problems.push_back(
            {{},
             fmt::format("{} bytes is too large for a configuration", source.text.size()),
             "give the YAML file of a run (configs/tiny.yaml)"});
        return false;
    }
    const std::size_t bad = first_non_text_byte(source.text);
    if (bad != std::string::npos) {
        const std::string before = source.text.substr(0, bad);
        const auto line = 1 + static_cast<int>(std::count(before.begin(), before.end(), '\n'));
        const auto column = static_cast<int>(bad - (before.rfind('\n') + 1)) + 1;
        problems.push_back({{Place::Kind::file, line, column, 0, 1},
                            fmt::format("not a text file: byte 0x{:02x}",
                                        static_cast<unsigned char>(source.text[bad])),
                            "a configuration is YAML in UTF-8"});
        return false;
    }
    if (const int line = tab_indented_line(source.text)) {
        problems.push_back({{Place::Kind::file, line, 1, 0, 1},
                            "indented with a tab",
                            "YAML allows only spaces; use two per level"});
        return false;
    }
    return true;
}

std::size_t utf8_length(unsigned char lead) {
    return lead < 0x80                   ? 1
           : lead >= 0xc2 && lead < 0xe0 ? 2
           : lead >= 0xe0 && lead < 0xf0 ? 3
           : lead >= 0xf0 && lead < 0xf5 ? 4
                                         : 0;
}

/// The line with its number, a caret line under the place, and the fix.
std::string render_excerpt(const Problem& p, const ConfigSource& source) {
    std::string number, line;
    int column = 1;
    if (p.place.kind == Place::Kind::file) {
        number = std::to_string(p.place.line);
        line = line_of(source.text, p.place.line);
        column = p.place.column;
    } else if (p.place.kind == Place::Kind::command_line) {
        line = source.overrides[static_cast<std::size_t>(p.place.override_index)];
    }
    constexpr std::size_t kMaxLine = 100;
    const bool shown =
        !line.empty() && line.size() <= kMaxLine && first_non_text_byte(line) == std::string::npos;
    if (!shown) return p.fix.empty() ? "" : "      = " + p.fix + "\n";
    std::replace(line.begin(), line.end(), '\t', ' ');
    // Columns count characters, so that the caret stands under the place in UTF-8 text, too.
    std::size_t characters = 0;
    for (const char c : line)
        characters += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
    const auto begin = std::min(static_cast<std::size_t>(column - 1), characters);
    const auto length = std::clamp<std::size_t>(static_cast<std::size_t>(p.place.length), 1,
                                                std::max<std::size_t>(characters - begin, 1));
    return fmt::format("{:>5} | {}\n      | {}{} {}\n", number, line, std::string(begin, ' '),
                       std::string(length, '^'), p.fix);
}

}  // namespace

const char* ConfigNode::kind_name() const {
    switch (kind) {
        case Kind::null:
            return "nothing";
        case Kind::scalar:
            return "a single value";
        case Kind::list:
            return "a list";
        case Kind::map:
            return "a map";
    }
    return "?";
}

ConfigNode::Entry* ConfigNode::find(const std::string& key) {
    for (Entry& e : entries)
        if (e.key == key) return &e;
    return nullptr;
}

std::size_t first_non_text_byte(const std::string& text) {
    for (std::size_t i = 0; i < text.size();) {
        const auto lead = static_cast<unsigned char>(text[i]);
        const std::size_t n = utf8_length(lead);
        const bool control =
            (lead < 0x20 && lead != '\t' && lead != '\n' && lead != '\r') || lead == 0x7f;
        if (control || n == 0 || i + n > text.size()) return i;
        for (std::size_t k = 1; k < n; ++k)
            if ((static_cast<unsigned char>(text[i + k]) & 0xc0) != 0x80) return i;
        // The second byte also rules out overlong forms and surrogates.
        const auto second = n > 1 ? static_cast<unsigned char>(text[i + 1]) : 0;
        if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f) ||
            (lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second > 0x8f))
            return i;
        i += n;
    }
    return std::string::npos;
}

std::string describe_place(const Place& place, const ConfigSource& source) {
    if (place.kind == Place::Kind::command_line) return "command line";
    if (place.kind == Place::Kind::file) return fmt::format("{}:{}", source.path, place.line);
    return source.path;
}

std::string render_problems(std::vector<Problem> problems, const ConfigSource& source) {
    std::stable_sort(problems.begin(), problems.end(), [](const Problem& a, const Problem& b) {
        const auto key =
            [](const Problem& p) {  // the file downwards, then the command line, then the rest
                const int group = p.place.kind == Place::Kind::file           ? 0
                                  : p.place.kind == Place::Kind::command_line ? 1
                                                                              : 2;
                return std::make_tuple(group, p.place.line, p.place.column, p.place.override_index);
            };
        return key(a) < key(b);
    });
    std::string text;
    for (const Problem& p : problems) {
        text += describe_place(p.place, source);
        if (p.place.kind == Place::Kind::file) text += fmt::format(":{}", p.place.column);
        text += fmt::format(": error: {}\n{}", p.what, render_excerpt(p, source));
    }
    text += fmt::format("{} error{}, nothing was started", problems.size(),
                        problems.size() == 1 ? "" : "s");
    return text;
}

ConfigNode parse_config_text(const ConfigSource& source, std::vector<Problem>& problems) {
    ConfigNode empty;
    empty.kind = ConfigNode::Kind::map;
    if (!check_text(source, problems)) return empty;
    YAML::Node document;
    Conversion c{problems};
    try {
        document = load_document(source.text);
    } catch (const YAML::Exception& e) {
        problems.push_back(
            {place_of(e.mark, 1, c), syntax_message(e.msg),
             "often a missing colon, quote or bracket on this line or the one before"});
        return empty;
    }
    if (document.IsNull()) {
        problems.push_back({{}, "the file is empty", "start from a copy of configs/tiny.yaml"});
        return empty;
    }
    ConfigNode root = convert(document, {Place::Kind::file, 1, 1, 0, 1}, 0, c);
    if (root.kind != ConfigNode::Kind::map) {
        problems.push_back(
            {root.place, fmt::format("the file holds {}, not sections with keys", root.kind_name()),
             "start from a copy of configs/tiny.yaml"});
        return empty;
    }
    if (c.too_large) return empty;
    return root;
}

namespace {

/// The value of an override: YAML where it begins like a list, a map or a quoted string, else the
/// text.
bool parse_override_value(const std::string& text, const Place& place, int index, ConfigNode& out,
                          std::vector<Problem>& problems) {
    if (text.find_first_of("[{\"'") != 0) {
        out.kind = text.empty() ? ConfigNode::Kind::null : ConfigNode::Kind::scalar;
        out.text = text;
        out.place = place;
        return true;
    }
    try {
        Conversion c{problems, index};
        out = convert(load_document(text), place, 0, c);
        return !c.too_large;
    } catch (const YAML::Exception& e) {
        problems.push_back(
            {place, syntax_message(e.msg), "quote the whole argument for the shell"});
        return false;
    }
}

bool is_index(const std::string& part) {
    return !part.empty() && part.size() <= 6 &&
           std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

void apply_override(ConfigNode& root, const ConfigSource& source, int index,
                    std::vector<Problem>& problems) {
    const std::string& text = source.overrides[static_cast<std::size_t>(index)];
    Place place{Place::Kind::command_line, 0, 0, index, static_cast<int>(text.size())};
    if (first_non_text_byte(text) != std::string::npos) {
        problems.push_back({place, "an override is not text in UTF-8", "write key=value"});
        return;
    }
    const std::size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0) {
        problems.push_back({place, fmt::format("'{}' is not an override", text),
                            "write key=value, for example optimizer.lr=3e-4"});
        return;
    }
    const std::string path = text.substr(0, equals);
    place.length = static_cast<int>(path.size());
    ConfigNode value;
    if (!parse_override_value(text.substr(equals + 1), place, index, value, problems)) return;
    ConfigNode* node = &root;
    for (std::size_t begin = 0; begin <= path.size();) {
        const std::size_t end = std::min(path.find('.', begin), path.size());
        const std::string part = path.substr(begin, end - begin);
        begin = end + 1;
        if (node->kind == ConfigNode::Kind::list) {
            if (!is_index(part) || std::stoul(part) >= node->items.size()) {
                problems.push_back({place, fmt::format("'{}' is no entry of this list", part),
                                    node->items.empty() ? "the list is empty"
                                                        : fmt::format("entries are 0 to {}",
                                                                      node->items.size() - 1)});
                return;
            }
            node = &node->items[std::stoul(part)];
            continue;
        }
        if (node->kind != ConfigNode::Kind::map) *node = {ConfigNode::Kind::map, place, "", {}, {}};
        if (!node->find(part)) node->entries.push_back({part, place, {}});
        node->find(part)->place = place;
        node = &node->find(part)->value;
    }
    *node = std::move(value);
}

}  // namespace stoa
