#include "trainer/cost_model/cluster.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "configs/config_tree.h"
#include "configs/load_run_config.h"
#include "kernels/core/error.h"

namespace stoa {
namespace {

struct Key {
    const char* name;
    double Cluster::*field;
    double low, high;
};
constexpr double kMost = 1e9;
constexpr Key kKeys[] = {
    {"device.memory_gb", &Cluster::memory_gb, 1e-3, kMost},
    {"device.bandwidth_gb_s", &Cluster::bandwidth_gb_s, 1e-3, kMost},
    {"device.fp32_tflops", &Cluster::fp32_tflops, 1e-6, kMost},
    {"device.bf16_tflops", &Cluster::bf16_tflops, 1e-6, kMost},
    {"device.fp8_tflops", &Cluster::fp8_tflops, 1e-6, kMost},
    {"node.devices", &Cluster::node_devices, 1, 1 << 20},
    {"node.link_gb_s", &Cluster::link_gb_s, 1e-3, kMost},
    {"node.latency_us", &Cluster::link_latency_us, 0, kMost},
    {"network.gb_s", &Cluster::network_gb_s, 1e-3, kMost},
    {"network.latency_us", &Cluster::network_latency_us, 0, kMost},
    {"reached.gemm", &Cluster::gemm, 1e-3, 1},
    {"reached.gemm_fp8", &Cluster::gemm_fp8, 1e-3, 1},
    {"reached.gemm_half_gflop", &Cluster::gemm_half_gflop, 0, kMost},
    {"reached.attention", &Cluster::attention, 1e-3, 1},
    {"reached.memory", &Cluster::memory, 1e-3, 1},
    {"reached.link", &Cluster::link, 1e-3, 1},
    {"reached.network", &Cluster::network, 1e-3, 1},
    {"reached.overlap", &Cluster::overlap, 0, 1},
    {"reached.sum_bytes", &Cluster::sum_bytes, 1, 8},
    {"reached.step_ms", &Cluster::step_ms, 0, kMost},
    {"reached.jitter", &Cluster::jitter, 0, 1},
};

std::vector<std::string> known_keys() {
    std::vector<std::string> keys{"name", "source"};
    for (const Key& k : kKeys)
        keys.emplace_back(k.name);
    return keys;
}

std::string text_at(ConfigNode& root, const std::string& key, const ConfigSource& file,
                    std::vector<Problem>& problems) {
    ConfigNode::Entry* const e = root.find(key);
    if (e != nullptr && e->value.kind == ConfigNode::Kind::scalar) return e->value.text;
    problems.push_back({e == nullptr ? root.place : e->value.place,
                        fmt::format("{}: expected a text", key),
                        "see configs/clusters in " + file.path});
    return "";
}

// The leaves of sections, as "device.memory_gb".
void read_section(const ConfigNode::Entry& section, Cluster& c, std::vector<std::string>& seen,
                  std::vector<Problem>& problems) {
    for (const ConfigNode::Entry& e : section.value.entries) {
        const std::string path = section.key + "." + e.key;
        const Key* const key =
            std::ranges::find_if(kKeys, [&](const Key& k) { return path == k.name; });
        if (key == std::end(kKeys)) {
            const auto close = suggest(path, known_keys());
            problems.push_back({e.place, fmt::format("unknown key '{}'", path),
                                close.empty() ? "" : fmt::format("did you mean '{}'?", close[0])});
            continue;
        }
        seen.push_back(path);
        char* end = nullptr;
        const double value = std::strtod(e.value.text.c_str(), &end);
        const bool number =
            e.value.kind == ConfigNode::Kind::scalar && !e.value.text.empty() && *end == '\0';
        if (!number || !(value >= key->low && value <= key->high)) {
            problems.push_back({e.value.place,
                                fmt::format("{}: expected a number in [{:g}, {:g}], got '{}'", path,
                                            key->low, key->high, e.value.text),
                                "docs/cost_model.md says what it means"});
            continue;
        }
        c.*key->field = value;
    }
}

}  // namespace

Cluster parse_cluster(const std::string& text, const std::string& path) {
    const ConfigSource file{.path = path, .text = text, .overrides = {}};
    std::vector<Problem> problems;
    ConfigNode root = parse_config_text(file, problems);
    Cluster c;
    if (problems.empty()) {
        c.name = text_at(root, "name", file, problems);
        c.source = text_at(root, "source", file, problems);
        std::vector<std::string> seen;
        for (const ConfigNode::Entry& e : root.entries) {
            if (e.key == "name" || e.key == "source") continue;
            if (e.value.kind == ConfigNode::Kind::map) {
                read_section(e, c, seen, problems);
                continue;
            }
            const auto close = suggest(e.key, known_keys());
            problems.push_back({e.place, fmt::format("unknown key '{}'", e.key),
                                close.empty() ? "the sections are device, node, network, reached"
                                              : fmt::format("did you mean '{}'?", close[0])});
        }
        for (const Key& k : kKeys)
            if (problems.empty() && std::ranges::find(seen, std::string(k.name)) == seen.end())
                problems.push_back({root.place, fmt::format("missing key '{}'", k.name),
                                    "docs/cost_model.md says what it means"});
    }
    if (!problems.empty()) throw ConfigError({.what = render_problems(std::move(problems), file)});
    return c;
}

Cluster load_cluster(const std::string& path) {
    std::ifstream in(path);
    if (!in)
        throw ConfigError({.what = "cannot read the cluster file",
                           .where = path,
                           .expected = "a YAML file such as configs/clusters/h100.yaml",
                           .hint = "docs/cost_model.md lists its keys"});
    return parse_cluster({std::istreambuf_iterator<char>(in), {}}, path);
}

}  // namespace stoa
