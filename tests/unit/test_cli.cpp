#include "tests/support/catch.h"

#include "kernels/core/error.h"
#include "launcher/cli.h"
#include "launcher/commands.h"

using namespace stoa;
namespace po = boost::program_options;

namespace {

CommandLine example_line() {
    CommandLine line;
    line.usage = "stoa reason gen --family NAME FILE";
    line.examples = "  stoa reason gen --family chain_sum out.jsonl\n";
    line.options.add_options()("file", po::value<std::string>()->required(), "")(
        "family", po::value<std::string>(), "family")("count", po::value<int>()->default_value(3),
                                                      "how many");
    line.positional.add("file", 1);
    return line;
}

std::string refusal(const Args& args) {
    try {
        (void)parse_command_line(example_line(), args);
    } catch (const ConfigError& e) {
        return e.what();
    }
    return "accepted";
}

int run(std::vector<std::string> words) {
    words.insert(words.begin(), "stoa");
    std::vector<char*> argv;
    for (std::string& w : words)
        argv.push_back(w.data());
    return run_cli(static_cast<int>(argv.size()), argv.data());
}

}  // namespace

TEST_CASE("parse_command_line takes options before and after positional arguments") {
    const auto values =
        parse_command_line(example_line(), {"out.jsonl", "--count", "7", "--family=chain_sum"});
    REQUIRE(values);
    CHECK((*values)["file"].as<std::string>() == "out.jsonl");
    CHECK((*values)["count"].as<int>() == 7);
    CHECK((*values)["family"].as<std::string>() == "chain_sum");
    CHECK_FALSE(parse_command_line(example_line(), {"--help"}));
    CHECK_FALSE(parse_command_line(example_line(), {"x", "--count", "1", "-h"}));
}

TEST_CASE("parse_command_line refuses what it does not know, with a way out") {
    CHECK(refusal({"f", "--famly", "x"}).find("unknown option --famly: did you mean --family?") !=
          std::string::npos);
    CHECK(refusal({"f", "--famly", "x"}).find("see `stoa reason gen --help`") != std::string::npos);
    CHECK(refusal({"f", "--fam", "x"}).find("unknown option --fam") !=
          std::string::npos);  // no abbreviations
    CHECK(refusal({"f", "--count", "many"}).find("many") != std::string::npos);
    CHECK(refusal({"f", "--count"}).find("count") != std::string::npos);
    CHECK(refusal({"f", "--count", "1", "--count", "2"}).find("given twice") != std::string::npos);
    CHECK(refusal({}).find("missing argument: file") != std::string::npos);
    CHECK(refusal({"f", "g"}).find("too many arguments") != std::string::npos);
    CHECK(refusal({"f", "--zzzzzzzzzz"}).find("unknown option --zzzzzzzzzz\n") !=
          std::string::npos);
}

TEST_CASE("run_cli turns errors into exit codes") {
    CHECK(run({"--help"}) == 0);
    CHECK(run({"--version"}) == 0);
    CHECK(run({"help"}) == 0);
    CHECK(run({"help", "check"}) == 0);
    CHECK(run({"check", "--help"}) == 0);
    CHECK(run({"launch", "--help"}) == 0);
    CHECK(run({"check", "--schema"}) == 0);
    CHECK(run({}) == 2);
    CHECK(run({"trian"}) == 2);
    CHECK(run({"--verison"}) == 2);
    CHECK(run({"check"}) == 2);
    CHECK(run({"check", "/no/such/file.yaml"}) == 2);
    CHECK(run({"launch", "--ranks", "0", "/no/such/file.yaml"}) == 2);
}
