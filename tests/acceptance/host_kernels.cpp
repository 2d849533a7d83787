// Every CUDA kernel, compiled by the host compiler and run block by block on the CPU with fibers as
// threads, against the CPU op: the same bytes, no access to shared memory that no barrier orders.
// Prints one JSON object last; exit code 0 only without a difference. --quick: small shapes only.
#include <fmt/format.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>

#include "kernels/core/error.h"
#include "kernels/cuda/host/fibers.h"
#include "tests/support/execs.h"
#include "tests/support/kernel_checks.h"

using namespace stoa;

int main(int argc, char** argv) {
    const bool quick = argc > 1 && std::string(argv[1]) == "--quick";
    const auto begin = std::chrono::steady_clock::now();
    nlohmann::json report;
    std::int64_t differences = 0, runs = 0, values = 0;
    bool clean = true;
    try {
        for (const bool large : {false, true}) {
            if (large && quick) break;
            for (const auto& check : test::check_kernels(test::available_execs().back(), large)) {
                fmt::print(stderr, "{:18} {:5} runs {:10} values {:3} differences {}\n", check.op,
                           check.runs, check.values, check.differences, check.first);
                differences += check.differences;
                runs += check.runs;
                values += check.values;
            }
        }
    } catch (const Error& e) {
        fmt::print(stderr, "{}\n", e.what());
        clean = false;
    }
    const auto counts = cuda::host::counts();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    report = {{"runs", runs},
              {"values", values},
              {"differences", differences},
              {"ordered", clean},
              {"launches", counts.launches},
              {"blocks", counts.blocks},
              {"barriers", counts.barriers},
              {"shuffles", counts.shuffles},
              {"shared_accesses", counts.shared_accesses},
              {"seconds", elapsed.count()}};
    fmt::print("{}\n", report.dump());
    return clean && differences == 0 && counts.launches > 0 ? 0 : 1;
}
