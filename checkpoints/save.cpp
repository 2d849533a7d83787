#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <numeric>

#include "checkpoints/checkpoint.h"
#include "checkpoints/file_io.h"
#include "checkpoints/h5_layout.h"
#include "checkpoints/manifest.h"
#include "checkpoints/run_directory.h"
#include "checkpoints/verify.h"
#include "parallel/agree.h"
#include "parallel/collectives.h"

namespace stoa {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{1} << 20;

/// Appends to a file, hashing on the way; small pieces are gathered to writes of 1 MiB.
class HashingWriter {
public:
    explicit HashingWriter(File& file) : file_(file) { buffer_.reserve(kBufferBytes); }
    void append(Bytes bytes) {
        hash_.update(bytes);
        if (buffer_.size() + bytes.size() > kBufferBytes) flush();
        if (bytes.size() >= kBufferBytes) {
            file_.write_at(at_, bytes);
            at_ += static_cast<std::int64_t>(bytes.size());
        } else {
            buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
        }
    }
    std::int64_t position() const { return at_ + static_cast<std::int64_t>(buffer_.size()); }
    std::string finish() {
        flush();
        return hash_.hex();
    }

private:
    void flush() {
        file_.write_at(at_, buffer_);
        at_ += static_cast<std::int64_t>(buffer_.size());
        buffer_.clear();
    }
    File& file_;
    Xxh3 hash_;
    std::vector<std::byte> buffer_;
    std::int64_t at_ = 0;
};

void append_image(HashingWriter& out, const H5Image& image, std::int64_t until) {
    std::vector<std::byte> piece(H5Image::kPageBytes);
    while (out.position() < until) {
        const auto n = std::min<std::int64_t>(until - out.position(), H5Image::kPageBytes);
        const auto part = std::span(piece).first(static_cast<std::size_t>(n));
        image.read(static_cast<std::uint64_t>(out.position()), part);
        out.append(part);
    }
}

/// The logical cells of a shard, row-major and without padding. Returns their hash.
std::string append_cells(HashingWriter& out, const TensorShard& s) {
    const std::int64_t cell = size_of(s.view.dtype), stride = s.view.cols() * cell;
    const bool dense = s.col_count == s.view.cols();
    const std::int64_t pieces = dense ? 1 : s.row_count;
    const auto bytes = static_cast<std::size_t>((dense ? s.row_count : 1) * s.col_count * cell);
    Xxh3 hash;
    for (std::int64_t i = 0; i < pieces; ++i) {
        const Bytes part(s.view.data + i * stride, bytes);
        hash.update(part);
        out.append(part);
    }
    return hash.hex();
}

/// What this rank owns and has cells of.
std::vector<const TensorShard*> written_here(const std::vector<TensorShard>& shards,
                                             const Mesh& mesh) {
    std::vector<const TensorShard*> mine;
    for (const TensorShard& s : shards)
        if (s.row_count * s.col_count > 0 && (!s.replicated || mesh.tp_rank() == 0) &&
            (s.dp_part || mesh.dp_rank() == 0))
            mine.push_back(&s);
    return mine;
}

RankTable write_rank_file(const std::string& dir, const std::vector<const TensorShard*>& mine,
                          int rank) {
    RankFileLayout layout = lay_out_rank_file(mine);
    RankTable table{
        {fmt::format("rank-{:04}.h5", rank), static_cast<std::int64_t>(layout.image.end), ""}, {}};
    for (std::size_t i = 0; i < mine.size(); ++i) {
        const TensorShard& s = *mine[i];
        table.tensors.push_back({s.name,
                                 s.global_shape,
                                 s.view.dtype,
                                 {{table.file.name, layout.offsets[i], s.row_begin, s.row_count,
                                   s.col_begin, s.col_count, ""}}});
    }
    // In the order of the file, so that one pass writes and hashes it.
    std::vector<std::size_t> order(mine.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::sort(order, {}, [&](std::size_t i) { return layout.offsets[i]; });
    File file = File::create(dir + "/" + table.file.name, table.file.bytes);
    HashingWriter out(file);
    for (const std::size_t i : order) {
        append_image(out, layout.image, layout.offsets[i]);
        if (out.position() != layout.offsets[i])
            throw CheckpointError(
                {.what = "HDF5 placed two datasets over each other", .where = mine[i]->name});
        table.tensors[i].shards[0].xxh3 = append_cells(out, *mine[i]);
    }
    append_image(out, layout.image, table.file.bytes);
    table.file.xxh3 = out.finish();
    file.sync();
    return table;
}

CheckpointFile write_view(const std::string& dir, const std::vector<StoredTensor>& tensors) {
    const H5Image image = lay_out_view(tensors);
    CheckpointFile entry{kViewName, static_cast<std::int64_t>(image.end), ""};
    File file = File::create(dir + "/" + entry.name, entry.bytes);
    HashingWriter out(file);
    append_image(out, image, entry.bytes);
    entry.xxh3 = out.finish();
    file.sync();
    return entry;
}

/// An upper estimate: the data, and per tensor its HDF5 metadata and manifest entry for each
/// writer.
std::int64_t expected_bytes(const CheckpointMeta& meta, const std::vector<TensorShard>& shards,
                            int writers) {
    constexpr std::int64_t kPerShardBytes = 2048, kPerFileBytes = 16384;
    std::int64_t bytes =
        static_cast<std::int64_t>(meta.resolved_config.size()) + kPerFileBytes * (writers + 2);
    for (const TensorShard& s : shards)
        bytes += s.global_shape.numel() * size_of(s.view.dtype) + kPerShardBytes * (writers + 1) +
                 static_cast<std::int64_t>(s.name.size()) * 4;
    return bytes;
}

void prepare(const std::string& run_dir, const CheckpointMeta& meta,
             const std::vector<TensorShard>& shards, int writers) {
    const std::string root = checkpoint_root(run_dir),
                      temporary = temporary_dir(run_dir, meta.step);
    std::error_code error;
    std::filesystem::create_directories(root, error);
    if (error) throw io_error(root, "create the directory", error.value());
    clean_run_directory(run_dir);
    require_free_space(root, expected_bytes(meta, shards, writers));
    std::filesystem::create_directory(temporary, error);
    if (error) throw io_error(temporary, "create the directory", error.value());
}

void commit(const std::string& run_dir, const CheckpointMeta& meta,
            const std::vector<RankTable>& tables, int tp_size) {
    const std::string temporary = temporary_dir(run_dir, meta.step);
    Manifest m{
        .meta = meta, .tp = tp_size, .files = {}, .tensors = merge_tensors(tables), .xxh3 = ""};
    for (const RankTable& t : tables)
        m.files.push_back(t.file);
    m.files.push_back(write_view(temporary, m.tensors));
    write_text_synced(temporary + "/" + kManifestName, format_manifest(m));
    commit_directory(run_dir, meta.step);
    write_latest(run_dir, meta.step);
}

}  // namespace

std::string save_checkpoint(const std::string& run_dir, const CheckpointMeta& meta,
                            const std::vector<TensorShard>& shards, const Mesh& mesh) {
    const std::string temporary = temporary_dir(run_dir, meta.step);
    const bool first = mesh.world.rank() == 0;
    bool prepared = false;
    try {
        agree(mesh.world, "prepare checkpoint", [&] {
            require_shards(shards);
            if (first) prepare(run_dir, meta, shards, mesh.world.size());
            prepared = first;
        });
        const auto mine = written_here(shards, mesh);
        std::string table;
        agree(mesh.world, "write checkpoint", [&] {
            if (!mine.empty())
                table = format_rank_table(write_rank_file(temporary, mine, mesh.world.rank()));
        });
        std::vector<RankTable> tables;
        for (int r = 0; r < mesh.world.size(); ++r)
            if (const std::string t = broadcast(table, r, mesh.world); !t.empty())
                tables.push_back(parse_rank_table(t));
        agree(mesh.world, "commit checkpoint", [&] {
            if (first) commit(run_dir, meta, tables, mesh.tp_size());
        });
    } catch (const std::exception&) {
        if (prepared) remove_quietly(temporary);
        throw;
    }
    return committed_dir(run_dir, meta.step);
}

}  // namespace stoa
