#pragma once
// Where every thread of this process stands, written to a file: what a hang's verdict leaves for
// the person who looks for the cause.

namespace stoa {

/// Installs the handler of the signal that makes a thread write its stack (SIGRTMIN + 7). Once per
/// process, before dump_stacks.
void install_stack_dump();
/// The signal itself, for a thread that blocks others.
int stack_dump_signal();

/// Each thread of the process but the caller writes its stack to `fd`, one after the other; one
/// that does not answer within 100 ms is named as such. Takes no lock and allocates nothing in the
/// other threads, wherever they were.
void dump_stacks(int fd);

}  // namespace stoa
