#include "checkpoints/h5_layout.h"

#include <array>

namespace stoa {
namespace {

using Extent = std::array<hsize_t, 2>;

std::string dataset_path(const std::string& tensor) { return "/tensors/" + tensor; }

hid_t three_bytes() {
    static const hid_t type = [] {  // lives as long as the library
        const hid_t t = H5Tcopy(H5T_STD_U32LE);
        h5_check(H5Tset_precision(t, 24), "24-bit type");
        h5_check(H5Tset_size(t, 3), "24-bit type");
        return t;
    }();
    return type;
}
/// Where HDF5 has no type of that name, the bits as unsigned integers (fp24 as a 24-bit one), named
/// by the attribute "dtype".
hid_t h5_type(DType t) {
    switch (t) {
        case DType::fp32:
            return H5T_IEEE_F32LE;
        case DType::fp64:
            return H5T_IEEE_F64LE;
        case DType::bf16:
        case DType::fp16:
            return H5T_STD_U16LE;
        case DType::e4m3:
        case DType::e5m2:
        case DType::e8m0:
            return H5T_STD_U8LE;
        case DType::fp24:
            return three_bytes();
        case DType::int32:
            return H5T_STD_I32LE;
    }
    return H5T_IEEE_F32LE;
}

H5Handle make_space(int rank, const Extent& extent) {
    return {H5Screate_simple(rank, extent.data(), nullptr), H5Sclose, "dataspace"};
}

void add_attribute(hid_t dataset, const char* name, const std::vector<std::int64_t>& values) {
    const Extent n{values.size(), 0};
    const H5Handle space = make_space(1, n);
    const H5Handle attribute(
        H5Acreate2(dataset, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose, name);
    h5_check(H5Awrite(attribute, H5T_NATIVE_INT64, values.data()), name);
}

void add_attribute(hid_t dataset, const char* name, const std::string& text) {
    const H5Handle type(H5Tcopy(H5T_C_S1), H5Tclose, "string type");
    h5_check(H5Tset_size(type, text.size() + 1), "string type");
    const H5Handle space(H5Screate(H5S_SCALAR), H5Sclose, "dataspace");
    const H5Handle attribute(H5Acreate2(dataset, name, type, space, H5P_DEFAULT, H5P_DEFAULT),
                             H5Aclose, name);
    h5_check(H5Awrite(attribute, type, text.c_str()), name);
}

std::vector<std::int64_t> dims_of(const Shape& s) {
    return {s.dims.begin(), s.dims.begin() + s.rank};
}

H5Handle create_dataset(hid_t file, const std::string& name, DType dtype, hid_t space, hid_t dcpl) {
    const H5Handle lcpl(H5Pcreate(H5P_LINK_CREATE), H5Pclose, "link properties");
    h5_check(H5Pset_create_intermediate_group(lcpl, 1), "intermediate groups");
    return {H5Dcreate2(file, dataset_path(name).c_str(), h5_type(dtype), space, lcpl, dcpl,
                       H5P_DEFAULT),
            H5Dclose, "create dataset " + name};
}

/// The rectangle of `s` as an HDF5 selection: one axis for vectors, two for matrices.
struct Rectangle {
    Extent begin, count;
};
Rectangle rectangle_of(const StoredShard& s, int rank) {
    const auto u = [](std::int64_t n) { return static_cast<hsize_t>(n); };
    if (rank == 1) return {{u(s.col_begin), 0}, {u(s.col_count), 0}};
    return {{u(s.row_begin), u(s.col_begin)}, {u(s.row_count), u(s.col_count)}};
}

}  // namespace

RankFileLayout lay_out_rank_file(const std::vector<const TensorShard*>& shards) {
    const H5Quiet quiet;
    RankFileLayout layout;
    H5Handle file = create_h5_image(layout.image);
    const H5Handle dcpl(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "dataset properties");
    h5_check(H5Pset_layout(dcpl, H5D_CONTIGUOUS), "contiguous layout");
    h5_check(H5Pset_alloc_time(dcpl, H5D_ALLOC_TIME_EARLY), "early allocation");
    h5_check(H5Pset_fill_time(dcpl, H5D_FILL_TIME_NEVER), "no fill");
    for (const TensorShard* s : shards) {
        const int rank = s->global_shape.rank;
        const StoredShard part{"", 0, s->row_begin, s->row_count, s->col_begin, s->col_count, ""};
        const H5Handle space = make_space(rank, rectangle_of(part, rank).count);
        const H5Handle dataset = create_dataset(file, s->name, s->view.dtype, space, dcpl);
        add_attribute(dataset, "global_shape", dims_of(s->global_shape));
        add_attribute(dataset, "row_begin", std::vector{s->row_begin});
        add_attribute(dataset, "col_begin", std::vector{s->col_begin});
        add_attribute(dataset, "dtype", dtype_name(s->view.dtype));
        const haddr_t offset = H5Dget_offset(dataset);
        if (offset == HADDR_UNDEF)
            throw CheckpointError({.what = "HDF5 gave no place in the file", .where = s->name});
        layout.offsets.push_back(static_cast<std::int64_t>(offset));
    }
    file.close("close the file");
    return layout;
}

H5Image lay_out_view(const std::vector<StoredTensor>& tensors) {
    const H5Quiet quiet;
    H5Image image;
    H5Handle file = create_h5_image(image);
    for (const StoredTensor& t : tensors) {
        const int rank = t.global_shape.rank;
        Extent global{};
        for (int i = 0; i < rank; ++i)
            global[static_cast<std::size_t>(i)] = static_cast<hsize_t>(t.global_shape[i]);
        const H5Handle space = make_space(rank, global);
        const H5Handle dcpl(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "dataset properties");
        for (const StoredShard& s : t.shards) {
            const auto [begin, count] = rectangle_of(s, rank);
            h5_check(H5Sselect_hyperslab(space, H5S_SELECT_SET, begin.data(), nullptr, count.data(),
                                         nullptr),
                     "select " + t.name);
            const H5Handle source = make_space(rank, count);
            h5_check(
                H5Pset_virtual(dcpl, space, s.file.c_str(), dataset_path(t.name).c_str(), source),
                "map " + t.name);
        }
        h5_check(H5Sselect_all(space), "select " + t.name);
        const H5Handle dataset = create_dataset(file, t.name, t.dtype, space, dcpl);
        add_attribute(dataset, "global_shape", dims_of(t.global_shape));
        add_attribute(dataset, "dtype", dtype_name(t.dtype));
    }
    file.close("close the view");
    return image;
}

}  // namespace stoa
