#include "data/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/core/error.h"

namespace stoa {

MappedFile::MappedFile(const std::string& path) {
    const auto fail = [&](const char* why) {
        throw DataError({.what = "cannot read the file", .where = path, .actual = why});
    };
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail(std::strerror(errno));
    struct stat info {};
    const char* why = nullptr;
    if (fstat(fd, &info) != 0) {
        why = std::strerror(errno);
    } else if (!S_ISREG(info.st_mode)) {
        why = "not a regular file";
    } else if (info.st_size > 0) {
        bytes_ = static_cast<std::uint64_t>(info.st_size);
        void* p = mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED)
            why = std::strerror(errno);
        else
            data_ = static_cast<const std::byte*>(p);
    }
    close(fd);
    if (why != nullptr) fail(why);
}

MappedFile::MappedFile(MappedFile&& o) noexcept
    : data_(std::exchange(o.data_, nullptr)), bytes_(std::exchange(o.bytes_, 0)) {}

MappedFile::~MappedFile() {
    if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), bytes_);
}

}  // namespace stoa
