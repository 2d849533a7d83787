#pragma once
// Bytes on a disk that may be full, slow or gone: every call here succeeds or throws a
// CheckpointError that names the file and the system's reason.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "checkpoints/courtesy.h"
#include "kernels/core/error.h"

struct XXH3_state_s;

namespace stoa {

using Bytes = std::span<const std::byte>;

/// A running XXH3-128 (seed 0), printed as 32 hexadecimal digits, high half first.
class Xxh3 {
public:
    Xxh3();
    ~Xxh3();
    Xxh3(const Xxh3&) = delete;
    Xxh3& operator=(const Xxh3&) = delete;
    void update(Bytes bytes);
    std::string hex() const;

private:
    XXH3_state_s* state_;
};
std::string xxh3_hex(Bytes bytes);
std::string xxh3_hex(const std::string& text);

/// Owns a file descriptor.
class File {
public:
    static File open_read(const std::string& path);
    /// Creates the file and reserves `bytes` on the device before anything is written: a full disk
    /// is met here or not at all (but for copy-on-write file systems, whose pwrite reports it
    /// later).
    static File create(const std::string& path, std::int64_t bytes);
    File(File&& other) noexcept;
    File& operator=(File&&) = delete;
    ~File();
    std::int64_t bytes() const;
    void read_at(std::int64_t offset, std::span<std::byte> out) const;  // all of `out`, or an error
    void write_at(std::int64_t offset, Bytes bytes);
    void sync();
    /// From here on past the page cache, where the file system can: then offsets, sizes and memory
    /// are multiples of kDirectBytes.
    bool bypass_cache(bool on);
    /// Starts writing out [begin, end) and waits for what lies before: no long queue for sync().
    void pace(std::int64_t begin, std::int64_t end);

private:
    File(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
    int fd_;
    std::string path_;
};

constexpr std::size_t kDirectBytes = 4096;

/// Writes a file of known size from front to end, hashing on the way. Past the page cache where the
/// file system allows it: the processor then has little to do, and no dirty page waits for the
/// sync. Long pieces whose place in memory and in the file is a multiple of kDirectBytes are not
/// copied either. errors: CheckpointError
class StreamWriter {
public:
    /// With `courtesy`, which it asks after every large write.
    StreamWriter(const std::string& path, std::int64_t bytes, Courtesy* courtesy = nullptr);
    /// `also` takes the same bytes while they are in the cache.
    void append(Bytes bytes, Xxh3* also = nullptr);
    std::int64_t position() const { return at_ + static_cast<std::int64_t>(filled_); }
    /// Writes the rest and syncs. Returns the hash of the file.
    std::string finish();

private:
    static constexpr std::size_t kStageBytes = std::size_t{1} << 20;
    static constexpr std::size_t kStraightBytes = std::size_t{16} << 20;  // of one write
    struct Free {
        void operator()(std::byte* p) const;
    };
    void hash(Bytes bytes, Xxh3* also);
    std::size_t straight(Bytes bytes) const;
    void flush();
    File file_;
    Xxh3 hash_;
    std::unique_ptr<std::byte, Free> stage_;
    std::size_t filled_ = 0;
    std::int64_t at_ = 0;
    bool direct_;
    Courtesy* courtesy_;
};

/// The hash of what the device holds: past the page cache where the file system allows it.
std::string hash_stored_file(const std::string& path, Courtesy* courtesy = nullptr);

/// errors: CheckpointError, also above `most_bytes` (a damaged directory may hold anything)
std::string read_text(const std::string& path, std::int64_t most_bytes = std::int64_t{1} << 30);
/// Bytes that this user may still take on the file system of `dir`. errors: CheckpointError
std::int64_t free_bytes(const std::string& dir);
/// Creates `path` with `text`, reserved and synced.
void write_text_synced(const std::string& path, const std::string& text);
/// Bytes that this process has read and written here so far: whether a long wait goes on.
std::int64_t bytes_moved();
std::string hash_file(const std::string& path);
/// Makes the names in a directory durable.
void sync_directory(const std::string& path);
void rename_path(const std::string& from, const std::string& to);
/// What a checkpoint of `bytes` wants to find free: 1.2 times as much.
std::int64_t wanted_free_bytes(std::int64_t bytes);
/// errors: CheckpointError unless wanted_free_bytes are free on the file system of `dir`
void require_free_space(const std::string& dir, std::int64_t bytes);
/// "12.3 MiB"
std::string format_bytes(std::int64_t bytes);
/// "cannot write: No space left on device" for `path`, from errno.
CheckpointError io_error(const std::string& path, const std::string& doing, int error_number);

}  // namespace stoa
