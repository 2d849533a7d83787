#pragma once
// Running a scheduler's own programs (sbatch, squeue, scontrol) and reading what they say.
#include <sys/types.h>

#include <string>
#include <vector>

namespace stoa {

/// One program that runs beside us. Its standard input is empty, its signals are the defaults.
class Tool {
public:
    Tool() = default;
    /// `words[0]` is looked for on the PATH.     errors: none here; failed() says why not
    explicit Tool(const std::vector<std::string>& words);
    Tool(Tool&& other) noexcept;
    Tool& operator=(Tool&& other) noexcept;
    ~Tool();  // ends it
    Tool(const Tool&) = delete;
    Tool& operator=(const Tool&) = delete;

    /// Takes what it has printed; true once it is over. Waits at most `wait_ms` for news.
    bool done(int wait_ms = 0);
    int code() const { return code_; }  // 128 + n: ended by signal n; -1: not over, or not known
    int failed() const { return failed_; }  // errno of the start, 0: it runs or ran
    const std::string& out() const { return out_; }
    const std::string& err() const { return err_; }

private:
    void take(int& fd, std::string& text);
    void stop() noexcept;
    pid_t pid_ = 0;
    int out_fd_ = -1, err_fd_ = -1, code_ = -1, failed_ = 0;
    std::string out_, err_;
};

struct ToolOutput {
    int code = -1;         // -1: not started, or it took too long
    bool missing = false;  // there is no such program
    bool late = false;     // it was ended after `seconds`
    std::string out, err;
};
/// Runs a program to its end, at most `seconds` long.
ToolOutput run_tool(const std::vector<std::string>& words, double seconds);

}  // namespace stoa
