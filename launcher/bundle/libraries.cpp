#include "launcher/bundle/libraries.h"

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "kernels/core/error.h"
#include "launcher/tool.h"

namespace stoa {

std::string Needs::first_missing() const {
    for (const Library& l : libraries)
        if (l.path.empty() && !is_of_the_node(l.name)) return l.name;
    return "";
}

std::vector<Needs> parse_ldd(const std::vector<std::string>& files, const std::string& text) {
    std::vector<Needs> all;
    for (const std::string& f : files)
        all.push_back({.file = f});
    std::size_t current = 0;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        if (line.empty()) continue;
        if (line[0] != '\t') {  // with several files, "FILE:" goes before each list
            for (std::size_t i = 0; i < files.size(); ++i)
                if (line == files[i] + ":") current = i;
            continue;
        }
        const std::size_t arrow = line.find(" => "), end = line.rfind(" (0x");
        if (arrow == std::string::npos || current >= all.size()) continue;  // loader, vdso
        const std::string name = line.substr(1, arrow - 1);
        const std::string path = end == std::string::npos || end < arrow + 4
                                     ? ""
                                     : line.substr(arrow + 4, end - arrow - 4);
        all[current].libraries.push_back({name, path.starts_with("/") ? path : ""});
    }
    return all;
}

std::vector<Needs> needs_of(const std::vector<std::string>& files) {
    for (const std::string& f : files)
        if (!std::filesystem::exists(f))
            throw DataError({.what = "there is no such file", .where = f});
    if (files.empty()) return {};
    std::vector<std::string> words = {"ldd"};
    words.insert(words.end(), files.begin(), files.end());
    const ToolOutput o = run_tool(words, 60.0);
    if (o.missing || o.late)
        throw DataError({.what = "cannot list the shared libraries",
                         .where = "ldd",
                         .expected = "the program `ldd` of glibc",
                         .actual = o.missing ? "none on the PATH" : "no answer in 60 s",
                         .hint = "install libc-bin (Debian) or glibc-common (Red Hat)"});
    return parse_ldd(files, o.out);
}

bool is_of_the_node(const std::string& name) {
    static const char* const kExact[] = {
        // glibc
        "libc.so.6", "libm.so.6", "libmvec.so.1", "libdl.so.2", "libpthread.so.0", "librt.so.1",
        "libresolv.so.2", "libutil.so.1", "libanl.so.1", "libnsl.so.1", "libthread_db.so.1",
        "libBrokenLocale.so.1", "libc_malloc_debug.so.0",
        // drivers
        "libcuda.so.1", "libibverbs.so.1", "librdmacm.so.1", "libibumad.so.3"};
    if (std::ranges::find(kExact, name) != std::end(kExact)) return true;
    return name.starts_with("ld-linux") || name.starts_with("libnss_") ||
           name.starts_with("libnvidia-");
}

}  // namespace stoa
