#include "checkpoints/h5_image.h"

#include <algorithm>
#include <cstring>

#include "kernels/core/error.h"

namespace stoa {

void H5Image::write(std::uint64_t at, std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
        const auto begin = static_cast<std::size_t>(at % kPageBytes);
        const std::size_t n = std::min(bytes.size(), static_cast<std::size_t>(kPageBytes) - begin);
        auto& page = pages.try_emplace(at / kPageBytes).first->second;
        std::memcpy(page.data() + begin, bytes.data(), n);
        at += n;
        bytes = bytes.subspan(n);
    }
}

void H5Image::read(std::uint64_t at, std::span<std::byte> out) const {
    while (!out.empty()) {
        const auto begin = static_cast<std::size_t>(at % kPageBytes);
        const std::size_t n = std::min(out.size(), static_cast<std::size_t>(kPageBytes) - begin);
        const auto page = pages.find(at / kPageBytes);
        if (page == pages.end())
            std::memset(out.data(), 0, n);
        else
            std::memcpy(out.data(), page->second.data() + begin, n);
        at += n;
        out = out.subspan(n);
    }
}

// A virtual file driver: HDF5's own interface for "a file is something else". It is plain C:
// structs that start with H5FD_t, functions that return negative numbers.
namespace {

struct ImageFile {
    H5FD_t base;  // first, HDF5 casts
    H5Image* image;
    haddr_t eoa;  // what HDF5 has allocated
};
struct DriverInfo {
    H5Image* image;
};

ImageFile* cast(H5FD_t* f) { return reinterpret_cast<ImageFile*>(f); }
const ImageFile* cast(const H5FD_t* f) { return reinterpret_cast<const ImageFile*>(f); }

H5FD_t* image_open(const char*, unsigned, hid_t fapl, haddr_t) {
    const auto* info = static_cast<const DriverInfo*>(H5Pget_driver_info(fapl));
    if (info == nullptr) return nullptr;
    auto* file = new (std::nothrow) ImageFile{};
    if (file == nullptr) return nullptr;
    file->image = info->image;
    return &file->base;
}
herr_t image_close(H5FD_t* f) {
    delete cast(f);
    return 0;
}
int image_cmp(const H5FD_t* a, const H5FD_t* b) {
    const auto* x = cast(a)->image;
    const auto* y = cast(b)->image;
    return x == y ? 0 : x < y ? -1 : 1;
}
herr_t image_query(const H5FD_t*, unsigned long* flags) {
    if (flags != nullptr)
        *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA |
                 H5FD_FEAT_AGGREGATE_SMALLDATA;
    return 0;
}
haddr_t image_get_eoa(const H5FD_t* f, H5FD_mem_t) { return cast(f)->eoa; }
herr_t image_set_eoa(H5FD_t* f, H5FD_mem_t, haddr_t addr) {
    cast(f)->eoa = addr;
    return 0;
}
haddr_t image_get_eof(const H5FD_t* f, H5FD_mem_t) { return cast(f)->image->end; }
herr_t image_read(H5FD_t* f, H5FD_mem_t, hid_t, haddr_t addr, size_t size, void* out) {
    cast(f)->image->read(addr, {static_cast<std::byte*>(out), size});
    return 0;
}
herr_t image_write(H5FD_t* f, H5FD_mem_t, hid_t, haddr_t addr, size_t size, const void* in) try {
    H5Image& image = *cast(f)->image;
    image.write(addr, {static_cast<const std::byte*>(in), size});
    image.end = std::max<std::uint64_t>(image.end, addr + size);
    return 0;
} catch (const std::exception&) {
    return -1;  // out of memory: no exception may cross C code
}
herr_t image_truncate(H5FD_t* f, hid_t, hbool_t) {
    cast(f)->image->end = cast(f)->eoa;
    return 0;
}

const H5FD_class_t kImageDriver = {
    .name = "stoa_image",
    .maxaddr = (haddr_t{1} << 62) - 1,
    .fc_degree = H5F_CLOSE_STRONG,
    .terminate = nullptr,
    .sb_size = nullptr,
    .sb_encode = nullptr,
    .sb_decode = nullptr,
    .fapl_size = sizeof(DriverInfo),
    .fapl_get = nullptr,
    .fapl_copy = nullptr,
    .fapl_free = nullptr,
    .dxpl_size = 0,
    .dxpl_copy = nullptr,
    .dxpl_free = nullptr,
    .open = image_open,
    .close = image_close,
    .cmp = image_cmp,
    .query = image_query,
    .get_type_map = nullptr,
    .alloc = nullptr,
    .free = nullptr,
    .get_eoa = image_get_eoa,
    .set_eoa = image_set_eoa,
    .get_eof = image_get_eof,
    .get_handle = nullptr,
    .read = image_read,
    .write = image_write,
    .flush = nullptr,
    .truncate = image_truncate,
    .lock = nullptr,
    .unlock = nullptr,
    .fl_map = H5FD_FLMAP_DICHOTOMY,
};

herr_t innermost_reason(unsigned, const H5E_error2_t* error, void* text) {
    if (error->desc != nullptr) *static_cast<std::string*>(text) = error->desc;
    return 0;
}

[[noreturn]] void throw_h5(const std::string& doing) {
    std::string reason;
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, innermost_reason, &reason);
    throw CheckpointError({.what = "HDF5 failed: " + doing, .actual = reason});
}

}  // namespace

H5Handle::H5Handle(hid_t id, herr_t (*close_call)(hid_t), const std::string& doing)
    : id_(id), close_(close_call) {
    if (id_ < 0) throw_h5(doing);
}
H5Handle::~H5Handle() {
    if (id_ >= 0) close_(id_);
}
void H5Handle::close(const std::string& doing) { h5_check(close_(std::exchange(id_, -1)), doing); }

void h5_check(herr_t status, const std::string& doing) {
    if (status < 0) throw_h5(doing);
}

H5Quiet::H5Quiet() {
    H5Eget_auto2(H5E_DEFAULT, &print_, &data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}
H5Quiet::~H5Quiet() { H5Eset_auto2(H5E_DEFAULT, print_, data_); }

H5Handle create_h5_image(H5Image& image) {
    const H5Handle fapl(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "file access properties");
    // Registered per file and not kept: HDF5 counts references, so the driver lives as long as the
    // file.
    const H5Handle driver(H5FDregister(&kImageDriver), H5FDunregister, "register the image driver");
    const DriverInfo info{&image};
    h5_check(H5Pset_driver(fapl, driver, &info), "set the image driver");
    h5_check(H5Pset_libver_bounds(fapl, H5F_LIBVER_V110, H5F_LIBVER_V110), "format bounds");
    h5_check(H5Pset_alignment(fapl, H5Image::kLargeBytes, H5Image::kPageBytes), "alignment");
    return {H5Fcreate("stoa.image", H5F_ACC_TRUNC, H5P_DEFAULT, fapl), H5Fclose, "create a file"};
}

}  // namespace stoa
