#include "trainer/stop_signal.h"

#include <csignal>
#include <initializer_list>

namespace stoa {
namespace {

volatile std::sig_atomic_t request = 0;

extern "C" void on_stop_signal(int signal) {
    const int wanted =
        static_cast<int>(signal == SIGINT ? StopRequest::interrupted : StopRequest::preempted);
    if (wanted > request) request = wanted;
}

}  // namespace

void install_stop_handlers() {
    struct sigaction action {};
    action.sa_handler = &on_stop_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    for (const int signal : {SIGTERM, SIGINT, SIGUSR1, SIGUSR2})
        sigaction(signal, &action, nullptr);
}

void request_stop(StopRequest wanted) {
    if (static_cast<int>(wanted) > request) request = static_cast<int>(wanted);
}

StopRequest stop_requested() { return static_cast<StopRequest>(static_cast<int>(request)); }

}  // namespace stoa
