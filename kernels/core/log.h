#pragma once
// One process-wide log line format. Rank 0 speaks to the terminal, every rank to its own file.
#include <fmt/format.h>

#include <string>

namespace stoa {

enum class LogLevel { info, warn, error };

/// Opens <dir>/rank-NNN.log (appending) for this rank; only rank 0 also prints to stderr.
/// errors: DataError when the file cannot be opened.
void open_log(const std::string& dir, int rank);
void set_log_rank(int rank);  // before a run directory exists
void log_line(LogLevel level, const std::string& text);
/// Of this rank's file, for what writes without the log's help; stderr before there is one.
int log_fd();

template <class... Args>
void log_info(fmt::format_string<Args...> f, Args&&... args) {
    log_line(LogLevel::info, fmt::format(f, std::forward<Args>(args)...));
}
template <class... Args>
void log_warn(fmt::format_string<Args...> f, Args&&... args) {
    log_line(LogLevel::warn, fmt::format(f, std::forward<Args>(args)...));
}
template <class... Args>
void log_error(fmt::format_string<Args...> f, Args&&... args) {
    log_line(LogLevel::error, fmt::format(f, std::forward<Args>(args)...));
}

}  // namespace stoa
