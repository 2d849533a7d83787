#include "launcher/run_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <utility>

#include "kernels/core/error.h"
#include "parallel/mpi_session.h"

namespace stoa {
namespace {

constexpr double kLiveSeconds = 30.0;  // an owner touches its lock several times in this

std::string read_all(int fd) {
    std::string text(4096, '\0');
    const ssize_t n = pread(fd, text.data(), text.size(), 0);
    text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
    return text;
}

std::optional<LockOwner> owner_in(const std::string& text) {
    const auto j = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!j.is_object() || j.value("pid", 0) <= 0) return {};
    return LockOwner{.host = j.value("host", ""),
                     .pid = j.value("pid", 0),
                     .start_time = j.value("start_time", std::int64_t{0}),
                     .what = j.value("what", ""),
                     .since = j.value("since", "")};
}

std::string describe(const LockOwner& o) {
    return fmt::format("`{}`, pid {} on {} since {}", o.what, o.pid, o.host, o.since);
}

ConfigError taken(const std::string& path, const std::string& by, const std::string& hint) {
    return ConfigError({.what = "this run directory is in use",
                        .where = path,
                        .expected = "one training job per run directory",
                        .actual = by,
                        .hint = hint});
}

// By the clock of the file system that holds both files.
double age_seconds(int fd, const std::string& path) {
    struct stat lock {
    }, probe{};
    if (fstat(fd, &lock) != 0) return 0.0;
    const std::string beside = fmt::format("{}.{}.{}", path, host_name(), getpid());
    const int p = open(beside.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (p < 0) return 0.0;
    (void)!write(p, "x", 1);
    fstat(p, &probe);
    close(p);
    unlink(beside.c_str());
    return static_cast<double>(probe.st_mtim.tv_sec - lock.st_mtim.tv_sec) +
           1e-9 * static_cast<double>(probe.st_mtim.tv_nsec - lock.st_mtim.tv_nsec);
}

std::string utc_now() {
    const std::time_t now = std::time(nullptr);
    std::tm utc{};
    gmtime_r(&now, &utc);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
    return text;
}

void put(int fd, const std::string& text) {
    (void)!ftruncate(fd, 0);
    (void)!pwrite(fd, text.data(), text.size(), 0);
}

// Ours is the lock of the kernel; is the owner that the file names alive all the same?
void refuse_live_owner(int fd, const std::string& path, const LockOwner& owner) {
    if (owner.host == host_name()) {
        if (owner.pid == getpid() || process_start_time(owner.pid) != owner.start_time) return;
        throw taken(path, describe(owner), "wait for it, stop it, or choose another run.name");
    }
    const double age = age_seconds(fd, path);
    if (age > kLiveSeconds) return;
    throw taken(path, fmt::format("{}, heard {:.0f} s ago", describe(owner), age),
                fmt::format("stop it there; when that host is gone for good, wait {:.0f} s",
                            kLiveSeconds - age));
}

}  // namespace

std::int64_t process_start_time(int pid) {
    std::ifstream in(fmt::format("/proc/{}/stat", pid));
    std::string text;
    std::getline(in, text);
    const auto name_end = text.rfind(')');  // the name may hold spaces
    if (name_end == std::string::npos) return 0;
    std::istringstream fields(text.substr(name_end + 1));
    std::string field;
    for (int i = 3; i <= 22; ++i)
        if (!(fields >> field)) return 0;
    return std::atoll(field.c_str());
}

RunLock::RunLock(const std::string& run_dir, const std::string& what)
    : path_(run_dir + "/run.lock") {
    const int fd = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        throw DataError({.what = "cannot make the lock of the run directory",
                         .where = path_,
                         .actual = std::strerror(errno),
                         .hint = "make it writable or choose another with run.dir=PATH"});
    const bool locked = flock(fd, LOCK_EX | LOCK_NB) == 0;
    const int failure = errno;
    const auto owner = owner_in(read_all(fd));
    if (!locked && failure == EWOULDBLOCK) {
        close(fd);
        throw taken(path_, owner ? describe(*owner) : "another process",
                    "wait for it, stop it, or choose another run.name");
    }
    try {
        if (owner) refuse_live_owner(fd, path_, *owner);
    } catch (const Error&) {
        close(fd);
        throw;
    }
    if (owner) stale_ = describe(*owner);
    fd_ = fd;
    const nlohmann::ordered_json mine{{"host", host_name()},
                                      {"pid", getpid()},
                                      {"start_time", process_start_time(getpid())},
                                      {"what", what},
                                      {"since", utc_now()}};
    put(fd_, mine.dump() + "\n");
}

RunLock::RunLock(RunLock&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      path_(std::move(other.path_)),
      stale_(std::move(other.stale_)) {}

RunLock& RunLock::operator=(RunLock&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(path_, other.path_);
    std::swap(stale_, other.stale_);
    return *this;
}

RunLock::~RunLock() {
    if (fd_ < 0) return;
    put(fd_, "{}\n");  // the file stays: removing it would race with who opens it now
    close(fd_);
}

void RunLock::touch() const {
    if (fd_ >= 0) futimens(fd_, nullptr);
}

}  // namespace stoa
