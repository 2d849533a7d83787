#pragma once
// Owners of HDF5 identifiers, and HDF5's own error printing switched off. HDF5 is not thread-safe
// here: whoever uses it holds an H5Quiet, and so its lock.
#include <hdf5.h>

#include <utility>

#include "kernels/core/hdf5_lock.h"

namespace stoa {

/// Move-only owner; closes with `Close` (H5Fclose, H5Dclose, ...). Invalid when the id is negative.
template <herr_t (*Close)(hid_t)>
class H5Handle {
public:
    explicit H5Handle(hid_t id) : id_(id) {}
    H5Handle(H5Handle&& o) noexcept : id_(std::exchange(o.id_, H5I_INVALID_HID)) {}
    H5Handle& operator=(H5Handle&&) = delete;
    ~H5Handle() { (void)close(); }
    hid_t id() const { return id_; }
    bool ok() const { return id_ >= 0; }
    /// Closing a written file can fail (full disk): writers ask. True on success.
    bool close() { return id_ < 0 || Close(std::exchange(id_, H5I_INVALID_HID)) >= 0; }

private:
    hid_t id_;
};
using H5File = H5Handle<H5Fclose>;
using H5Dataset = H5Handle<H5Dclose>;
using H5Space = H5Handle<H5Sclose>;
using H5Type = H5Handle<H5Tclose>;
using H5Attribute = H5Handle<H5Aclose>;
using H5Plist = H5Handle<H5Pclose>;

/// While this lives, HDF5 reports by return value only, and to no other thread.
class H5Quiet {
public:
    H5Quiet() {
        H5Eget_auto2(H5E_DEFAULT, &function_, &data_);
        H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
    }
    ~H5Quiet() { H5Eset_auto2(H5E_DEFAULT, function_, data_); }
    H5Quiet(const H5Quiet&) = delete;
    H5Quiet& operator=(const H5Quiet&) = delete;

private:
    std::lock_guard<std::recursive_mutex> one_thread_{hdf5_mutex()};
    H5E_auto2_t function_ = nullptr;
    void* data_ = nullptr;
};

}  // namespace stoa
