#pragma once
// A configuration as written: the tree of keys and values, each with its place, and the list of
// problems found so far. Nothing here knows what the keys mean.
#include <string>
#include <vector>

namespace stoa {

/// Where a key or value was written.
struct Place {
    enum class Kind { none, file, command_line } kind = Kind::none;
    int line = 0, column = 0;  // 1-based, file only
    int override_index = 0;    // command line only
    int length = 1;            // characters to underline
};

/// One mistake: at `place`, what is wrong, and what to do about it.
struct Problem {
    Place place;
    std::string what;
    std::string fix;
};

struct ConfigSource {
    std::string path, text;
    std::vector<std::string> overrides;
};

/// "configs/tiny.yaml:3" | "command line"
std::string describe_place(const Place& place, const ConfigSource& source);
/// Each problem as "file:line:column: error: what", the line, a caret and the fix; then the count.
std::string render_problems(std::vector<Problem> problems, const ConfigSource& source);

struct ConfigNode {
    enum class Kind { null, scalar, list, map } kind = Kind::null;
    Place place;
    std::string text;  // scalar
    struct Entry;
    std::vector<Entry> entries;     // map, in file order
    std::vector<ConfigNode> items;  // list
    bool damaged = false;           // a problem inside has been reported
    const char* kind_name() const;  // "a list"
    Entry* find(const std::string& key);
};
struct ConfigNode::Entry {
    std::string key;
    Place place;
    ConfigNode value;
};

/// Parses YAML text; appends syntax errors, duplicate keys, tabs, several documents to `problems`.
/// The root is a map, empty when the text could not be parsed.
ConfigNode parse_config_text(const ConfigSource& source, std::vector<Problem>& problems);

/// Puts "a.b.0.c=value" into the tree; missing maps on the way are made.
void apply_override(ConfigNode& root, const ConfigSource& source, int index,
                    std::vector<Problem>& problems);

/// The index of the first byte that is no UTF-8 or a control character that text does not hold
/// (everything below 32 but tab, line feed and carriage return); npos when there is none.
std::size_t first_non_text_byte(const std::string& text);

}  // namespace stoa
