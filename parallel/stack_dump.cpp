#include "parallel/stack_dump.h"

#include <dirent.h>
#include <execinfo.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace stoa {
namespace {

// What the caller tells the handler. Signal handlers can reach nothing but globals.
std::atomic<int> dump_fd{-1};
std::atomic<bool> dump_done{true};

// Async-signal-safe: backtrace() after its first use, backtrace_symbols_fd() always.
extern "C" void on_dump_signal(int) {
    const int error = errno;
    void* frames[64];
    const int n = backtrace(frames, 64);
    const int fd = dump_fd.load();
    constexpr int kOwnFrames = 2;  // this function and the signal's return
    if (fd >= 0 && n > kOwnFrames) backtrace_symbols_fd(frames + kOwnFrames, n - kOwnFrames, fd);
    dump_done.store(true);
    errno = error;
}

void write_text(int fd, const char* text) {
    if (write(fd, text, std::strlen(text)) < 0) return;  // nothing better to do
}

void dump_thread(int fd, int tid) {
    char path[64], name[32] = "?", line[128];
    std::snprintf(path, sizeof path, "/proc/self/task/%d/comm", tid);
    if (std::FILE* f = std::fopen(path, "r")) {
        if (std::fgets(name, sizeof name, f) == nullptr) std::strcpy(name, "?");
        std::fclose(f);
    }
    name[std::strcspn(name, "\n")] = '\0';
    std::snprintf(line, sizeof line, "-- thread %d %s%s\n", tid, name,
                  tid == getpid() ? " (main)" : "");
    write_text(fd, line);
    dump_done.store(false);
    if (syscall(SYS_tgkill, getpid(), tid, stack_dump_signal()) != 0) return;
    for (int ms = 0; ms < 100 && !dump_done.load(); ++ms) {
        constexpr timespec kMillisecond{.tv_sec = 0, .tv_nsec = 1'000'000};
        nanosleep(&kMillisecond, nullptr);
    }
    if (!dump_done.load()) write_text(fd, "   does not answer\n");
}

}  // namespace

int stack_dump_signal() { return SIGRTMIN + 7; }

void install_stack_dump() {
    void* frames[4];
    backtrace(frames, 4);  // loads what it needs now, not in a handler
    struct sigaction action {};
    action.sa_handler = &on_dump_signal;
    action.sa_flags = SA_RESTART;
    sigfillset(&action.sa_mask);
    sigaction(stack_dump_signal(), &action, nullptr);
}

void dump_stacks(int fd) {
    DIR* const tasks = opendir("/proc/self/task");
    if (tasks == nullptr) return;
    dump_fd.store(fd);
    const auto self = static_cast<int>(syscall(SYS_gettid));
    write_text(fd, "stacks of all threads:\n");
    while (const dirent* entry = readdir(tasks)) {
        const int tid = std::atoi(entry->d_name);
        if (tid > 0 && tid != self) dump_thread(fd, tid);
    }
    closedir(tasks);
    write_text(fd, "end of stacks\n");
}

}  // namespace stoa
