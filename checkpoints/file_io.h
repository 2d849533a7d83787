#pragma once
// Bytes on a disk that may be full, slow or gone: every call here succeeds or throws a
// CheckpointError that names the file and the system's reason.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

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

private:
    File(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
    int fd_;
    std::string path_;
};

std::string read_text(const std::string& path);
/// Creates `path` with `text`, reserved and synced.
void write_text_synced(const std::string& path, const std::string& text);
std::string hash_file(const std::string& path);
/// Makes the names in a directory durable.
void sync_directory(const std::string& path);
void rename_path(const std::string& from, const std::string& to);
/// errors: CheckpointError unless 1.1 x `bytes` are free on the file system of `dir`
void require_free_space(const std::string& dir, std::int64_t bytes);
/// "12.3 MiB"
std::string format_bytes(std::int64_t bytes);
/// "cannot write: No space left on device" for `path`, from errno.
CheckpointError io_error(const std::string& path, const std::string& doing, int error_number);

}  // namespace stoa
