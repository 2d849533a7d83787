#include "checkpoints/file_io.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

namespace stoa {
namespace {

constexpr std::size_t kChunkBytes = std::size_t{4} << 20;

std::string to_hex(const XXH128_hash_t& h) {
    return fmt::format("{:016x}{:016x}", h.high64, h.low64);
}

std::string hint_for(int error_number) {
    switch (error_number) {
        case ENOSPC:
        case EDQUOT:
            return "free space there (older checkpoints?) or set another run directory";
        case EROFS:
        case EACCES:
        case EPERM:
            return "the run directory must be writable for this user";
        case ENOENT:
            return "deleted, or not visible here: all hosts need the run directory on a "
                   "shared file system";
        default:
            return "";
    }
}

}  // namespace

CheckpointError io_error(const std::string& path, const std::string& doing, int error_number) {
    return CheckpointError({.what = "cannot " + doing,
                            .where = path,
                            .actual = std::strerror(error_number),
                            .hint = hint_for(error_number)});
}

Xxh3::Xxh3() : state_(XXH3_createState()) {
    if (state_ == nullptr) throw std::bad_alloc();
    XXH3_128bits_reset(state_);
}
Xxh3::~Xxh3() { XXH3_freeState(state_); }
void Xxh3::update(Bytes bytes) { XXH3_128bits_update(state_, bytes.data(), bytes.size()); }
std::string Xxh3::hex() const { return to_hex(XXH3_128bits_digest(state_)); }

std::string xxh3_hex(Bytes bytes) { return to_hex(XXH3_128bits(bytes.data(), bytes.size())); }
std::string xxh3_hex(const std::string& text) {
    return to_hex(XXH3_128bits(text.data(), text.size()));
}

File File::open_read(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) throw io_error(path, "open", errno);
    File file(fd, path);
    struct stat st {};
    if (::fstat(fd, &st) != 0) throw io_error(path, "stat", errno);
    if (!S_ISREG(st.st_mode))
        throw CheckpointError({.what = "not a file", .where = path, .expected = "a regular file"});
    return file;
}

File File::create(const std::string& path, std::int64_t bytes) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) throw io_error(path, "create", errno);
    File file(fd, path);
    if (bytes > 0) {
        int error_number = 0;
        do
            error_number = ::posix_fallocate(fd, 0, bytes);
        while (error_number == EINTR);
        if (error_number != 0)
            throw io_error(path, fmt::format("reserve {}", format_bytes(bytes)), error_number);
    }
    return file;
}

File::File(File&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}
File::~File() {
    if (fd_ >= 0) ::close(fd_);
}

std::int64_t File::bytes() const {
    struct stat st {};
    if (::fstat(fd_, &st) != 0) throw io_error(path_, "stat", errno);
    return st.st_size;
}

void File::read_at(std::int64_t offset, std::span<std::byte> out) const {
    while (!out.empty()) {
        const ssize_t n = ::pread(fd_, out.data(), out.size(), offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) throw io_error(path_, "read", errno);
        if (n == 0)
            throw CheckpointError(
                {.what = "file ends early",
                 .where = path_,
                 .expected = fmt::format("{} more bytes at {}", out.size(), offset)});
        offset += n;
        out = out.subspan(static_cast<std::size_t>(n));
    }
}

void File::write_at(std::int64_t offset, Bytes bytes) {
    while (!bytes.empty()) {
        const ssize_t n = ::pwrite(fd_, bytes.data(), bytes.size(), offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) throw io_error(path_, "write", n < 0 ? errno : EIO);
        offset += n;
        bytes = bytes.subspan(static_cast<std::size_t>(n));
    }
}

void File::sync() {
    if (::fsync(fd_) != 0) throw io_error(path_, "sync", errno);
}

std::string read_text(const std::string& path) {
    const File file = File::open_read(path);
    std::string text(static_cast<std::size_t>(file.bytes()), '\0');
    file.read_at(0, std::as_writable_bytes(std::span(text)));
    return text;
}

void write_text_synced(const std::string& path, const std::string& text) {
    File file = File::create(path, static_cast<std::int64_t>(text.size()));
    file.write_at(0, std::as_bytes(std::span(text)));
    file.sync();
}

std::string hash_file(const std::string& path) {
    const File file = File::open_read(path);
    const std::int64_t bytes = file.bytes();
    std::vector<std::byte> chunk(
        std::min<std::size_t>(kChunkBytes, static_cast<std::size_t>(bytes)));
    Xxh3 hash;
    for (std::int64_t at = 0; at < bytes;) {
        const auto n = std::min<std::int64_t>(static_cast<std::int64_t>(chunk.size()), bytes - at);
        const auto part = std::span(chunk).first(static_cast<std::size_t>(n));
        file.read_at(at, part);
        hash.update(part);
        at += n;
    }
    return hash.hex();
}

void sync_directory(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) throw io_error(path, "open", errno);
    const int rc = ::fsync(fd);
    const int error_number = errno;
    ::close(fd);
    if (rc != 0 && error_number != EINVAL) throw io_error(path, "sync", error_number);
}

void rename_path(const std::string& from, const std::string& to) {
    if (std::rename(from.c_str(), to.c_str()) != 0) throw io_error(to, "rename " + from, errno);
}

void require_free_space(const std::string& dir, std::int64_t bytes) {
    struct statvfs fs {};
    if (::statvfs(dir.c_str(), &fs) != 0) throw io_error(dir, "query free space", errno);
    const double needed = 1.1 * static_cast<double>(bytes);
    const double available = static_cast<double>(fs.f_bavail) * static_cast<double>(fs.f_frsize);
    if (available < needed)
        throw CheckpointError({.what = "not enough free space for a checkpoint",
                               .where = dir,
                               .expected = format_bytes(static_cast<std::int64_t>(needed)),
                               .actual = format_bytes(static_cast<std::int64_t>(available)),
                               .hint = hint_for(ENOSPC)});
}

std::string format_bytes(std::int64_t bytes) {
    if (bytes < 10240) return fmt::format("{} bytes", bytes);
    const char* units[] = {"KiB", "MiB", "GiB", "TiB"};
    double value = static_cast<double>(bytes) / 1024.0;
    std::size_t unit = 0;
    while (value >= 10240.0 && unit + 1 < std::size(units)) {
        value /= 1024.0;
        ++unit;
    }
    return fmt::format("{:.1f} {}", value, units[unit]);
}

}  // namespace stoa
