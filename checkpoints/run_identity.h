#pragma once
// Whose run directory this is, and which start of the run may commit to it.
//   <run>/run_id       32 hexadecimal digits, made at the first start; in every manifest
//   <run>/generation   a decimal number: the start that may commit (docs/checkpoint-format.md)
#include <cstdint>
#include <string>

#include "parallel/communicator.h"

namespace stoa {

struct RunIdentity {
    std::string run_id;
    std::int64_t generation = 0;
};

/// Rank 0 reads or makes both files. The generation is $STOA_GENERATION of the supervisor that
/// started us; without one, a start of ours that follows the last. A run directory without id takes
/// that of its newest readable checkpoint: copying ckpt/ into a new run continues it.
/// Every rank must then find the same id in the directory, or hosts see different directories.
/// comm: agree(world) twice, two broadcasts
/// errors: fenced where a newer generation has been here; ConfigError where the directory is not
/// shared; CheckpointError
RunIdentity claim_run(const std::string& run_dir, const Communicator& world);

/// The id, read or made; for tools that start no run. One process; no comm.
/// errors: CheckpointError
std::string claim_run_id(const std::string& run_dir);
/// <run>/generation, or -1 where there is none.     errors: CheckpointError when it is no number
std::int64_t read_generation(const std::string& run_dir);
/// Durable, by rename.
void write_generation(const std::string& run_dir, std::int64_t generation);
/// errors: fenced (82) where the file names another generation: a later start has taken over
void require_generation(const std::string& run_dir, std::int64_t generation);

}  // namespace stoa
