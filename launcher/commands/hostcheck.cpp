#include <fmt/format.h>

#include "kernels/core/error.h"
#include "launcher/commands.h"
#include "launcher/host_check.h"

namespace stoa {

// Not for people: `stoa launch` starts it on every host, through what will start the ranks.
int command_hostcheck(const Args& args) {
    if (args.size() < 3)
        throw ConfigError({.what = "missing argument",
                           .hint = "stoa hostcheck RUN_DIR NONCE CONFIG [key=value ...]"});
    fmt::print("{}\n", host_report_line(args[0], args[1], {args.begin() + 2, args.end()}));
    return 0;
}

}  // namespace stoa
