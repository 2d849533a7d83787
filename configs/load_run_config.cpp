#include "configs/load_run_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "configs/check_config.h"
#include "configs/config_schema.h"

namespace stoa {
namespace {

namespace fs = std::filesystem;

/// One pass over the tree: `schema` is the prefix in the table ("stages[]."), `path` the same with
/// the real index or name ("stages.0.").
struct Walk {
    RunConfig config;
    KeyPlaces places;
    std::vector<Problem> problems;

    void fill(ConfigNode& map, const std::string& schema, const std::string& path,
              ConfigTarget target);
    void fill_key(ConfigNode::Entry& entry, const std::string& schema, const std::string& path,
                  ConfigTarget target, const ConfigNode& map);
    void fill_stages(ConfigNode& list);
    void fill_source(ConfigNode::Entry& entry);
    void refuse_unknown(const ConfigNode::Entry& entry, const std::string& schema,
                        const std::string& path, const ConfigNode& map);
    void require_keys(const std::string& schema, const std::string& path, const Place& place);
};

bool any_row_starts_with(const std::string& prefix) {
    return std::any_of(key_rows().begin(), key_rows().end(), [&](const KeyRow& row) {
        return std::string_view(row.key).starts_with(prefix);
    });
}

/// The words that may follow a prefix: "" -> run, model, ...; "optimizer." -> lr, betas, ...
std::vector<std::string> words_after(const std::string& prefix) {
    std::vector<std::string> words;
    for (const KeyRow& row : key_rows()) {
        const std::string key = row.key;
        if (!key.starts_with(prefix)) continue;
        const std::string word =
            key.substr(prefix.size(), key.find_first_of(".[", prefix.size()) - prefix.size());
        if (std::find(words.begin(), words.end(), word) == words.end()) words.push_back(word);
    }
    return words;
}

std::string last_word(const std::string& key) { return key.substr(key.rfind('.') + 1); }

std::string lower(std::string s) {
    for (char& c : s)
        c = c == '-' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return s;
}

/// Full keys that someone who wrote `word` below `schema` may have meant, best first.
std::vector<std::string> suggest_keys(const std::string& word, const std::string& schema,
                                      const ConfigNode& map) {
    // Keys that are not there yet come first: a key is rarely misspelt next to its right spelling.
    std::vector<std::string> here = words_after(schema);
    std::stable_partition(here.begin(), here.end(), [&](const std::string& w) {
        return std::none_of(map.entries.begin(), map.entries.end(),
                            [&](const auto& e) { return e.key == w; });
    });
    std::vector<std::string> names;
    const auto add = [&](const std::string& name) {
        if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    };
    const auto alias = key_aliases().find(lower(word));
    for (const KeyRow& row : key_rows())  // the same word in another section
        if (last_word(row.key) == lower(word) &&
            std::find(here.begin(), here.end(), lower(word)) == here.end())
            add(row.key);
    if (alias != key_aliases().end()) add(alias->second);
    for (const std::string& w : suggest(word, here))
        add(schema + w);
    if (!names.empty()) return names;
    std::vector<std::string> elsewhere;
    for (const KeyRow& row : key_rows())
        elsewhere.push_back(last_word(row.key));
    for (const std::string& w : suggest(word, elsewhere))
        for (const KeyRow& row : key_rows())
            if (last_word(row.key) == w) add(row.key);
    if (!names.empty()) return names;
    for (const std::string& w : suggest(word, words_after("")))
        add(w);
    return names;
}

/// "stages[].mix" as it would be written where `path` ("stages.0.") stands for `schema`
/// ("stages[].").
std::string concrete(const std::string& key, const std::string& schema, const std::string& path) {
    return key.starts_with(schema) ? path + key.substr(schema.size()) : key;
}

void Walk::refuse_unknown(const ConfigNode::Entry& entry, const std::string& schema,
                          const std::string& path, const ConfigNode& map) {
    std::string fix;
    if (entry.key == "<<") {
        fix = "merge keys are not supported; write the keys out";
    } else {
        const auto close = suggest_keys(entry.key, schema, map);
        constexpr std::size_t kShown = 2;
        for (std::size_t i = 0; i < std::min(close.size(), kShown); ++i)
            fix += fmt::format("{}'{}'", i == 0 ? "did you mean " : " or ",
                               concrete(close[i], schema, path));
        if (!close.empty()) {
            fix += "?";
            // What was probably meant is not missing as well, and what it should have said is not
            // known.
            places.wrong.insert(concrete(close.front(), schema, path));
            if (const KeyRow* row = find_key_row(close.front())) {
                fix += fmt::format(" ({}", type_text(*row));
                if (const std::string range = range_text(*row); !range.empty()) fix += ", " + range;
                fix += ")";
            }
        } else {
            for (const std::string& w : words_after(schema))
                fix += (fix.empty() ? "keys here: " : ", ") + w;
        }
    }
    problems.push_back({entry.place, fmt::format("unknown key '{}{}'", path, entry.key), fix});
}

void Walk::require_keys(const std::string& schema, const std::string& path, const Place& place) {
    for (const KeyRow& row : key_rows()) {
        const std::string key = row.key;
        if (row.flag != KeyRow::required || !key.starts_with(schema)) continue;
        const std::string word = key.substr(schema.size());
        if (word.find_first_of(".[") != std::string::npos) continue;
        const std::string full = path + word;
        if (places.given.contains(full) || places.is_wrong(full)) continue;
        places.wrong.insert(full);
        problems.push_back({place, fmt::format("{} is missing", full),
                            fmt::format("{}: {} ({})", word, row.help, type_text(row))});
    }
}

void Walk::fill_stages(ConfigNode& list) {
    if (list.kind != ConfigNode::Kind::list) {
        problems.push_back(
            {list.place, fmt::format("stages: expected a list, got {}", list.kind_name()),
             "begin each stage with '- ': `- {name: web, tokens: 1M tokens, mix: {web: 1}}`"});
        places.wrong.insert("stages");
        return;
    }
    config.stages.resize(list.items.size());
    for (std::size_t i = 0; i < list.items.size(); ++i) {
        const std::string path = fmt::format("stages.{}.", i);
        ConfigNode& item = list.items[i];
        const bool is_map = item.kind == ConfigNode::Kind::map;
        if (!is_map)
            problems.push_back(
                {item.place, fmt::format("stages.{}: expected keys, got {}", i, item.kind_name()),
                 "a stage has name, tokens, seq_len and mix"});
        if (is_map) fill(item, "stages[].", path, {&config, &config.stages[i]});
        if (is_map) require_keys("stages[].", path, item.place);
        for (const char* key : {"name", "tokens", "mix"})
            if (!is_map) places.wrong.insert(path + key);
    }
}

void Walk::fill_source(ConfigNode::Entry& entry) {
    const std::string path = "data.sources." + entry.key;
    if (!is_plain_name(entry.key, false)) {
        problems.push_back(
            {entry.place,
             fmt::format("the source name '{}' holds more than letters, digits, '-', '_'",
                         entry.key),
             "rename the source"});
        places.wrong.insert("data.sources");
        return;
    }
    config.data.sources.push_back({});
    SourceConfig& source = config.data.sources.back();
    source.name = entry.key;
    places.given[path] = entry.place;
    if (entry.value.kind != ConfigNode::Kind::map) {
        problems.push_back({entry.value.place,
                            fmt::format("{}: expected keys, got {}", path, entry.value.kind_name()),
                            "a source has kind, and path or families"});
        places.wrong.insert(path + ".kind");
        return;
    }
    fill(entry.value, "data.sources.<name>.", path + ".", {&config, nullptr, &source});
    require_keys("data.sources.<name>.", path + ".", entry.place);
}

void Walk::fill_key(ConfigNode::Entry& entry, const std::string& schema, const std::string& path,
                    ConfigTarget target, const ConfigNode& map) {
    const std::string key = schema + entry.key, full = path + entry.key;
    if (const KeyRow* row = find_key_row(key)) {
        places.given[full] = entry.place;
        if (!read_field(*row, full, entry.value, target, problems) || entry.value.damaged)
            places.wrong.insert(full);
        for (const auto& e : entry.value.entries)
            places.given[full + "." + e.key] = e.place;
        return;
    }
    if (schema == "data.sources.") return fill_source(entry);
    const bool is_stages = key == "stages",
               is_section = !is_stages && any_row_starts_with(key + ".");
    if (!is_stages && !is_section) return refuse_unknown(entry, schema, path, map);
    places.given[full] = entry.place;
    if (is_stages && entry.value.kind != ConfigNode::Kind::null) return fill_stages(entry.value);
    if (entry.value.kind == ConfigNode::Kind::null)
        return;  // all keys of the section are commented out
    if (entry.value.kind != ConfigNode::Kind::map) {
        problems.push_back(
            {entry.value.place,
             fmt::format("{}: expected a section with keys, got {}", full, entry.value.kind_name()),
             fmt::format("keys of {}: {}", full, fmt::join(words_after(key + "."), ", "))});
        places.wrong.insert(full);
        return;
    }
    fill(entry.value, key + ".", full + ".", target);
}

void Walk::fill(ConfigNode& map, const std::string& schema, const std::string& path,
                ConfigTarget target) {
    for (ConfigNode::Entry& entry : map.entries)
        fill_key(entry, schema, path, target, map);
}

/// Every key below `schema` (no deeper) as "  key: value  # origin".
void write_section(std::string& out, const std::string& schema, const std::string& path,
                   const std::string& indent, const std::string& first_indent, ConfigTarget target,
                   const std::map<std::string, std::string>& origins) {
    bool first = true;
    for (const KeyRow& row : key_rows()) {
        const std::string key = row.key;
        if (!key.starts_with(schema) || key.find_first_of(".[", schema.size()) != std::string::npos)
            continue;
        const std::string word = key.substr(schema.size()), value = print_field(row, target);
        if (value == "\"\"" || value == "[]") continue;  // not for this kind of source
        const auto origin = origins.find(path + word);
        const bool given = origin != origins.end();
        if (target.source && !given && word != "kind" &&
            (target.source->kind == SourceKind::shards) != (word == "path"))
            continue;
        out += fmt::format("{}{}: {}  # {}\n", first ? first_indent : indent, word, value,
                           given ? origin->second : "default");
        first = false;
    }
}

std::string read_file(const std::string& path) {
    std::error_code ec;
    if (fs::is_directory(path, ec))
        throw ConfigError({.what = "is a directory, not a configuration",
                           .where = path,
                           .hint = "give the YAML file: " + path + "/tiny.yaml"});
    std::ifstream in(path, std::ios::binary);
    if (!in) {
        std::vector<std::string> names;
        const fs::path dir =
            fs::path(path).has_parent_path() ? fs::path(path).parent_path() : fs::path(".");
        for (fs::directory_iterator it(dir, ec), end; !ec && it != end; it.increment(ec))
            names.push_back(it->path().filename().string());
        std::sort(names.begin(), names.end());
        const auto close = suggest(fs::path(path).filename().string(), names);
        const bool exists = fs::exists(path, ec);
        throw ConfigError(
            {.what = exists ? "cannot be read" : "there is no such file",
             .where = path,
             .hint = exists ? "check its permissions"
                     : close.empty()
                         ? "start from a copy of configs/tiny.yaml"
                         : "did you mean " +
                               (fs::path(path).parent_path() / close.front()).string() + "?"});
    }
    std::ostringstream text;
    text << in.rdbuf();
    return text.str();
}

}  // namespace

std::string write_config_yaml(const RunConfig& config,
                              const std::map<std::string, std::string>& origins) {
    RunConfig c = config;  // fields are reached through pointers to non-const
    std::string out;
    for (const std::string& section : words_after("")) {
        if (section == "stages") {
            out += c.stages.empty() ? "" : "stages:\n";
            for (std::size_t i = 0; i < c.stages.size(); ++i)
                write_section(out, "stages[].", fmt::format("stages.{}.", i), "    ", "  - ",
                              {&c, &c.stages[i], nullptr}, origins);
            continue;
        }
        out += section + ":\n";
        write_section(out, section + ".", section + ".", "  ", "  ", {&c, nullptr, nullptr},
                      origins);
        if (section != "data" || c.data.sources.empty()) continue;
        out += "  sources:\n";
        for (SourceConfig& source : c.data.sources) {
            out += fmt::format("    {}:\n", source.name);
            write_section(out, "data.sources.<name>.", fmt::format("data.sources.{}.", source.name),
                          "      ", "      ", {&c, nullptr, &source}, origins);
        }
    }
    return out;
}

LoadedConfig load_run_config_text(const std::string& text, const std::string& path,
                                  const std::vector<std::string>& overrides) {
    const ConfigSource source{path, text, overrides};
    Walk walk;
    ConfigNode root = parse_config_text(source, walk.problems);
    const bool readable = walk.problems.empty() || !root.entries.empty();
    for (std::size_t i = 0; i < overrides.size(); ++i)
        apply_override(root, source, static_cast<int>(i), walk.problems);
    if (readable) {
        // A stage's attention begins from the model's.
        std::ranges::stable_partition(root.entries, [](const auto& e) { return e.key == "model"; });
        walk.fill(root, "", "", {&walk.config, nullptr, nullptr});
        const auto data = walk.places.given.find("data");
        if (!walk.places.is_wrong("data"))
            walk.require_keys("data.", "data.",
                              data == walk.places.given.end() ? Place{} : data->second);
        check_rules(walk.config, walk.places, walk.problems);
    }
    if (!walk.problems.empty()) throw ConfigError({.what = render_problems(walk.problems, source)});
    LoadedConfig loaded{walk.config, text, "", {}};
    for (const auto& [key, place] : walk.places.given) {
        std::string origin = describe_place(place, source);
        std::replace_if(
            origin.begin(), origin.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
        loaded.origins[key] = origin;
    }
    loaded.resolved_yaml = write_config_yaml(loaded.config, loaded.origins);
    return loaded;
}

LoadedConfig load_run_config(const std::string& path, const std::vector<std::string>& overrides) {
    return load_run_config_text(read_file(path), path, overrides);
}

namespace {

std::vector<SchemaKey> described(const std::vector<KeyRow>& rows) {
    std::vector<SchemaKey> out;
    for (const KeyRow& row : rows)
        out.push_back({row.key, type_text(row), default_text(row), range_text(row), row.help});
    return out;
}

}  // namespace

const std::vector<SchemaKey>& config_schema() {
    static const std::vector<SchemaKey> keys = described(key_rows());
    return keys;
}

const std::vector<SchemaKey>& attention_schema() {
    static const std::vector<SchemaKey> keys = described(attention_rows());
    return keys;
}

}  // namespace stoa
