#include "launcher/bundle/bundle.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>

#include "kernels/core/error.h"
#include "launcher/cli.h"
#include "launcher/commands/node.h"

namespace stoa {

namespace po = boost::program_options;

int command_bundle(const Args& args) {
    CommandLine line;
    line.usage = "stoa bundle DIR | stoa bundle --check DIR";
    line.examples =
        "  stoa bundle stoa-0.1              # then copy the folder to the nodes, and there:\n"
        "  stoa-0.1/stoa doctor\n"
        "  stoa-0.1/bin/mpirun -n 2 stoa-0.1/stoa train configs/tiny.yaml\n";
    line.about =
        "Makes a folder of this program and all it needs beyond glibc and the drivers: shared "
        "libraries,\n"
        "Open MPI with its plug-ins, mpirun. It runs from wherever it is moved, on nodes with a "
        "glibc that is\n"
        "not older than this machine's. A single rank needs no MPI at all.";
    line.options.add_options()("dir", po::value<std::string>()->required(), "")(
        "check", po::bool_switch(), "compare a bundle with its manifest");
    line.positional.add("dir", 1);
    const auto values = parse_command_line(line, args);
    if (!values) return 0;
    const std::string dir = (*values)["dir"].as<std::string>();
    if ((*values)["check"].as<bool>()) {
        fmt::print("{}: {} files as they were written\n", dir, check_bundle(dir));
        return 0;
    }
    if (const char* inside = std::getenv("STOA_BUNDLE"))
        throw ConfigError({.what = "this program runs from a bundle",
                           .where = inside,
                           .hint = "copy that folder"});
    require_not_taken(dir);
    const BundlePlan plan = plan_bundle(std::filesystem::read_symlink("/proc/self/exe").string());
    write_bundle(plan, dir);
    fmt::print("{}: {} files, {:.1f} MiB\n", dir, plan.files.size() + 1,
               static_cast<double>(plan.bytes) / (1 << 20));
    for (const std::string& p : plan.left_out)
        fmt::print("left out: {}\n", p);
    fmt::print("of the node:");
    for (const std::string& l : plan.of_the_node)
        fmt::print(" {}", l);
    fmt::print("\n");
    return 0;
}

}  // namespace stoa
