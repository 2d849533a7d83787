#include "checkpoints/saver.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <utility>

#include "checkpoints/courtesy.h"
#include "checkpoints/file_io.h"
#include "checkpoints/h5_image.h"
#include "checkpoints/rank_file.h"
#include "checkpoints/run_directory.h"
#include "checkpoints/run_identity.h"
#include "checkpoints/verify.h"
#include "kernels/core/log.h"
#include "parallel/agree.h"
#include "parallel/collectives.h"

namespace stoa {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
}

/// An upper estimate: the data, and per tensor its HDF5 metadata and manifest entry for each
/// writer.
std::int64_t estimate_bytes(const CheckpointMeta& meta, const std::vector<TensorShard>& shards,
                            int writers) {
    constexpr std::int64_t kPerShardBytes = 2048, kPerFileBytes = 16384;
    std::int64_t bytes =
        static_cast<std::int64_t>(meta.resolved_config.size()) + kPerFileBytes * (writers + 2);
    for (const TensorShard& s : shards) {
        const std::int64_t cells = s.global_shape.numel() * size_of(s.view.dtype);
        const bool large = cells >= static_cast<std::int64_t>(H5Image::kLargeBytes);
        bytes += cells + kPerShardBytes * (writers + 1) +
                 static_cast<std::int64_t>(s.name.size()) * 4 +
                 (large ? writers * static_cast<std::int64_t>(H5Image::kPageBytes) : 0);
    }
    return bytes;
}

/// What the next checkpoint will push out goes before it is written where that makes room, oldest
/// first. The newest good one and the milestones stay.
void make_room(const std::string& run_dir, const KeepRule& keep, std::int64_t bytes) {
    const std::string root = checkpoint_root(run_dir);
    if (keep.newest == 0 || free_bytes(root) >= wanted_free_bytes(bytes)) return;
    const KeepRule beside{std::max<std::int64_t>(keep.newest - 1, 1), keep.every_steps};
    for (const std::string& dir : prunable(run_dir, beside)) {
        if (free_bytes(root) >= wanted_free_bytes(bytes)) return;
        log_warn("little space: {} goes to make room for the next checkpoint", dir);
        delete_checkpoint(dir);
    }
}

}  // namespace

CheckpointSaver::CheckpointSaver(std::string run_dir, SaveOptions options)
    : run_dir_(std::move(run_dir)), options_(std::move(options)), thread_([this] { work(); }) {}

CheckpointSaver::~CheckpointSaver() {
    {
        const std::lock_guard lock(mutex_);
        closing_ = true;
    }
    changed_.notify_all();
    thread_.join();
    try {
        copied_
            .wait();  // the snapshot's memory is not ours: it may go before the copies have ended
    } catch (const std::exception&) {  // the run ends, or hears of it elsewhere
    }
}

void CheckpointSaver::entered(const char* phase) const {
    if (options_.entered) options_.entered(phase);
}

std::string CheckpointSaver::temporary() const {
    return temporary_dir(run_dir_, meta_.step, options_.generation);
}

void CheckpointSaver::work() {
    if (options_.courteous) lower_priority();
    std::unique_lock lock(mutex_);
    for (;;) {
        changed_.wait(lock, [&] { return closing_ || job_; });
        if (!job_) return;
        lock.unlock();
        std::exception_ptr failure;
        const double begin = thread_seconds();
        try {
            job_();
        } catch (...) {
            failure = std::current_exception();
        }
        thread_s_ += thread_seconds() - begin;
        lock.lock();
        if (failure && !failure_) failure_ = failure;
        job_ = nullptr;
        changed_.notify_all();
    }
}

void CheckpointSaver::run(std::function<void()> job) {
    courtesy_.begin();
    const std::lock_guard lock(mutex_);
    job_ = std::move(job);
    changed_.notify_all();
}

void CheckpointSaver::wait_for_job() {
    courtesy_.hurry();
    constexpr auto kLook = std::chrono::milliseconds(250);
    std::unique_lock lock(mutex_);
    for (std::int64_t moved = bytes_moved();
         !changed_.wait_for(lock, kLook, [&] { return !job_; });)
        if (bytes_moved() != std::exchange(moved, bytes_moved())) board_pulse();  // it goes on
}

SaveWords CheckpointSaver::words() const {
    const std::lock_guard lock(mutex_);
    return {saving() && job_ ? 1 : 0, failure_ ? 1 : 0};
}

void CheckpointSaver::copy_beside(const TensorView& snapshot, Device device, Stream stream) {
    device_ = device;
    if (!copies_) copies_ = std::make_unique<cuda::CudaStream>();
    cuda::Event updated;
    updated.record(stream);
    updated.make_wait(copies_->stream());  // the copies wait for the step's update
    mine_ = take_snapshot(mine_, snapshot, copies_->stream());
    copied_.record(copies_->stream());
}

void CheckpointSaver::start(CheckpointMeta meta, const std::vector<TensorShard>& shards,
                            const TensorView& snapshot, const Mesh& mesh, bool urgent,
                            Stream stream) {
    wait_for_job();  // the last one may still remove what a failed save has left
    failure_ = nullptr;
    begin_ = Clock::now();
    meta_ = std::move(meta);
    urgent_ = urgent;
    report_ = {.step = meta_.step};
    table_.clear();
    thread_s_ = 0.0;
    entered("snapshot");
    try {
        require_shards(shards);
        expected_bytes_ = estimate_bytes(meta_, shards, mesh.world.size());
        mine_ = written_here(shards, mesh.tp_rank(), mesh.dp_rank());
        const Device device = mine_.empty() ? Device{} : mine_.front().view.device;  // of all
        if (!snapshot.empty() && device.is_cuda())
            copy_beside(snapshot, device, stream);
        else if (!snapshot.empty())
            mine_ = take_snapshot(mine_, snapshot);
        for (const TensorShard& s : mine_)
            if (s.view.device.is_cuda())
                throw CheckpointError(
                    {.what = "a shard lies on a GPU, and there is no snapshot", .where = s.name});
    } catch (const std::exception&) {
        failure_ = std::current_exception();
    }
    report_.snapshot_s = seconds_since(begin_);
    phase_ = Phase::prepare;
    if (mesh.world.rank() == 0) run([this] { prepare(); });
}

