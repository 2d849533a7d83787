#include "checkpoints/manifest.h"

#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>

#include "checkpoints/file_io.h"

namespace stoa {
namespace {

using nlohmann::ordered_json;

// The own hash is the last field. Everything before kHashKey is hashed; what follows is exactly the
// hash and kEnd, so that no byte of the file is outside the check.
constexpr const char* kHashKey = ",\n \"manifest_xxh3\": \"";
constexpr const char* kEnd = "\"\n}\n";
constexpr std::size_t kHexDigits = 32;

// Far above any file, far below where sums of such numbers overflow.
constexpr std::int64_t kMostBytes = std::int64_t{1} << 58;

[[noreturn]] void damaged(const std::string& where, const std::string& expected,
                          const std::string& actual) {
    throw CheckpointError(
        {.what = "damaged manifest", .where = where, .expected = expected, .actual = actual});
}

ordered_json to_json(const Shape& s) {
    ordered_json j = ordered_json::array();
    for (int i = 0; i < s.rank; ++i)
        j.push_back(s[i]);
    return j;
}
Shape shape_from(const ordered_json& j) {
    Shape s;
    if (j.empty() || j.size() > 2)
        throw CheckpointError({.what = "tensor rank", .expected = "1 or 2", .actual = j.dump()});
    std::int64_t numel = 1;
    for (const auto& n : j) {
        const auto extent = n.get<std::int64_t>();
        if (extent < 1 || extent > kMostBytes / numel)
            throw CheckpointError({.what = "tensor shape",
                                   .expected = "extents whose product is a possible size",
                                   .actual = j.dump()});
        numel *= extent;
        s.dims[static_cast<std::size_t>(s.rank++)] = extent;
    }
    return s;
}
DType dtype_from(const std::string& name) {
    for (int d = 0; d < kDTypes; ++d)
        if (name == dtype_name(static_cast<DType>(d))) return static_cast<DType>(d);
    throw CheckpointError({.what = "unknown dtype",
                           .actual = name,
                           .hint = "the checkpoint was written by a newer version"});
}

ordered_json to_json(const CheckpointFile& f) {
    return {{"name", f.name}, {"bytes", f.bytes}, {"xxh3", f.xxh3}};
}
/// A name inside the directory, and nothing else.
std::string file_name_from(const ordered_json& j) {
    const auto name = j.get<std::string>();
    if (name.empty() || name.starts_with('.') || name.find('/') != std::string::npos ||
        name.find('\0') != std::string::npos || name == kManifestName)
        throw CheckpointError({.what = "file name in a manifest",
                               .expected = "a name inside the directory",
                               .actual = j.dump()});
    return name;
}
std::int64_t size_from(const ordered_json& j) {
    const auto n = j.get<std::int64_t>();
    if (n < 0 || n > kMostBytes)
        throw CheckpointError(
            {.what = "size in a manifest", .expected = "a possible size", .actual = j.dump()});
    return n;
}
CheckpointFile file_from(const ordered_json& j) {
    return {file_name_from(j.at("name")), size_from(j.at("bytes")),
            j.at("xxh3").get<std::string>()};
}

ordered_json to_json(const StoredTensor& t) {
    ordered_json shards = ordered_json::array();
    for (const StoredShard& s : t.shards)
        shards.push_back({{"file", s.file},
                          {"offset", s.offset},
                          {"row_begin", s.row_begin},
                          {"row_count", s.row_count},
                          {"col_begin", s.col_begin},
                          {"col_count", s.col_count},
                          {"xxh3", s.xxh3}});
    return {{"name", t.name},
            {"shape", to_json(t.global_shape)},
            {"dtype", dtype_name(t.dtype)},
            {"shards", shards}};
}
StoredTensor tensor_from(const ordered_json& j) {
    StoredTensor t{j.at("name").get<std::string>(),
                   shape_from(j.at("shape")),
                   dtype_from(j.at("dtype").get<std::string>()),
                   {}};
    for (const auto& s : j.at("shards"))
        t.shards.push_back({file_name_from(s.at("file")), size_from(s.at("offset")),
                            size_from(s.at("row_begin")), size_from(s.at("row_count")),
                            size_from(s.at("col_begin")), size_from(s.at("col_count")),
                            s.at("xxh3").get<std::string>()});
    return t;
}

}  // namespace

namespace {

void require_in_files(const StoredTensor& t, const std::map<std::string, std::int64_t>& sizes) {
    for (const StoredShard& s : t.shards) {
        const auto file = sizes.find(s.file);
        const std::int64_t bytes = s.numel() * size_of(t.dtype);
        if (file == sizes.end() || s.offset > file->second || bytes > file->second - s.offset)
            throw CheckpointError(
                {.what = "tensor " + t.name + " lies outside its file",
                 .expected = "within a file of the manifest",
                 .actual = fmt::format("{} + {} of {}", s.offset, bytes, s.file)});
    }
}

}  // namespace

std::string format_manifest(const Manifest& m) {
    ordered_json j = {{"format", kFormatName},
                      {"version", kFormatVersion},
                      {"run_id", m.meta.run_id},
                      {"step", m.meta.step},
                      {"config_hash", m.meta.config_hash},
                      {"tokenizer_hash", m.meta.tokenizer_hash},
                      {"counters", m.meta.counters},
                      {"tp", m.tp}};
    j["files"] = ordered_json::array();
    for (const CheckpointFile& f : m.files)
        j["files"].push_back(to_json(f));
    j["tensors"] = ordered_json::array();
    for (const StoredTensor& t : m.tensors)
        j["tensors"].push_back(to_json(t));
    j["resolved_config"] = m.meta.resolved_config;
    std::string text;
    try {
        text = j.dump(1);
    } catch (const nlohmann::json::exception& e) {
        throw CheckpointError(
            {.what = "counters, names and config must be UTF-8", .actual = e.what()});
    }
    text.resize(text.size() - 2);  // "\n}"
    return text + kHashKey + xxh3_hex(text) + kEnd;
}

Manifest parse_manifest(const std::string& text, const std::string& where) {
    const std::size_t tail = std::string(kHashKey).size() + kHexDigits + std::string(kEnd).size();
    const std::size_t body = text.size() < tail ? 0 : text.size() - tail;
    const std::string hash = body == 0 ? "" : text.substr(text.size() - kHexDigits - 4, kHexDigits);
    if (body == 0 || text.substr(body) != kHashKey + hash + kEnd)
        damaged(where, "a file that ends with its \"manifest_xxh3\"",
                "another ending (torn or foreign)");
    const std::string actual = xxh3_hex(text.substr(0, body));
    if (actual != hash) damaged(where, "xxh3 " + hash, actual);
    try {
        const ordered_json j = ordered_json::parse(text);
        if (j.at("format") != kFormatName || j.at("version") != kFormatVersion)
            throw CheckpointError(
                {.what = "unknown checkpoint format",
                 .where = where,
                 .expected = fmt::format("{} version {}", kFormatName, kFormatVersion),
                 .actual = j.at("format").dump() + " version " + j.at("version").dump()});
        Manifest m;
        m.meta.run_id = j.value("run_id", "");  // early ones have none
        m.meta.step = size_from(j.at("step"));
        m.meta.config_hash = j.at("config_hash").get<std::string>();
        m.meta.tokenizer_hash = j.at("tokenizer_hash").get<std::string>();
        m.meta.counters = j.at("counters").get<std::map<std::string, std::string>>();
        m.meta.resolved_config = j.at("resolved_config").get<std::string>();
        m.tp = j.at("tp").get<std::int64_t>();
        std::map<std::string, std::int64_t> sizes;
        for (const auto& f : j.at("files")) {
            m.files.push_back(file_from(f));
            sizes[m.files.back().name] = m.files.back().bytes;
        }
        for (const auto& t : j.at("tensors"))
            m.tensors.push_back(tensor_from(t));
        for (const StoredTensor& t : m.tensors) {
            require_tiles(t, where);
            require_in_files(t, sizes);
        }
        m.xxh3 = hash;
        return m;
    } catch (const nlohmann::json::exception& e) {
        damaged(where, "the fields of format version 1", e.what());
    } catch (const CheckpointError& e) {
        ErrorFields fields = e.fields();
        if (fields.where.empty()) fields.where = where;
        throw CheckpointError(fields);
    }
}

Manifest read_manifest(const std::string& dir) {
    const std::string path = dir + "/" + kManifestName;
    return parse_manifest(read_text(path), path);
}

std::string format_rank_table(const RankTable& t) {
    ordered_json tensors = ordered_json::array();
    for (const StoredTensor& x : t.tensors)
        tensors.push_back(to_json(x));
    return ordered_json{{"file", to_json(t.file)},
                        {"tensors", tensors},
                        {"write_s", t.write_s},
                        {"verify_s", t.verify_s}}
        .dump();
}

RankTable parse_rank_table(const std::string& text) {
    const ordered_json j = ordered_json::parse(text);
    RankTable t{file_from(j.at("file")), {}, j.at("write_s"), j.at("verify_s")};
    for (const auto& x : j.at("tensors"))
        t.tensors.push_back(tensor_from(x));
    return t;
}

std::vector<StoredTensor> merge_tensors(const std::vector<RankTable>& tables) {
    std::vector<StoredTensor> merged;
    std::map<std::string, std::size_t> index;
    for (const RankTable& table : tables)
        for (const StoredTensor& t : table.tensors) {
            const auto [at, is_new] = index.try_emplace(t.name, merged.size());
            if (is_new) {
                merged.push_back(t);
                continue;
            }
            StoredTensor& first = merged[at->second];
            if (first.global_shape != t.global_shape || first.dtype != t.dtype)
                throw CheckpointError(
                    {.what = "tp ranks disagree about a tensor",
                     .where = t.name,
                     .expected = first.global_shape.str() + " " + dtype_name(first.dtype),
                     .actual = fmt::format("{} {} in {}", t.global_shape.str(), dtype_name(t.dtype),
                                           table.file.name)});
            first.shards.insert(first.shards.end(), t.shards.begin(), t.shards.end());
        }
    for (const StoredTensor& t : merged)
        require_tiles(t, t.name);
    return merged;
}

void require_tiles(const StoredTensor& t, const std::string& where) {
    const auto bad = [&](const std::string& actual) {
        throw CheckpointError({.what = "shards do not tile tensor " + t.name,
                               .where = where,
                               .expected = "every cell of " + t.global_shape.str() + " once",
                               .actual = actual});
    };
    std::int64_t cells = 0;
    for (const StoredShard& s : t.shards) {
        if (s.row_begin < 0 || s.row_count < 1 || s.col_begin < 0 || s.col_count < 1 ||
            s.offset < 0 || s.row_begin + s.row_count > t.rows() ||
            s.col_begin + s.col_count > t.cols())
            bad("a part outside of it in " + s.file);
        for (const StoredShard& o : t.shards)
            if (&o != &s && s.row_begin < o.row_begin + o.row_count &&
                o.row_begin < s.row_begin + s.row_count &&
                s.col_begin < o.col_begin + o.col_count && o.col_begin < s.col_begin + s.col_count)
                bad("an overlap of " + s.file + " and " + o.file);
        cells += s.numel();
    }
    if (cells != t.global_shape.numel()) bad(std::to_string(cells) + " cells");
}

}  // namespace stoa
