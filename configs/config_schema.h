#pragma once
// The schema: one row per key with its field, unit, range and help. Reading, printing, checking,
// `stoa check --schema` and docs/config.md all follow from this table.
#include <limits>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "configs/config_tree.h"
#include "configs/run_config.h"

namespace stoa {

/// What a key is relative to: stages[].* rows use `stage`, data.sources.<name>.* rows use `source`.
struct ConfigTarget {
    RunConfig* run = nullptr;
    StageConfig* stage = nullptr;
    SourceConfig* source = nullptr;
    AttentionConfig* attention = nullptr;  // rows of attention_rows() use it
};

// Fields that one key spreads over two variables.
struct BetasField {
    double *beta1, *beta2, *eps;
};
struct ProblemsField {
    std::int64_t *problems, *tokens;
};
struct AttentionField {
    AttentionConfig* model;
    std::optional<AttentionConfig>*
        stage;  // null: the model's own; else it begins from the model's
};
struct WarmupField {
    double* fraction;
    std::int64_t* tokens;  // -1 = use the fraction
};
struct IntervalField {
    std::int64_t* steps;
    double* seconds;
    bool* blocking;
};
struct KeepField {
    std::int64_t *newest, *every_steps;
};
struct RecomputeField {
    Recompute* policy;
    std::vector<std::string>* layers;  // "0-3", "7"; empty: all
};
struct TpField {
    std::int64_t* ranks;
    bool* sequence;
};
struct ZeroField {
    std::int64_t* level;
    Overlap* overlap;
};
struct DeviceField {
    DeviceChoice* device;
    std::int64_t* threads;  // behind cpu
};
struct DeterminismField {
    Determinism* mode;
    std::int64_t *dp_shards, *tp_chunks;
};
struct FractionField {
    double* value;
};
using ConfigField =
    std::variant<std::string*, std::int64_t*, std::uint64_t*, double*, bool*, FractionField,
                 BetasField, WarmupField, IntervalField, KeepField, DeterminismField,
                 RecomputeField, ZeroField, TpField, DeviceField, ProblemsField, AttentionField,
                 std::vector<std::string>*, std::map<std::string, double>*, Recompute*, Recipe*,
                 Format*, Moments*, ScheduleKind*, SourceKind*, LossOn*, AttentionKind*,
                 KeySelector*>;

struct KeyRange {
    double low = -std::numeric_limits<double>::infinity();
    double high = std::numeric_limits<double>::infinity();
    bool open_low = false, open_high = false;
};

struct KeyRow {
    const char* key;   // "stages[].tokens"
    const char* unit;  // the word that may follow the number; "" for none
    KeyRange range;
    enum Flag { plain, automatic, required } flag;  // automatic: the word auto means 0
    const char* help;
    ConfigField (*field)(ConfigTarget);
};
const std::vector<KeyRow>& key_rows();
/// What may stand inside model.attention and stages[].attention.
const std::vector<KeyRow>& attention_rows();
/// The row of a schema path, or nullptr.
const KeyRow* find_key_row(const std::string& key);

/// Names of other programs (and older names) for our keys: "learning_rate" -> "optimizer.lr".
const std::map<std::string, std::string>& key_aliases();

/// Reads a value into its field. Appends to `problems` and returns false when it is not good.
bool read_field(const KeyRow& row, const std::string& path, const ConfigNode& node,
                ConfigTarget target, std::vector<Problem>& problems);
/// The value as YAML on one line, which reads back to the same value.
std::string print_field(const KeyRow& row, ConfigTarget target);

std::string type_text(const KeyRow& row);
std::string range_text(const KeyRow& row);
std::string default_text(const KeyRow& row);

/// A name that can be a key and a file name: letters, digits, '-', '_' and, inside, '.' if `dots`.
bool is_plain_name(const std::string& name, bool dots);

}  // namespace stoa
