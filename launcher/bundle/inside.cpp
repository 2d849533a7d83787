#include "launcher/bundle/inside.h"

#include <cstdlib>

extern char** environ;

namespace stoa {

std::string started_by(const std::string& program) {
    const char* bundle = std::getenv("STOA_BUNDLE");
    if (bundle == nullptr || program != std::string(bundle) + "/libexec/stoa") return program;
    return std::string(bundle) + "/stoa";
}

std::vector<std::string> tool_environment() {
    std::vector<std::string> out;
    const char* host = std::getenv("STOA_HOST_LIBRARY_PATH");
    for (char** e = environ; *e; ++e)
        if (host == nullptr || !std::string(*e).starts_with("LD_LIBRARY_PATH="))
            out.emplace_back(*e);
    if (host != nullptr && *host != '\0') out.push_back("LD_LIBRARY_PATH=" + std::string(host));
    return out;
}

}  // namespace stoa
