#pragma once
// Errors a user can meet. Every one says what, where, expected, got and what to do next, and maps
// to one exit code, so that a script can tell a typo from a lost node.
#include <stdexcept>
#include <string>

namespace stoa {

/// Documented in the README; scripts and schedulers rely on these numbers.
enum class ExitCode : int {
    ok = 0,
    config = 2,         // command line or configuration
    data = 3,           // corpus, tokenizer, shards
    memory = 4,         // does not fit
    device = 5,         // hardware or communication
    checkpoint = 6,     // no usable checkpoint, or it could not be written
    diverged = 7,       // loss or gradients stayed non-finite
    gave_up = 69,       // stoa launch: restarts are used up, or the same fault came again
    internal = 70,      // a bug of ours
    preempted = 75,     // asked to stop by SIGTERM/SIGUSR1/SIGUSR2; checkpoint saved: run again
    peer_lost = 80,     // a worker: another rank, or its supervisor's job, has ended
    hang = 81,          // the watchdog's verdict: a rank hangs, or collectives do not match
    fenced = 82,        // a worker: no answer from its supervisor or monitor, or a newer start
    interrupted = 130,  // Ctrl-C; checkpoint saved
};

/// The fields of one error. `where` is a file:line:column, a path, a rank or an op; empty fields
/// are left out of the message.
struct ErrorFields {
    std::string what{};      // one sentence: what is wrong
    std::string where{};     // file, key, tensor
    std::string expected{};  // the rule
    std::string actual{};    // what was found
    std::string hint{};      // what to do next
    int rank = -1;           // the world rank that met it, once ranks have agreed on it
};

/// "where: what: expected E, got G\n  hint: H"
std::string format_error(const ErrorFields& fields);

class Error : public std::runtime_error {
public:
    Error(ExitCode code, ErrorFields fields)
        : std::runtime_error(format_error(fields)), code_(code), fields_(std::move(fields)) {}
    ExitCode code() const { return code_; }
    const ErrorFields& fields() const { return fields_; }

private:
    ExitCode code_;
    ErrorFields fields_;
};

struct ConfigError : Error {
    explicit ConfigError(ErrorFields f) : Error(ExitCode::config, std::move(f)) {}
};
struct DataError : Error {
    explicit DataError(ErrorFields f) : Error(ExitCode::data, std::move(f)) {}
};
struct MemoryError : Error {
    explicit MemoryError(ErrorFields f) : Error(ExitCode::memory, std::move(f)) {}
};
struct DeviceError : Error {
    explicit DeviceError(ErrorFields f) : Error(ExitCode::device, std::move(f)) {}
};
struct CollectiveError : Error {
    explicit CollectiveError(ErrorFields f) : Error(ExitCode::device, std::move(f)) {}
};
struct CheckpointError : Error {
    explicit CheckpointError(ErrorFields f) : Error(ExitCode::checkpoint, std::move(f)) {}
};
struct DivergedError : Error {
    explicit DivergedError(ErrorFields f) : Error(ExitCode::diverged, std::move(f)) {}
};
/// A shape or dtype that does not fit an op: a bug of ours, not the user's.
struct ShapeError : Error {
    explicit ShapeError(ErrorFields f) : Error(ExitCode::internal, std::move(f)) {}
};

}  // namespace stoa
