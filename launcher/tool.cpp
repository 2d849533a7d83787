#include "launcher/tool.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <utility>

#include "launcher/bundle/inside.h"

namespace stoa {
namespace {

void close_fd(int& fd) {
    if (fd >= 0) close(fd);
    fd = -1;
}

}  // namespace

Tool::Tool(const std::vector<std::string>& words) {
    int out[2] = {-1, -1}, err[2] = {-1, -1};
    if (pipe2(out, O_CLOEXEC | O_NONBLOCK) != 0 || pipe2(err, O_CLOEXEC | O_NONBLOCK) != 0) {
        failed_ = errno;
        close_fd(out[0]);
        close_fd(out[1]);
        return;
    }
    // O_NONBLOCK is for our ends; the child's are made blocking by what it inherits from dup2.
    fcntl(out[1], F_SETFL, 0);
    fcntl(err[1], F_SETFL, 0);
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, out[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&files, err[1], STDERR_FILENO);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    std::vector<char*> args;
    for (const std::string& w : words)
        args.push_back(const_cast<char*>(w.c_str()));
    args.push_back(nullptr);
    std::vector<std::string> entries = tool_environment();
    std::vector<char*> environment;
    for (std::string& e : entries)
        environment.push_back(e.data());
    environment.push_back(nullptr);
    failed_ = posix_spawnp(&pid_, args[0], &files, &attributes, args.data(), environment.data());
    if (failed_ != 0) pid_ = 0;
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&files);
    close(out[1]);
    close(err[1]);
    out_fd_ = out[0];
    err_fd_ = err[0];
    if (failed_ != 0) {
        close_fd(out_fd_);
        close_fd(err_fd_);
    }
}

Tool::Tool(Tool&& o) noexcept { *this = std::move(o); }

Tool& Tool::operator=(Tool&& o) noexcept {
    if (this == &o) return *this;
    stop();
    pid_ = std::exchange(o.pid_, 0);
    out_fd_ = std::exchange(o.out_fd_, -1);
    err_fd_ = std::exchange(o.err_fd_, -1);
    code_ = std::exchange(o.code_, -1);
    failed_ = std::exchange(o.failed_, 0);
    out_ = std::move(o.out_);
    err_ = std::move(o.err_);
    return *this;
}

Tool::~Tool() { stop(); }

void Tool::stop() noexcept {
    close_fd(out_fd_);
    close_fd(err_fd_);
    if (pid_ > 0) {
        kill(pid_, SIGKILL);
        while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
        }
    }
    pid_ = 0;
}

void Tool::take(int& fd, std::string& text) {
    char chunk[4096];
    for (;;) {
        const ssize_t n = fd < 0 ? -1 : read(fd, chunk, sizeof chunk);
        if (n > 0) {
            text.append(chunk, static_cast<std::size_t>(n));
            continue;
        }
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) close_fd(fd);
        return;
    }
}

bool Tool::done(int wait_ms) {
    if (pid_ <= 0) return true;
    if (wait_ms > 0) {
        pollfd news[2] = {{out_fd_, POLLIN, 0}, {err_fd_, POLLIN, 0}};  // -1 is left out
        poll(news, 2, out_fd_ < 0 && err_fd_ < 0 ? std::min(wait_ms, 10) : wait_ms);
    }
    int status = 0;
    const pid_t over = waitpid(pid_, &status, WNOHANG);
    take(out_fd_, out_);
    take(err_fd_, err_);
    if (over == 0 || (over < 0 && errno == EINTR)) return false;
    // A caller that waits for any child may have met it first: then its code is not known.
    if (over > 0) code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    pid_ = 0;
    close_fd(out_fd_);
    close_fd(err_fd_);
    return true;
}

ToolOutput run_tool(const std::vector<std::string>& words, double seconds) {
    using Clock = std::chrono::steady_clock;
    const auto end = Clock::now() + std::chrono::duration<double>(seconds);
    Tool tool(words);
    ToolOutput result{.missing = tool.failed() == ENOENT || tool.failed() == ENOTDIR ||
                                 tool.failed() == EACCES};
    while (!tool.done(50))
        if (Clock::now() > end) {
            result.late = true;
            break;
        }
    result.code = tool.code();
    result.out = tool.out();
    result.err = tool.err();
    return result;
}

}  // namespace stoa
