#pragma once
#include <boost/program_options.hpp>
#include <optional>
#include <string>
#include <vector>

namespace stoa {

/// One command's line: what --help shows (examples first) and what it accepts.
struct CommandLine {
    std::string usage;     // "stoa reason gen --family NAME [options]"
    std::string examples;  // shown first, one per line, indented by two
    std::string about;     // one paragraph
    boost::program_options::options_description options{"options"};
    boost::program_options::positional_options_description positional;
};

/// Parses without guessing abbreviations. Prints help and returns nothing for --help (added here).
/// errors: ConfigError for unknown, repeated or malformed options, with a suggestion
std::optional<boost::program_options::variables_map> parse_command_line(
    CommandLine line, const std::vector<std::string>& args);

/// argv to an exit code: picks the verb (unknown ones get a suggestion), runs it, prints one error
/// message (with the rank where it matters) and returns its exit code.
int run_cli(int argc, char** argv);

}  // namespace stoa
