#pragma once
// HDF5 is not thread-safe here: whoever calls it holds this lock, as the quiet scopes of data/h5.h
// and checkpoints/h5_image.h do. The library's state is the process's, and so is its lock.
#include <mutex>

namespace stoa {

inline std::recursive_mutex& hdf5_mutex() {
    static std::recursive_mutex mutex;
    return mutex;
}

}  // namespace stoa
