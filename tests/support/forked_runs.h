#pragma once
// Independent pieces of work in processes of their own, so that each may use kernels of one thread.
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace stoa::test {

/// fn(i) for each i < count in a process of its own, `jobs` at a time; what they returned (less
/// than 16 KiB of JSON each), in the order of i: null where the process died. Each result is also a
/// line of stderr as it comes. The caller has started no threads.
template <class Fn>
std::vector<nlohmann::json> in_processes(std::size_t count, int jobs, const Fn& fn) {
    struct Child {
        std::size_t index;
        int pipe;
    };
    std::map<pid_t, Child> running;
    std::vector<nlohmann::json> results(count);
    for (std::size_t next = 0; next < count || !running.empty();) {
        if (next < count && static_cast<int>(running.size()) < jobs) {
            int ends[2];
            if (pipe(ends) != 0) break;
            const pid_t pid = fork();
            if (pid == 0) {
                const std::string text = fn(next).dump();  // fits into the pipe
                _exit(write(ends[1], text.data(), text.size()) < 0 ? 1 : 0);
            }
            close(ends[1]);
            if (pid < 0) break;
            running[pid] = {next++, ends[0]};
            continue;
        }
        int status = 0;
        const pid_t pid = wait(&status);
        if (pid < 0) break;
        const Child child = running.at(pid);
        running.erase(pid);
        std::string text(1 << 14, '\0');
        const ssize_t n = read(child.pipe, text.data(), text.size());
        close(child.pipe);
        if (status == 0 && n > 0)
            results[child.index] =
                nlohmann::json::parse(text.substr(0, static_cast<std::size_t>(n)));
        fmt::print(stderr, "{}\n", results[child.index].dump());
    }
    return results;
}

}  // namespace stoa::test
