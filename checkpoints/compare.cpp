#include "checkpoints/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>

#include "checkpoints/file_io.h"
#include "checkpoints/manifest.h"
#include "checkpoints/read_cells.h"
#include "checkpoints/run_identity.h"
#include "kernels/core/buffer.h"

namespace stoa {
namespace {

namespace fs = std::filesystem;

std::string form_of(const StoredTensor& t) {
    return t.global_shape.str() + " " + dtype_name(t.dtype);
}

/// The cells of a tensor, row-major; hashes are checked on the way.
Tensor read_tensor(const std::string& dir, const StoredTensor& t) {
    Tensor whole(t.global_shape, t.dtype);
    const std::int64_t cell = size_of(t.dtype), cols = t.cols();
    for (const StoredShard& s : t.shards)
        read_shard(dir, t, s, [&](std::int64_t row, std::int64_t col, Bytes cells) {
            const std::int64_t count = static_cast<std::int64_t>(cells.size()) / cell;
            const std::int64_t width = std::min(count, s.col_count);
            for (std::int64_t r = 0; r < count / width; ++r)
                std::memcpy(whole.view.data + ((row + r) * cols + col) * cell,
                            cells.data() + r * width * cell,
                            static_cast<std::size_t>(width * cell));
        });
    return whole;
}

/// fn(T{}) for the type of a dtype, all of them.
template <class Fn>
void for_dtype(DType t, Fn&& fn) {
    switch (t) {
        case DType::int32:
            return fn(std::int32_t{});
        case DType::e4m3:
            return fn(e4m3{});
        case DType::e5m2:
            return fn(e5m2{});
        case DType::e8m0:
            return fn(e8m0{});
        case DType::fp24:
            return fn(fp24{});
        default:
            dispatch_dtype(t, fn);
    }
}

template <class T>
double value_of(T x) {
    if constexpr (std::is_arithmetic_v<T>)
        return static_cast<double>(x);
    else
        return to_float(x);
}
template <class T>
T rounded(double x) {
    if constexpr (std::is_same_v<T, double>)
        return x;
    else if constexpr (std::is_same_v<T, fp24>)
        return to_fp24(static_cast<float>(x));
    else
        return narrow_to<T>(static_cast<float>(x));
}

void compare_cells(const std::string& dir_a, const StoredTensor& a, const std::string& dir_b,
                   const StoredTensor& b, TensorDifference& d) {
    const Tensor x = read_tensor(dir_a, a), y = read_tensor(dir_b, b);
    d.cells = x.view.numel();
    for_dtype(a.dtype, [&]<class T>(T) {
        const auto *p = reinterpret_cast<const T*>(x.view.data),
                   *q = reinterpret_cast<const T*>(y.view.data);
        for (std::int64_t i = 0; i < d.cells; ++i) {
            if (std::memcmp(p + i, q + i, sizeof(T)) == 0) continue;
            ++d.different;
            const double difference = std::abs(value_of(p[i]) - value_of(q[i]));
            if (std::isfinite(difference))
                d.max_abs = std::max(d.max_abs, difference);
            else
                ++d.not_finite;
        }
    });
}

using Table = std::map<std::string, const StoredTensor*>;
Table table_of(const Manifest& m) {
    Table t;
    for (const StoredTensor& x : m.tensors)
        t[x.name] = &x;
    return t;
}

bool is_weight(const std::string& name) { return !name.starts_with("optimizer."); }

/// The mean of one tensor over all `dirs`, in the memory of `mean`.
void average_tensor(const std::vector<std::string>& dirs, const std::vector<Table>& tables,
                    const std::string& name, const TensorView& mean) {
    std::vector<double> sum(static_cast<std::size_t>(mean.numel()), 0.0);
    for_dtype(mean.dtype, [&]<class T>(T) {
        for (std::size_t i = 0; i < dirs.size(); ++i) {
            const Tensor x = read_tensor(dirs[i], *tables[i].at(name));
            const auto* p = reinterpret_cast<const T*>(x.view.data);
            for (std::size_t c = 0; c < sum.size(); ++c)
                sum[c] += value_of(p[c]);
        }
        if constexpr (Element<T> || std::is_same_v<T, fp24>) {
            auto* out = reinterpret_cast<T*>(mean.data);
            for (std::size_t c = 0; c < sum.size(); ++c)
                out[c] = rounded<T>(sum[c] / static_cast<double>(dirs.size()));
        } else {
            throw CheckpointError({.what = "weights of a format that has no mean",
                                   .where = name,
                                   .actual = dtype_name(mean.dtype)});
        }
    });
}

void copy_file(const std::string& from, const std::string& to, const CheckpointFile& f) {
    const File in = File::open_read(from);
    StreamWriter out(to, f.bytes);
    std::vector<std::byte> block(std::size_t{1} << 20);
    for (std::int64_t at = 0; at < f.bytes;) {
        const auto n = std::min<std::int64_t>(std::ssize(block), f.bytes - at);
        const auto part = std::span(block).first(static_cast<std::size_t>(n));
        in.read_at(at, part);
        out.append(part);
        at += n;
    }
    if (const std::string hash = out.finish(); hash != f.xxh3)
        throw CheckpointError({.what = "damaged or foreign file",
                               .where = from,
                               .expected = "xxh3 " + f.xxh3,
                               .actual = hash});
}

void make_directory(const std::string& dir) {
    std::error_code error;
    fs::create_directories(dir, error);
    if (error) throw io_error(dir, "create the directory", error.value());
}

}  // namespace

std::vector<TensorDifference> diff_checkpoints(const std::string& a, const std::string& b) {
    const Manifest ma = read_manifest(a), mb = read_manifest(b);
    const Table ta = table_of(ma), tb = table_of(mb);
    std::vector<TensorDifference> differences;
    for (const StoredTensor& x : ma.tensors) {
        TensorDifference d{.name = x.name};
        const auto at = tb.find(x.name);
        if (at == tb.end()) {
            d.only_in = a;
        } else if (form_of(x) != form_of(*at->second)) {
            d.form_a = form_of(x);
            d.form_b = form_of(*at->second);
        } else {
            d.xxh3_a = hash_logical_tensor(a, x);
            d.xxh3_b = hash_logical_tensor(b, *at->second);
            if (!d.same()) compare_cells(a, x, b, *at->second, d);
        }
        differences.push_back(d);
    }
    for (const StoredTensor& y : mb.tensors)
        if (!ta.contains(y.name)) differences.push_back({.name = y.name, .only_in = b});
    return differences;
}

std::string average_checkpoints(const std::vector<std::string>& dirs, const std::string& out) {
    if (dirs.size() < 2)
        throw CheckpointError({.what = "an average of fewer than two checkpoints",
                               .expected = "two or more",
                               .actual = std::to_string(dirs.size())});
    if (fs::exists(out) && !fs::is_empty(out))
        throw CheckpointError(
            {.what = "the output directory is not empty",
             .where = out,
             .hint = "the average begins a run of its own: name a new directory"});
    std::vector<Manifest> manifests;
    std::vector<Table> tables;
    for (const std::string& dir : dirs) {
        verify_checkpoint(dir);
        manifests.push_back(read_manifest(dir));
    }
    for (const Manifest& m : manifests)
        tables.push_back(table_of(m));
    const Manifest& last = manifests.back();
    for (std::size_t i = 0; i < dirs.size(); ++i)
        for (const StoredTensor& t : last.tensors) {
            if (!is_weight(t.name)) continue;
            const auto at = tables[i].find(t.name);
            const std::string form = at == tables[i].end() ? "none" : form_of(*at->second);
            if (form != form_of(t))
                throw CheckpointError({.what = "checkpoints of different models",
                                       .where = dirs[i] + ": " + t.name,
                                       .expected = form_of(t) + " as in " + dirs.back(),
                                       .actual = form});
        }
    std::vector<Tensor> tensors;
    std::vector<TensorShard> shards;
    for (const StoredTensor& t : last.tensors) {
        if (is_weight(t.name)) {
            tensors.emplace_back(t.global_shape, t.dtype);
            average_tensor(dirs, tables, t.name, tensors.back().view);
        } else {
            tensors.push_back(read_tensor(dirs.back(), t));
        }
        shards.push_back({.name = t.name,
                          .global_shape = t.global_shape,
                          .view = tensors.back().view,
                          .row_count = t.rows(),
                          .col_count = t.cols()});
    }
    make_directory(out);
    CheckpointMeta meta = last.meta;
    meta.run_id = claim_run_id(out);
    meta.counters["averaged_from"] = fmt::format("{}", fmt::join(dirs, " "));
    write_text_synced(out + "/resolved.yaml", meta.resolved_config);
    return save_checkpoint(out, meta, shards, Mesh{});
}

std::string adopt_checkpoint(const std::string& dir, const std::string& run_dir) {
    Manifest m = read_manifest(dir);
    if (!fs::is_directory(run_dir))
        throw CheckpointError({.what = "no such run", .where = run_dir});
    for (const std::string& there : list_checkpoints(run_dir))
        if (step_of_name(fs::path(there).filename().string()) == m.meta.step)
            throw CheckpointError({.what = "the run has a checkpoint of that step",
                                   .where = there,
                                   .hint = "move it away first"});
    m.meta.counters["adopted_from"] = fmt::format("{} run_id {}", dir, m.meta.run_id);
    m.meta.run_id = claim_run_id(run_dir);
    const std::int64_t generation = std::max<std::int64_t>(read_generation(run_dir), 0);
    const std::string temporary = temporary_dir(run_dir, m.meta.step, generation);
    make_directory(checkpoint_root(run_dir));
    std::int64_t bytes = 0;
    for (const CheckpointFile& f : m.files)
        bytes += f.bytes;
    require_free_space(checkpoint_root(run_dir), bytes);
    make_directory(temporary);
    try {
        for (const CheckpointFile& f : m.files)
            copy_file(dir + "/" + f.name, temporary + "/" + f.name, f);
        write_text_synced(temporary + "/" + kManifestName, format_manifest(m));
        commit_directory(run_dir, m.meta.step, generation);
    } catch (const std::exception&) {
        remove_quietly(temporary);
        throw;
    }
    return committed_dir(run_dir, m.meta.step);
}

}  // namespace stoa
