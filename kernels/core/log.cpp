#include "kernels/core/log.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <memory>

#include "kernels/core/error.h"

namespace stoa {
namespace {

// The log is the one piece of process-wide state: it has no owner because everything may speak.
struct CloseFile {
    void operator()(std::FILE* f) const { std::fclose(f); }
};
std::unique_ptr<std::FILE, CloseFile> log_file;
int log_rank = 0;

std::string timestamp() {
    const std::time_t now = std::time(nullptr);
    std::tm utc{};
    gmtime_r(&now, &utc);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
    return text;
}

}  // namespace

void set_log_rank(int rank) { log_rank = rank; }

void open_log(const std::string& dir, int rank) {
    log_rank = rank;
    const std::string path = fmt::format("{}/rank-{:03}.log", dir, rank);
    log_file.reset(std::fopen(path.c_str(), "a"));
    if (!log_file)
        throw DataError(
            {.what = "cannot open log file",
             .where = path,
             .actual = std::strerror(errno),
             .hint = "make the run directory writable or choose another with run.dir=PATH"});
}

int log_fd() { return log_file ? fileno(log_file.get()) : 2; }

void log_line(LogLevel level, const std::string& text) {
    const char* name = level == LogLevel::info   ? "info"
                       : level == LogLevel::warn ? "warning"
                                                 : "error";
    if (log_file) {
        fmt::print(log_file.get(), "{} {} [{}] {}\n", timestamp(), name, log_rank, text);
        std::fflush(log_file.get());
    }
    if (log_rank != 0) return;
    if (level == LogLevel::info)
        fmt::print(stderr, "{}\n", text);
    else
        fmt::print(stderr, "{}: {}\n", name, text);
}

}  // namespace stoa
