#pragma once
// HDF5 that never touches a disk. libhdf5 crashes when a write fails (a full disk is enough), so it
// writes its metadata into a sparse image in memory and we write the file: metadata from the image,
// data straight from the tensors at the offsets HDF5 assigned.
#include <hdf5.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>

#include "kernels/core/hdf5_lock.h"

namespace stoa {

/// The bytes HDF5 wrote, by page; what it never wrote reads as zero.
struct H5Image {
    static constexpr std::uint64_t kPageBytes = 4096;
    static constexpr std::uint64_t kLargeBytes = 1 << 20;  // begins at a page: StreamWriter
    std::map<std::uint64_t, std::array<std::byte, kPageBytes>> pages;
    std::uint64_t end = 0;  // size of the file
    void write(std::uint64_t at, std::span<const std::byte> bytes);
    void read(std::uint64_t at, std::span<std::byte> out) const;
};

/// One HDF5 identifier and the call that closes it.
class H5Handle {
public:
    /// errors: CheckpointError when `id` is negative, with HDF5's own reason
    H5Handle(hid_t id, herr_t (*close_call)(hid_t), const std::string& doing);
    H5Handle(H5Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
    H5Handle& operator=(H5Handle&&) = delete;
    ~H5Handle();
    operator hid_t() const { return id_; }  // NOLINT: handed to HDF5 calls
    /// Closes now and reports a failure, which the destructor cannot.
    void close(const std::string& doing);

private:
    hid_t id_;
    herr_t (*close_)(hid_t);
};

/// errors: CheckpointError when an HDF5 call returned a negative value
void h5_check(herr_t status, const std::string& doing);

/// While it lives, HDF5 is this thread's, and keeps its error stack to itself instead of printing
/// it.
class H5Quiet {
public:
    H5Quiet();
    ~H5Quiet();
    H5Quiet(const H5Quiet&) = delete;
    H5Quiet& operator=(const H5Quiet&) = delete;

private:
    std::lock_guard<std::recursive_mutex> one_thread_{hdf5_mutex()};
    H5E_auto2_t print_ = nullptr;
    void* data_ = nullptr;
};

/// A new HDF5 file (1.10 format: its metadata carries checksums) inside `image`.
H5Handle create_h5_image(H5Image& image);

}  // namespace stoa
