#include "launcher/topology.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "configs/load_run_config.h"
#include "kernels/core/error.h"
#include "parallel/mpi_session.h"

namespace stoa {
namespace {

// 0: not a positive number.
int positive(const std::string& text) {
    if (text.empty() || text.size() > 6 ||
        !std::ranges::all_of(text, [](unsigned char c) { return std::isdigit(c); }))
        return 0;
    return std::atoi(text.c_str());
}

Host parse_host_line(std::istringstream& words, std::string name, const std::string& where) {
    Host host{std::move(name), 1};
    for (std::string word; words >> word;) {
        const auto equals = word.find('=');
        const std::string key = word.substr(0, equals);
        const int n = equals == std::string::npos ? 0 : positive(word.substr(equals + 1));
        if ((key != "slots" && key != "max_slots" && key != "max-slots") || n == 0)
            throw ConfigError({.what = "not a line of a hostfile",
                               .where = where,
                               .expected = "NAME [slots=N]",
                               .actual = word,
                               .hint = "for example: node01 slots=8"});
        if (key == "slots") host.slots = n;
    }
    return host;
}

void add_host(std::vector<Host>& hosts, const Host& host) {
    const auto same = std::ranges::find(hosts, host.name, &Host::name);
    if (same == hosts.end())
        hosts.push_back(host);
    else
        same->slots += host.slots;
}

// "01-03,07" behind "node": with the zeros of the first number.
void expand_range(const std::string& head, const std::string& range, const std::string& tail,
                  std::vector<std::string>& out, const std::string& whole) {
    std::istringstream parts(range);
    for (std::string part; std::getline(parts, part, ',');) {
        const auto dash = part.find('-');
        const std::string low = part.substr(0, dash),
                          high = dash == std::string::npos ? low : part.substr(dash + 1);
        const bool numbers =
            !low.empty() && !high.empty() && low.size() <= 9 && high.size() <= 9 &&
            std::ranges::all_of(low + high, [](unsigned char c) { return std::isdigit(c); });
        const int first = numbers ? std::atoi(low.c_str()) : 1,
                  last = numbers ? std::atoi(high.c_str()) : 0;
        if (first > last || last - first > 100'000)
            throw ConfigError({.what = "not a list of nodes",
                               .where = "SLURM_JOB_NODELIST",
                               .expected = "node[01-04,07]",
                               .actual = whole});
        for (int i = first; i <= last; ++i)
            out.push_back(fmt::format("{}{:0{}}{}", head, i, low.size(), tail));
    }
}

// What a command prints; "" when it fails.
std::string output_of(const std::string& command) {
    std::FILE* pipe = popen(command.c_str(), "r");
    if (pipe == nullptr) return "";
    std::string text;
    char chunk[4096];
    while (const std::size_t n = std::fread(chunk, 1, sizeof chunk, pipe))
        text.append(chunk, n);
    return pclose(pipe) == 0 ? text : "";
}

// Only what cannot mean anything to a shell.
bool plain_nodelist(const std::string& text) {
    return !text.empty() && std::ranges::all_of(text, [](unsigned char c) {
        return std::isalnum(c) || std::strchr("[],-._", c) != nullptr;
    });
}

std::string env(const char* name) {
    const char* text = std::getenv(name);
    return text == nullptr ? "" : text;
}

int usable(const Host& host, int tp, bool across) {
    return across ? host.slots : host.slots / tp * tp;
}

}  // namespace

std::vector<Host> parse_hostfile(const std::string& text, const std::string& path) {
    std::vector<Host> hosts;
    std::istringstream lines(text);
    int number = 0;
    for (std::string line; std::getline(lines, line);) {
        ++number;
        line.resize(std::min(line.find('#'), line.size()));
        std::istringstream words(line);
        std::string name;
        if (!(words >> name)) continue;
        const std::string where = fmt::format("{}:{}", path, number);
        if (name.find('=') != std::string::npos)
            throw ConfigError({.what = "a line of the hostfile begins without a host's name",
                               .where = where,
                               .expected = "NAME [slots=N]",
                               .actual = name});
        add_host(hosts, parse_host_line(words, name, where));
    }
    if (hosts.empty())
        throw ConfigError({.what = "the hostfile names no host",
                           .where = path,
                           .expected = "one line per host: NAME slots=N"});
    return hosts;
}

std::vector<Host> read_hostfile(const std::string& path) {
    std::ifstream in(path);
    std::ostringstream text;
    if (in) text << in.rdbuf();
    if (!in || in.bad())
        throw ConfigError({.what = "cannot read the hostfile",
                           .where = path,
                           .actual = std::strerror(errno),
                           .hint = "one line per host: NAME slots=N"});
    return parse_hostfile(text.str(), path);
}

std::vector<std::string> expand_nodelist(const std::string& text) {
    std::vector<std::string> names;
    for (std::size_t begin = 0; begin < text.size();) {
        std::size_t end = begin;
        for (int depth = 0; end < text.size() && (depth > 0 || text[end] != ','); ++end)
            depth += text[end] == '[' ? 1 : text[end] == ']' ? -1 : 0;
        const std::string item = text.substr(begin, end - begin);
        const auto open = item.find('['), close = item.find(']');
        if (open == std::string::npos && close == std::string::npos) {
            if (!item.empty()) names.push_back(item);
        } else if (open == std::string::npos || close == std::string::npos || close < open) {
            throw ConfigError({.what = "not a list of nodes",
                               .where = "SLURM_JOB_NODELIST",
                               .expected = "node[01-04,07]",
                               .actual = text});
        } else {
            expand_range(item.substr(0, open), item.substr(open + 1, close - open - 1),
                         item.substr(close + 1), names, text);
        }
        begin = end + 1;
    }
    return names;
}

std::vector<int> expand_tasks_per_node(const std::string& text) {
    std::vector<int> tasks;
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, ',');) {
        const auto open = part.find("(x");
        const int n = positive(part.substr(0, open));
        int times = 1;
        if (open != std::string::npos)
            times =
                part.ends_with(")") ? positive(part.substr(open + 2, part.size() - open - 3)) : 0;
        if (n == 0 || times == 0)
            throw ConfigError({.what = "not a list of tasks per node",
                               .where = "SLURM_TASKS_PER_NODE",
                               .expected = "2(x3),1",
                               .actual = text});
        tasks.insert(tasks.end(), static_cast<std::size_t>(times), n);
    }
    return tasks;
}

