#pragma once
// Running the real binary, for fault tests and acceptance programs.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace stoa::test {

namespace fs = std::filesystem;

/// The `stoa` binary: $STOA_BIN, else the one of this build.
inline std::string stoa_binary() {
    if (const char* path = std::getenv("STOA_BIN")) return path;
    const fs::path self = fs::read_symlink("/proc/self/exe");
    for (fs::path dir = self.parent_path(); dir.has_relative_path(); dir = dir.parent_path())
        if (fs::is_regular_file(dir / "stoa")) return (dir / "stoa").string();
    return "stoa";
}

/// The repository: $STOA_SOURCE_DIR, else the folder above the build that holds quickstart.sh.
inline std::string source_dir() {
    if (const char* path = std::getenv("STOA_SOURCE_DIR")) return path;
    for (fs::path dir = fs::read_symlink("/proc/self/exe").parent_path(); dir.has_relative_path();
         dir = dir.parent_path())
        if (fs::exists(dir / "quickstart.sh")) return dir.string();
    return ".";
}

/// A folder that vanishes with the object.
struct TempDir {
    std::string path;
    TempDir() {
        std::string pattern = (fs::temp_directory_path() / "stoa-test-XXXXXX").string();
        path = mkdtemp(pattern.data());
    }
    ~TempDir() {
        std::error_code ignored;
        fs::remove_all(path, ignored);
    }
    TempDir(const TempDir&) = delete;
    TempDir& operator=(const TempDir&) = delete;
    std::string operator/(const std::string& name) const { return path + "/" + name; }
};

inline void write_text(const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}
inline std::string read_text(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

struct Outcome {
    int code = -1;       // exit code; 128 + n when ended by signal n
    std::string output;  // stdout and stderr together
};

/// Runs a shell command to its end. The environment lets mpirun start as root on few cores.
inline Outcome run_shell(const std::string& command) {
    const std::string line =
        "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
        "OMPI_MCA_rmaps_base_oversubscribe=1 "
        "OMPI_MCA_hwloc_base_binding_policy=none; exec 2>&1; " +
        command;
    Outcome outcome;
    std::FILE* pipe = popen(line.c_str(), "r");
    std::array<char, 4096> chunk;
    while (const std::size_t n = std::fread(chunk.data(), 1, chunk.size(), pipe))
        outcome.output.append(chunk.data(), n);
    const int status = pclose(pipe);
    outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return outcome;
}

}  // namespace stoa::test