void CheckpointSaver::prepare() {
    entered("prepare");
    const std::string root = checkpoint_root(run_dir_);
    std::error_code error;
    std::filesystem::create_directories(root, error);
    if (error) throw io_error(root, "create the directory", error.value());
    require_generation(run_dir_, options_.generation);
    clean_run_directory(run_dir_, options_.generation);
    const std::int64_t bytes = last_bytes_ > 0 ? last_bytes_ : expected_bytes_;
    make_room(run_dir_, options_.keep, bytes);
    require_free_space(root, bytes);
    std::filesystem::create_directory(temporary(), error);
    if (error) throw io_error(temporary(), "create the directory", error.value());
}

void CheckpointSaver::commit(const std::vector<std::string>& tables, int tp_size) {
    const auto begin = Clock::now();
    entered("manifest");
    std::vector<RankTable> parsed;
    for (const std::string& t : tables)
        if (!t.empty()) parsed.push_back(parse_rank_table(t));
    Manifest m{
        .meta = meta_, .tp = tp_size, .files = {}, .tensors = merge_tensors(parsed), .xxh3 = ""};
    for (const RankTable& t : parsed) {
        m.files.push_back(t.file);
        report_.write_s = std::max(report_.write_s, t.write_s);
        report_.verify_s = std::max(report_.verify_s, t.verify_s);
    }
    m.files.push_back(write_view(temporary(), m.tensors));
    for (const CheckpointFile& f : m.files)
        report_.bytes += f.bytes;
    write_text_synced(temporary() + "/" + kManifestName, format_manifest(m));
    entered("rename");
    commit_directory(run_dir_, meta_.step, options_.generation);
    last_bytes_ = report_.bytes;
    write_latest(run_dir_, meta_.step);
    report_.commit_s = seconds_since(begin);
    if (urgent_) return;
    entered("prune");
    try {  // the checkpoint stands, whatever becomes of the older ones
        const std::string dir = committed_dir(run_dir_, meta_.step);
        report_.pruned = prune_checkpoints(run_dir_, options_.keep, options_.read_back ? dir : "");
    } catch (const Error& e) {
        report_.warning = e.what();
    }
}

SaveReport CheckpointSaver::fail(const Mesh& mesh) {
    report_ = {.step = meta_.step, .snapshot_s = report_.snapshot_s};
    try {
        agree(mesh.world, "save checkpoint", [&] {
            if (failure_) std::rethrow_exception(failure_);
        });
    } catch (const Error& e) {
        report_.failure = e;
    }
    failure_ = nullptr;
    phase_ = Phase::idle;
    report_.total_s = seconds_since(begin_);
    if (mesh.world.rank() == 0) run([this] { remove_quietly(temporary()); });
    return report_;
}

std::optional<SaveReport> CheckpointSaver::advance(const SaveWords& all, const Mesh& mesh) {
    if (!saving() || all.busy != 0) return {};
    wait_for_job();  // done on every rank; now its results are ours
    if (all.failed != 0) return fail(mesh);
    const bool first = mesh.world.rank() == 0;
    switch (phase_) {
        case Phase::idle:
            break;
        case Phase::prepare:
            phase_ = Phase::write;
            if (mine_.empty()) break;
            run([this, rank = mesh.world.rank()] {
                entered("write");
                if (device_.is_cuda()) cuda::use_device(device_.index);
                copied_.wait();  // this thread waits for the copies from the GPU
                table_ = format_rank_table(
                    write_rank_file(temporary(), mine_, rank, options_.read_back && !urgent_,
                                    options_.courteous && !urgent_ ? &courtesy_ : nullptr));
            });
            break;
        case Phase::write: {
            entered("gather");
            phase_ = Phase::commit;
            std::vector<std::string> tables = gather(table_, 0, mesh.world);
            if (first)
                run([this, tables = std::move(tables), tp = mesh.tp_size()] {
                    commit(tables, tp);
                });
            break;
        }
        case Phase::commit:
            phase_ = Phase::idle;
            entered("idle");
            report_.dir = committed_dir(run_dir_, meta_.step);
            report_.total_s = seconds_since(begin_);
            report_.thread_s = thread_s_;
            return report_;
    }
    return {};
}

SaveReport CheckpointSaver::finish(const Mesh& mesh) {
    for (;;) {
        wait_for_job();
        patient_barrier(mesh.world);
        const SaveWords mine = words();
        std::array<std::int32_t, 2> all{mine.busy, mine.failed};
        all_reduce({reinterpret_cast<std::byte*>(all.data()), DType::int32, {2}, {}}, ReduceOp::max,
                   mesh.world, {});
        if (auto report = advance({all[0], all[1]}, mesh)) return *report;
    }
}

std::string save_checkpoint(const std::string& run_dir, const CheckpointMeta& meta,
                            const std::vector<TensorShard>& shards, const Mesh& mesh,
                            const SaveOptions& options) {
    CheckpointSaver saver(run_dir, options);
    saver.start(meta, shards, {}, mesh);
    const SaveReport report = saver.finish(mesh);
    if (report.failure) throw Error(*report.failure);
    return report.dir;
}

}  // namespace stoa
