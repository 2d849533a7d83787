#pragma once

namespace stoa {

enum class StopRequest : int { none = 0, preempted = 1, interrupted = 2 };

/// SIGTERM, SIGUSR1, SIGUSR2: save and leave with 75; SIGINT: save and leave with 130. The handler
/// only sets a flag; the step in progress ends, all ranks agree, then the checkpoint is written.
void install_stop_handlers();
StopRequest stop_requested();
/// What a signal would do, for a request that comes another way. From any thread.
void request_stop(StopRequest wanted);

}  // namespace stoa
