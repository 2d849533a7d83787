// `stoa reason gen --family all | stoa reason verify` finds every sample sound, and no mutated
// answer is accepted. Prints one JSON object last; exit code 0 only when both hold. --quick: 2000
// samples.
#include <fmt/format.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "data/reasoning/engine.h"
#include "tests/support/reasoning_mutations.h"

using namespace stoa;

namespace {

std::string stoa_binary() {
    if (const char* path = std::getenv("STOA_BIN")) return path;
    return std::filesystem::read_symlink("/proc/self/exe").parent_path() / "../../stoa";
}

struct PipeResult {
    std::int64_t checked = 0, unsound = 0;
    int exit_code = -1;
};

/// Runs the two commands as a user would and reads the summary's last line: "all checked sound
/// unsound".
PipeResult run_pipe(std::int64_t samples, const char* difficulty) {
    const std::string bin = stoa_binary();
    const std::string command = fmt::format(
        "'{}' reason gen --family all --n {} --difficulty {} --seed 77 | '{}' reason verify", bin,
        samples, difficulty, bin);
    PipeResult result;
    FILE* pipe = ::popen(command.c_str(), "r");
    if (pipe == nullptr) return result;
    char line[512];
    while (std::fgets(line, sizeof line, pipe) != nullptr) {
        std::istringstream words(line);
        std::string family;
        std::int64_t checked = 0, sound = 0, unsound = 0;
        if (words >> family >> checked >> sound >> unsound && family == "all")
            result = {checked, unsound, -1};
    }
    const int status = ::pclose(pipe);
    result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return result;
}

}  // namespace

int main(int argc, char** argv) {
    const bool quick = argc > 1 && std::string(argv[1]) == "--quick";
    const std::int64_t samples = quick ? 2000 : 10000;
    const PipeResult plain = run_pipe(samples, "1"), ranged = run_pipe(samples, "1..10");

    std::int64_t unsound = plain.unsound + ranged.unsound, mutations = 0, accepted = 0,
                 fewest = 1000;
    const auto& families = reasoning_families();
    const auto count = static_cast<std::int64_t>(families.size());
    for (std::int64_t i = 0; i < samples; ++i) {
        const ReasoningFamily& family = families[static_cast<std::size_t>(i % count)];
        const auto sample = make_sample(family, 1 + i / count % 10, 78, ReasoningSplit::train, i);
        std::string why;
        if (!verify_sample(sample, why)) {
            fmt::print(stderr, "unsound: {}: {}\n", to_json_line(sample), why);
            ++unsound;
        }
        std::int64_t tried = 0;
        for (std::uint64_t round = 0; tried < 5 && round < 4; ++round) {
            Draws draws(mix_key(78, round), static_cast<std::uint64_t>(i));
            for (const std::string& wrong : test::wrong_answers(sample.answer, draws)) {
                ++tried;
                if (!family.verify(sample.question, wrong, why)) continue;
                fmt::print(stderr, "accepted \"{}\" for {}\n", wrong, to_json_line(sample));
                ++accepted;
            }
        }
        mutations += tried;
        fewest = std::min(fewest, tried);
    }
    const bool pipes = plain.exit_code == 0 && ranged.exit_code == 0 && plain.checked == samples &&
                       ranged.checked == samples;
    const bool pass = pipes && unsound == 0 && accepted == 0 && fewest >= 5;
    const nlohmann::ordered_json report = {{"test", "reasoning_sound"},
                                           {"samples", plain.checked},
                                           {"samples_all_difficulties", ranged.checked},
                                           {"verify_exit_code", plain.exit_code},
                                           {"families", count},
                                           {"unsound", unsound},
                                           {"mutations", mutations},
                                           {"fewest_mutations_per_sample", fewest},
                                           {"mutations_accepted", accepted},
                                           {"pass", pass}};
    fmt::print("{}\n", report.dump());
    return pass ? 0 : 1;
}
