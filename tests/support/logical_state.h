#pragma once
// Masters, moments and their scales as one text of bytes that every mesh must agree on.
#include <mpi.h>

#include <cstring>
#include <string>
#include <vector>

#include "parallel/collectives.h"
#include "tests/support/programs.h"
#include "trainer/model/transformer.h"

namespace stoa::test {

/// The logical tensors of the state, one after the other, without padding; the same on every rank.
/// Ranks that hold the same cells must hold the same bits, or the result is none of theirs. comm:
/// one all-reduce(world) per tensor
inline std::vector<std::byte> logical_state(const TrainState& s, const Mesh& mesh) {
    std::vector<std::byte> all;
    for (const TensorShard& t : checkpoint_shards(s.model)) {
        const std::int64_t cell = size_of(t.view.dtype), last = t.global_shape.rank - 1;
        const std::int64_t cols = t.global_shape[last];
        std::vector<std::byte> whole(static_cast<std::size_t>(t.global_shape.numel() * cell));
        for (std::int64_t r = 0; r < t.row_count; ++r)
            std::memcpy(whole.data() + ((t.row_begin + r) * cols + t.col_begin) * cell,
                        t.view.data + r * t.view.cols() * cell,
                        static_cast<std::size_t>(t.col_count * cell));
        if (mesh.world.size() > 1)
            MPI_Allreduce(MPI_IN_PLACE, whole.data(), static_cast<int>(whole.size()), MPI_BYTE,
                          MPI_BOR, mesh.world.handle());
        all.insert(all.end(), whole.begin(), whole.end());
    }
    return all;
}

/// Hexadecimal SHA-256 by coreutils.
inline std::string sha256(const std::vector<std::byte>& bytes) {
    const TempDir dir;
    write_text(dir / "bytes",
               std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
    return run_shell("sha256sum " + (dir / "bytes")).output.substr(0, 64);
}

/// Whether all dp ranks compute with the same weights.     comm: dp
inline bool same_work(const TrainState& s, const Communicator& dp) {
    bool same = true;
    for (const Param& p : s.model.params)
        for (const TensorView& t : {p.work.data, p.work.scale}) {
            if (dp.size() == 1 || t.empty() || p.gathered) continue;
            std::vector<std::byte> first(t.data, t.data + t.bytes());  // of dp rank 0
            MPI_Bcast(first.data(), static_cast<int>(first.size()), MPI_BYTE, 0, dp.handle());
            same = same && std::equal(first.begin(), first.end(), t.data);
        }
    return same;
}

/// SHA-256 of the state, or "ranks differ".     comm: world
inline std::string state_hash(const TrainState& s, const Mesh& mesh) {
    const std::vector<std::byte> state = logical_state(s, mesh);
    const bool same =
        all_reduce_scalar(std::int64_t{same_work(s, mesh.dp)}, ReduceOp::min, mesh.world) != 0;
    return !same ? "ranks differ" : mesh.world.rank() == 0 ? sha256(state) : "";
}

}  // namespace stoa::test
