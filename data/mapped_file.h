#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace stoa {

/// A whole file mapped read-only.
class MappedFile {
public:
    /// errors: DataError (cannot be opened, not a regular file)
    explicit MappedFile(const std::string& path);
    MappedFile(MappedFile&&) noexcept;
    MappedFile& operator=(MappedFile&&) = delete;
    ~MappedFile();
    const std::byte* data() const { return data_; }  // nullptr when the file is empty
    std::uint64_t bytes() const { return bytes_; }

private:
    const std::byte* data_ = nullptr;
    std::uint64_t bytes_ = 0;
};

}  // namespace stoa
