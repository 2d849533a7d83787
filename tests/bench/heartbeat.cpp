// What the watch costs a step: the same steps with and without a control thread and a monitor in
// this process, taken in turns (STOA_WATCHDOG needs no restart here). Prints one JSON object:
// the median of the paired ratios and their spread. Run it alone on a machine.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "parallel/control.h"
#include "parallel/monitor.h"
#include "tests/support/tiny_run.h"

using namespace stoa;
using namespace stoa::test;
using Clock = std::chrono::steady_clock;

namespace {

/// A monitor on a thread of its own, as on rank 0, and one worker's control thread.
struct WatchedProcess {
    Monitor monitor{{.world = 1, .token = "bench"}};
    std::atomic<bool> closing{false};
    std::thread thread{[this] {
        while (!closing.load()) {
            monitor.poll();
            (void)monitor.verdict();
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
        }
    }};
    std::unique_ptr<ControlThread> control;
    WatchedProcess() {
        control = std::make_unique<ControlThread>(
            ControlOptions{.addresses = monitor.addresses().back(), .token = "bench"});
    }
    ~WatchedProcess() {
        control.reset();
        closing.store(true);
        thread.join();
    }
};

}  // namespace

int main(int argc, char** argv) {
    const int pairs = argc > 1 ? std::atoi(argv[1]) : 21;
    const double seconds = argc > 2 ? std::atof(argv[2]) : 2.0;  // of each measurement
    const TinyOptions options{.global_batch = 8, .whole_blocks = true, .seq_len = 64};
    const Mesh mesh;
    const RunConfig config = tiny_config(options, 1, 1);
    const Exec exec{};
    TrainState state = make_train_state(config, 0, 1, exec, 0);
    CurriculumState curriculum = initial_curriculum(config);
    std::vector<MicroBatch> batches;
    for (std::int64_t b = 0; b < config.batch.global_batch; b += config.batch.micro_batch)
        batches.push_back(tiny_batch(config, 0, b));
    const auto steps_per_second = [&] {
        const auto begin = Clock::now();
        double spent = 0.0;
        int steps = 0;
        while (spent < seconds) {
            board_step(steps);
            (void)train_step(state, {batches, 1e-4, steps}, mesh, exec);
            board_step_done();
            ++steps;
            spent = std::chrono::duration<double>(Clock::now() - begin).count();
        }
        return steps / spent;
    };
    (void)steps_per_second();
    std::vector<double> ratios;
    for (int p = 0; p < pairs; ++p) {
        const auto watched = [&] {
            const WatchedProcess watch;
            return steps_per_second();
        };
        // which goes first alternates, so that a machine that warms up favours neither
        const double first = p % 2 == 0 ? steps_per_second() : watched();
        const double second = p % 2 == 0 ? watched() : steps_per_second();
        ratios.push_back(p % 2 == 0 ? first / second : second / first);  // time with / without
    }
    std::ranges::sort(ratios);
    const auto at = [&](double q) {
        return ratios[static_cast<std::size_t>(q * static_cast<double>(ratios.size() - 1))];
    };
    fmt::print("{}\n", nlohmann::json{{"pairs", pairs},
                                      {"seconds", seconds},
                                      {"step_time_ratio", at(0.5)},
                                      {"quarter", at(0.25)},
                                      {"three_quarters", at(0.75)}}
                           .dump());
    return 0;
}
