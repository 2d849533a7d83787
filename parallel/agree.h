#pragma once
#include <functional>

#include "kernels/core/error.h"
#include "parallel/communicator.h"

namespace stoa {

/// Runs local work (no collective inside) on every rank of `comm` and waits for all. When it threw
/// on any rank, every rank throws an Error with the lowest failing rank's code and fields (the rank
/// and its host are added to `where`), so that all ranks stop together with one message and one
/// exit code. comm: one all-reduce and, on failure, one broadcast over `comm` errors: whatever
/// `work` throws, on all ranks alike (std::exception becomes ExitCode::internal)
void agree(const Communicator& comm, const std::string& phase, const std::function<void()>& work,
           Site site = {});

}  // namespace stoa
