#include "checkpoints/file_io.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <xxh_x86dispatch.h>  // the widest vectors that the processor has
#else
#include <xxhash.h>
#endif

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace stoa {
namespace {

constexpr std::size_t kChunkBytes = std::size_t{4} << 20;
std::atomic<std::int64_t> moved = 0;  // bytes, by every thread

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
    // A pipe of that name would keep us waiting for its writer.
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
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
        moved += n;
        offset += n;
        out = out.subspan(static_cast<std::size_t>(n));
    }
}

void File::write_at(std::int64_t offset, Bytes bytes) {
    while (!bytes.empty()) {
        const ssize_t n = ::pwrite(fd_, bytes.data(), bytes.size(), offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) throw io_error(path_, "write", n < 0 ? errno : EIO);
        moved += n;
        offset += n;
        bytes = bytes.subspan(static_cast<std::size_t>(n));
    }
}

void File::sync() {
    if (::fsync(fd_) != 0) throw io_error(path_, "sync", errno);
}

bool File::bypass_cache(bool on) {
    const int flags = ::fcntl(fd_, F_GETFL);
    return flags >= 0 && ::fcntl(fd_, F_SETFL, on ? flags | O_DIRECT : flags & ~O_DIRECT) == 0;
}

void File::pace(std::int64_t begin, std::int64_t end) {
    (void)::sync_file_range(fd_, begin, end - begin, SYNC_FILE_RANGE_WRITE);
    constexpr unsigned kWait =
        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    if (begin > 0) (void)::sync_file_range(fd_, 0, begin, kWait);
}

namespace {

std::byte* aligned_bytes(std::size_t bytes) {
    auto* const p = static_cast<std::byte*>(std::aligned_alloc(kDirectBytes, bytes));
    if (p == nullptr) throw std::bad_alloc();
    return p;
}

}  // namespace

void StreamWriter::Free::operator()(std::byte* p) const { std::free(p); }

StreamWriter::StreamWriter(const std::string& path, std::int64_t bytes, Courtesy* courtesy)
    : file_(File::create(path, bytes)),
      stage_(aligned_bytes(kStageBytes)),
      direct_(file_.bypass_cache(true)),
      courtesy_(courtesy) {}

void StreamWriter::hash(Bytes bytes, Xxh3* also) {
    constexpr std::size_t kPart = std::size_t{1} << 17;  // read from memory once
    for (; !bytes.empty(); bytes = bytes.subspan(std::min(bytes.size(), kPart))) {
        const Bytes part = bytes.first(std::min(bytes.size(), kPart));
        hash_.update(part);
        if (also != nullptr) also->update(part);
    }
}

// How many of these bytes the device can take from where they are.
std::size_t StreamWriter::straight(Bytes bytes) const {
    const bool aligned = reinterpret_cast<std::uintptr_t>(bytes.data()) % kDirectBytes == 0 &&
                         filled_ % kDirectBytes == 0;
    if (!direct_ || !aligned || bytes.size() < kStageBytes) return 0;
    return std::min(bytes.size(), kStraightBytes) / kDirectBytes * kDirectBytes;
}

void StreamWriter::append(Bytes bytes, Xxh3* also) {
    while (!bytes.empty()) {
        const std::size_t whole = straight(bytes);
        const Bytes part =
            bytes.first(whole > 0 ? whole : std::min(bytes.size(), kStageBytes - filled_));
        hash(part, also);
        if (whole > 0) {
            flush();
            file_.write_at(at_, part);
            at_ += static_cast<std::int64_t>(whole);
        } else {
            std::memcpy(stage_.get() + filled_, part.data(), part.size());
            filled_ += part.size();
            if (filled_ == kStageBytes) flush();
        }
        bytes = bytes.subspan(part.size());
        if (courtesy_ != nullptr && filled_ == 0) courtesy_->pause();
    }
}

void StreamWriter::flush() {
    const Bytes whole(stage_.get(), filled_);
    const std::size_t blocks = direct_ ? filled_ / kDirectBytes * kDirectBytes : 0;
    file_.write_at(at_, whole.first(blocks));
    if (blocks < filled_) {  // no direct writing here, or the end of the file
        if (direct_) direct_ = !file_.bypass_cache(false);
        file_.write_at(at_ + static_cast<std::int64_t>(blocks), whole.subspan(blocks));
        file_.pace(at_, at_ + static_cast<std::int64_t>(filled_));
    }
    at_ += static_cast<std::int64_t>(filled_);
    filled_ = 0;
}

std::string StreamWriter::finish() {
    flush();
    file_.sync();
    return hash_.hex();
}

std::string hash_stored_file(const std::string& path, Courtesy* courtesy) {
    File file = File::open_read(path);
    const std::int64_t bytes = file.bytes();
    const bool direct = file.bypass_cache(true);
    const auto chunk =
        std::unique_ptr<std::byte, decltype(&std::free)>(aligned_bytes(kChunkBytes), &std::free);
    Xxh3 hash;
    for (std::int64_t at = 0; at < bytes;) {
        const auto n = std::min<std::int64_t>(kChunkBytes, bytes - at);
        if (direct && n % static_cast<std::int64_t>(kDirectBytes) != 0) file.bypass_cache(false);
        const std::span part(chunk.get(), static_cast<std::size_t>(n));
        file.read_at(at, part);
        hash.update(part);
        at += n;
        if (courtesy != nullptr && at < bytes) courtesy->pause();
    }
    return hash.hex();
}

std::string read_text(const std::string& path, std::int64_t most_bytes) {
    const File file = File::open_read(path);
    if (file.bytes() > most_bytes)
        throw CheckpointError({.what = "file is too large",
                               .where = path,
                               .expected = "at most " + format_bytes(most_bytes),
                               .actual = format_bytes(file.bytes())});
    std::string text(static_cast<std::size_t>(file.bytes()), '\0');
    file.read_at(0, std::as_writable_bytes(std::span(text)));
    return text;
}

void write_text_synced(const std::string& path, const std::string& text) {
    File file = File::create(path, static_cast<std::int64_t>(text.size()));
    file.write_at(0, std::as_bytes(std::span(text)));
    file.sync();
}

std::int64_t bytes_moved() { return moved; }

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

std::int64_t free_bytes(const std::string& dir) {
    struct statvfs fs {};
    if (::statvfs(dir.c_str(), &fs) != 0) throw io_error(dir, "query free space", errno);
    return static_cast<std::int64_t>(static_cast<double>(fs.f_bavail) *
                                     static_cast<double>(fs.f_frsize));
}

std::int64_t wanted_free_bytes(std::int64_t bytes) { return bytes + bytes / 5; }

void require_free_space(const std::string& dir, std::int64_t bytes) {
    const std::int64_t wanted = wanted_free_bytes(bytes), available = free_bytes(dir);
    if (available < wanted)
        throw CheckpointError({.what = "not enough free space for a checkpoint",
                               .where = dir,
                               .expected = format_bytes(wanted),
                               .actual = format_bytes(available),
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
