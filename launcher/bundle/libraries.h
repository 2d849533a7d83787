#pragma once
// Which shared libraries a program needs, and which of them every machine brings itself.
#include <string>
#include <vector>

namespace stoa {

struct Library {
    std::string name;  // as it is asked for: "libz.so.1"
    std::string path;  // where the loader finds it; "" where it does not
};
/// One program or plug-in with all it needs, directly or not.
struct Needs {
    std::string file;
    std::vector<Library> libraries;
    std::string first_missing() const;  // "" where all were found
};

/// What `ldd` says, read back; files without any need (static ones) have an empty list.
std::vector<Needs> parse_ldd(const std::vector<std::string>& files, const std::string& text);

/// Asks `ldd`, which asks this machine's loader: what it says is what would be loaded.
/// errors: DataError (no ldd, a file that is not there)
std::vector<Needs> needs_of(const std::vector<std::string>& files);

/// A part of glibc, which fits its loader and nothing else, or of a driver (CUDA's, or the network
/// card's verbs), which fits its kernel module: the node's own are used.
bool is_of_the_node(const std::string& name);

}  // namespace stoa
