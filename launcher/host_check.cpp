#include "launcher/host_check.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "configs/load_run_config.h"
#include "parallel/mpi_session.h"

namespace stoa {
namespace {

namespace fs = std::filesystem;

constexpr const char* kMark = "stoa-host ";
constexpr double kClockWarningSeconds = 2.0;
constexpr std::int64_t kLittleDiskBytes = std::int64_t{1} << 30;

double now_seconds() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
        .count();
}

std::string read_file(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

// FNV-1a, 64 bits: tells builds and configurations apart, and is the same on every host.
std::string hash_text(const std::string& text) {
    std::uint64_t h = 14695981039346656037ull;
    for (const unsigned char c : text)
        h = (h ^ c) * 1099511628211ull;
    return fmt::format("{:016x}", h);
}

int count_gpus() {
    std::error_code error;
    int n = 0;
    for (fs::directory_iterator it("/proc/driver/nvidia/gpus", error), end; !error && it != end;
         it.increment(error))
        ++n;
    return n;
}

std::string last_line(const std::string& text) {
    std::istringstream lines(text);
    std::string last;
    for (std::string line; std::getline(lines, line);)
        if (line.find_first_not_of(" -\t") != std::string::npos) last = line;
    return last;
}

std::string nonce_path(const std::string& run_dir, const std::string& nonce) {
    return fmt::format("{}/.host-check-{}", run_dir, nonce);
}

// Both fields of the first host and of this one, where they differ.
void require_same(const HostReport& first, const HostReport& h, std::string HostReport::*field,
                  const char* what, const char* hint) {
    if (h.*field == first.*field) return;
    throw ConfigError({.what = what,
                       .where = h.host,
                       .expected = fmt::format("{} as on {}", first.*field, first.host),
                       .actual = h.*field,
                       .hint = hint});
}

}  // namespace

std::string host_report_line(const std::string& run_dir, const std::string& nonce,
                             const std::vector<std::string>& words) {
    nlohmann::ordered_json j{{"host", host_name()}, {"version", STOA_VERSION}};
    try {
        const LoadedConfig loaded = load_run_config(words.at(0), {words.begin() + 1, words.end()});
        j["config_hash"] = hash_text(write_config_yaml(loaded.config, {}));
    } catch (const std::exception& e) {
        j["error"] = e.what();
    }
    j["program_hash"] = hash_text(read_file("/proc/self/exe"));
    j["sees_run_dir"] = read_file(nonce_path(run_dir, nonce)) == nonce;
    std::error_code error;
    const auto space = fs::space(run_dir, error);
    j["free_bytes"] = error ? -1 : static_cast<std::int64_t>(space.available);
    j["gpus"] = count_gpus();
    j["time"] = now_seconds();
    return kMark + j.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

HostReport parse_host_report(const std::string& asked, const std::string& output) {
    HostReport r{.asked = asked, .host = asked};
    const auto at = output.find(kMark);
    if (at == std::string::npos) return r;
    const auto line = output.substr(at + std::string(kMark).size());
    const auto j = nlohmann::json::parse(line.substr(0, line.find('\n')), nullptr, false);
    if (!j.is_object()) return r;
    r.reached = true;
    r.host = j.value("host", asked);
    r.version = j.value("version", "");
    r.program_hash = j.value("program_hash", "");
    r.config_hash = j.value("config_hash", "");
    r.error = j.value("error", "");
    r.sees_run_dir = j.value("sees_run_dir", false);
    r.free_bytes = j.value("free_bytes", std::int64_t{-1});
    r.gpus = j.value("gpus", 0);
    r.clock_offset_s = j.value("time", 0.0);  // ask_hosts subtracts its own clock
    return r;
}

std::vector<std::string> judge_hosts(const std::vector<HostReport>& hosts,
                                     const std::string& run_dir) {
    for (const HostReport& h : hosts)
        if (!h.reached)
            throw DeviceError({.what = "a host does not answer",
                               .where = h.asked,
                               .expected = "mpirun can start a process there",
                               .actual = h.why_not.empty() ? "no answer in time" : h.why_not,
                               .hint = "check its name in the hostfile, the network, and that a "
                                       "login without a password works (ssh, or --rsh-agent)"});
    const HostReport& first = hosts.front();
    for (const HostReport& h : hosts) {
        require_same(first, h, &HostReport::version, "hosts run different versions of stoa",
                     "install the same build everywhere, or start it from shared storage");
        require_same(first, h, &HostReport::program_hash, "hosts run different builds of stoa",
                     "install the same build everywhere, or start it from shared storage");
        if (!h.error.empty())
            throw ConfigError({.what = "a host cannot load the configuration",
                               .where = h.host,
                               .actual = h.error.substr(0, h.error.find('\n')),
                               .hint = "put the file on shared storage, or copy it to every host"});
        require_same(first, h, &HostReport::config_hash, "hosts read different configurations",
                     "put the file on shared storage, or copy it to every host");
        if (!h.sees_run_dir)
            throw ConfigError(
                {.what = "the run directory is not shared",
                 .where = h.host + ":" + run_dir,
                 .expected = "the same directory on every host (NFS, Lustre, ...)",
                 .actual = "another one, or none: what this process wrote there is not to be seen",
                 .hint = "choose one on shared storage with run.dir=PATH: checkpoints are written "
                         "by all hosts and read by any"});
    }
    std::vector<std::string> warnings;
    for (const HostReport& h : hosts) {
        if (std::abs(h.clock_offset_s) > kClockWarningSeconds)
            warnings.push_back(fmt::format(
                "the clock of {} is {:.1f} s {}: times in its log cannot be compared with others",
                h.host, std::abs(h.clock_offset_s), h.clock_offset_s > 0 ? "ahead" : "behind"));
        if (h.free_bytes >= 0 && h.free_bytes < kLittleDiskBytes)
            warnings.push_back(fmt::format("{} sees {} MiB of free disk for {}", h.host,
                                           h.free_bytes >> 20, run_dir));
    }
    return warnings;
}

std::vector<HostReport> ask_hosts(const HostCheck& check, const std::vector<Host>& hosts) {
    const std::string nonce =
        fmt::format("{}-{}", getpid(), static_cast<long long>(1e6 * now_seconds()));
    const std::string path = nonce_path(check.run_dir, nonce);
    std::ofstream(path) << nonce;
    std::vector<SpawnOptions> commands;
    for (const Host& h : hosts) {
        SpawnOptions o{.command = check.mpirun, .environment = check.environment};
        const std::vector<std::string> rest = {"--host",       h.name + ":1", "-n",          "1",
                                               this_program(), "hostcheck",   check.run_dir, nonce};
        o.command.insert(o.command.end(), rest.begin(), rest.end());
        o.command.insert(o.command.end(), check.words.begin(), check.words.end());
        commands.push_back(std::move(o));
    }
    const std::vector<Output> outputs = run_all(commands, check.seconds);
    const double now = now_seconds();
    std::vector<HostReport> reports;
    for (std::size_t i = 0; i < hosts.size(); ++i) {
        HostReport r = parse_host_report(hosts[i].name, outputs[i].out);
        if (!r.reached) r.why_not = last_line(outputs[i].err + outputs[i].out);
        reports.push_back(std::move(r));
    }
    // All were asked at once; a host's clock is compared with the latest answer's.
    double latest = 0.0;
    for (const HostReport& r : reports)
        if (r.reached) latest = std::max(latest, std::min(r.clock_offset_s, now));
    for (HostReport& r : reports)
        if (r.reached) r.clock_offset_s -= std::clamp(r.clock_offset_s, latest - 1.0, now);
    std::error_code ignored;
    fs::remove(path, ignored);
    return reports;
}

}  // namespace stoa
