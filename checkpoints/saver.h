#pragma once
// A save beside the training: a snapshot at a step boundary, then phases that a thread of the rank
// works off while the steps go on, each begun by all ranks together.
//
//   start()    every rank copies what it writes into memory of the plan      (training waits; on a
//              GPU the copies go on a stream beside it, and only the next update waits for them)
//   prepare    rank 0 sweeps leftovers, makes room and the temporary directory
//   write      every writer: rank file, sync, read back
//   commit     rank 0: state.h5, manifest, rename, LATEST, pruning
//
// The thread never calls MPI. The ranks compare words() in a message that they exchange anyway (a
// step's decisions) and hand the maximum to advance(); without such a message, finish() waits.
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "checkpoints/checkpoint.h"
#include "checkpoints/courtesy.h"
#include "checkpoints/manifest.h"
#include "kernels/core/exec.h"
#include "kernels/cuda/device.h"

namespace stoa {

struct SaveWords {
    std::int32_t busy = 0, failed = 0;  // of any rank: the maximum counts
};

/// How a save ended: committed, or why not.
struct SaveReport {
    std::int64_t step = 0;
    std::string dir;               // "" where it failed
    std::optional<Error> failure;  // the same on all ranks
    std::vector<std::string> pruned;
    std::string warning;  // of pruning: the checkpoint stands all the same
    std::int64_t bytes = 0;
    // snapshot: of this rank, training waited; the rest: of the slowest writer, and of rank 0
    double snapshot_s = 0.0, write_s = 0.0, verify_s = 0.0, commit_s = 0.0, total_s = 0.0;
    double thread_s = 0.0;  // processor time of this rank's saving thread
};

class CheckpointSaver {
public:
    CheckpointSaver(std::string run_dir, SaveOptions options);
    /// Waits for the thread's job; a save that is not finished is given up.
    ~CheckpointSaver();
    CheckpointSaver(const CheckpointSaver&) = delete;
    CheckpointSaver& operator=(const CheckpointSaver&) = delete;

    bool saving() const { return phase_ != Phase::idle; }
    std::int64_t step() const { return meta_.step; }  // of the save in flight
    /// Begins a save. With `snapshot` (snapshot_bytes of memory) the shards are free on return;
    /// with an empty one they stay as they are until finish(). `urgent`: without reading back and
    /// pruning. Shards on a GPU want a snapshot, in pinned host memory; they are read as they are
    /// when `stream` has done what it has been given so far, and are free behind copied(). All
    /// ranks; none is in flight. errors: none, finish() or advance() tell
    void start(CheckpointMeta meta, const std::vector<TensorShard>& shards,
               const TensorView& snapshot, const Mesh& mesh, bool urgent = false,
               Stream stream = {});
    /// Where the last snapshot's copies from a GPU end: who overwrites the shards waits for it.
    const cuda::Event& copied() const { return copied_; }
    SaveWords words() const;
    /// Begins the next phase when no rank is busy; `all` is the maximum of the ranks' words. The
    /// report comes once, on all ranks in the same call.
    /// comm: nothing while a rank is busy; a gather(world) of the tables before the commit; agree
    ///       (world) when a rank has failed
    std::optional<SaveReport> advance(const SaveWords& all, const Mesh& mesh);
    /// Until the save in flight is over, without spinning: a rank may need this processor to write.
    /// comm: all_reduce(world) per phase, and as advance
    SaveReport finish(const Mesh& mesh);

private:
    enum class Phase { idle, prepare, write, commit };
    void run(std::function<void()> job);
    void wait_for_job();
    void work();
    void copy_beside(const TensorView& snapshot, Device device, Stream stream);
    void prepare();
    void commit(const std::vector<std::string>& tables, int tp_size);
    SaveReport fail(const Mesh& mesh);
    void entered(const char* phase) const;
    std::string temporary() const;

    std::string run_dir_;
    SaveOptions options_;
    // Main thread only, or set while no job runs.
    Phase phase_ = Phase::idle;
    CheckpointMeta meta_;
    std::vector<TensorShard> mine_;
    std::int64_t expected_bytes_ = 0, last_bytes_ = 0;
    bool urgent_ = false;
    std::unique_ptr<cuda::CudaStream> copies_;  // of a GPU's shards; made by the first save
    cuda::Event copied_;
    Device device_;  // of the shards
    std::chrono::steady_clock::time_point begin_;
    // The running job's until it is done.
    std::string table_;
    SaveReport report_;
    double thread_s_ = 0.0;

    Courtesy courtesy_;
    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::function<void()> job_;  // empty: none
    std::exception_ptr failure_;
    bool closing_ = false;
    std::thread thread_;
};

}  // namespace stoa