std::vector<Host> slurm_hosts() {
    const std::string list = env("SLURM_JOB_NODELIST");
    if (env("SLURM_JOB_ID").empty() || list.empty()) return {};
    std::vector<std::string> names;
    if (plain_nodelist(list)) {
        std::istringstream words(output_of("scontrol show hostnames '" + list + "' 2>/dev/null"));
        for (std::string name; words >> name;)
            names.push_back(name);
    }
    if (names.empty()) names = expand_nodelist(list);
    std::string tasks = env("SLURM_TASKS_PER_NODE");
    std::vector<int> slots = expand_tasks_per_node(tasks.empty() ? "1" : tasks);
    if (slots.size() < names.size()) slots.resize(names.size(), slots.empty() ? 1 : slots.back());
    std::vector<Host> hosts;
    for (std::size_t i = 0; i < names.size(); ++i)
        hosts.push_back({names[i], slots[i]});
    return hosts;
}

std::vector<Host> local_host(int slots) { return {{host_name(), slots}}; }

int capacity(const std::vector<Host>& hosts, int tp, bool across) {
    int total = 0;
    for (const Host& h : hosts)
        total += usable(h, tp, across);
    return across ? total / tp * tp : total;
}

std::vector<Host> place_ranks(const std::vector<Host>& hosts, int ranks, int tp, bool across) {
    const int room = capacity(hosts, tp, across);
    if (room < ranks) {
        std::string named;
        for (const Host& h : hosts)
            named += fmt::format("{}{} slots={}", named.empty() ? "" : ", ", h.name, h.slots);
        throw ConfigError(
            {.what = fmt::format("too few slots for {} rank{}", ranks, ranks == 1 ? "" : "s"),
             .where = named,
             .expected = tp > 1 && !across
                             ? fmt::format("{} slots in groups of tp = {} on one host", ranks, tp)
                             : fmt::format("{} slots", ranks),
             .actual = std::to_string(room),
             .hint = tp > 1 && !across
                         ? "raise slots=N in the hostfile, take fewer ranks, or let a tp group "
                           "cross hosts with --allow-tp-across (slow)"
                         : "raise slots=N in the hostfile, or take fewer ranks"});
    }
    std::vector<Host> placed;
    for (const Host& h : hosts) {
        const int n = std::min(ranks, usable(h, tp, across));
        if (n > 0) placed.push_back({h.name, n});
        ranks -= n;
    }
    return placed;
}

int choose_world(const RunConfig& config, int available, int min_ranks) {
    const int tp = static_cast<int>(config.parallel.tp);
    for (int world = available / tp * tp; world >= std::max(min_ranks, 1); world -= tp) {
        RunConfig c = config;
        c.parallel.dp = 0;
        try {
            resolve_for_world(c, world);
            return world;
        } catch (const ConfigError&) {  // the batch cannot be dealt to so many
        }
    }
    return 0;
}

}  // namespace stoa
