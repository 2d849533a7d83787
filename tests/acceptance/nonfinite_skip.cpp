// Inf or NaN in one rank's gradient, in one micro-batch: all ranks skip the same step, weights and
// moments stay finite, the event names layer and samples; ten in a row take the layer out of 8
// bits, and the run recovers. A second run with the same fault and other checkpoints ends in the
// same bits.
//   nonfinite_skip [--quick]
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "checkpoints/checkpoint.h"
#include "kernels/core/buffer.h"
#include "kernels/core/numeric.h"
#include "parallel/mesh.h"
#include "parallel/mpi_session.h"
#include "tests/support/supervised.h"

using namespace stoa;
using namespace stoa::test;
using nlohmann::json;

namespace {

constexpr std::int64_t kStageSteps = 20;
const std::string kModel =
    " model.d_model=128 model.n_layers=3 model.n_heads=4 model.n_kv_heads=4 model.head_dim=64"
    " model.d_ff=256 precision.edge_blocks=0 optimizer.max_skips=12";

bool is_finite(const TensorView& t) {
    const auto all = [&](auto test) {
        for (std::int64_t i = 0; i < t.numel(); ++i)
            if (!test(i)) return false;
        return true;
    };
    const auto bytes = [&](std::int64_t i) {
        return static_cast<unsigned>(t.data[static_cast<std::size_t>(i)]);
    };
    switch (t.dtype) {
        case DType::e4m3:
            return all([&](std::int64_t i) { return (bytes(i) & 0x7fu) != 0x7fu; });
        case DType::e8m0:
            return all([&](std::int64_t i) { return bytes(i) != 0xffu; });
        case DType::bf16:
            return all([&](std::int64_t i) {
                return std::isfinite(to_float(t.as<bf16>()[static_cast<std::size_t>(i)]));
            });
        case DType::fp24:
            return all([&](std::int64_t i) {
                return std::isfinite(to_float(t.as<fp24>()[static_cast<std::size_t>(i)]));
            });
        default:
            return all([&](std::int64_t i) {
                return std::isfinite(t.as<float>()[static_cast<std::size_t>(i)]);
            });
    }
}

// In a process of its own: every tensor of the last checkpoint, read through the project's reader.
int check_finite(int argc, char** argv) {
    MpiSession session(argc, argv);
    const Mesh mesh = make_mesh(1, 1);
    const auto checkpoints = list_checkpoints(argv[2]);
    if (checkpoints.empty()) return 1;
    const CheckpointInfo info = read_checkpoint_info(checkpoints.back());
    std::vector<Tensor> tensors;
    std::vector<TensorShard> shards;
    for (const CheckpointTensor& t : info.tensors) {
        const bool matrix = t.global_shape.rank == 2;
        const std::int64_t rows = matrix ? t.global_shape[0] : 1;
        const std::int64_t cols = matrix ? t.global_shape[1] : t.global_shape[0];
        tensors.emplace_back(Shape{rows, cols}, t.dtype);
        shards.push_back({.name = t.name,
                          .global_shape = t.global_shape,
                          .view = tensors.back(),
                          .row_begin = 0,
                          .row_count = rows,
                          .col_begin = 0,
                          .col_count = cols});
    }
    load_checkpoint(checkpoints.back(), shards, mesh);
    int bad = 0;
    for (const TensorShard& s : shards)
        if (!is_finite(s.view)) {
            fmt::print("not finite: {}\n", s.name);
            ++bad;
        }
    fmt::print("{} tensors, {} not finite\n", shards.size(), bad);
    session.close();
    return bad == 0 && !shards.empty() ? 0 : 1;
}

std::vector<json> read_lines(const std::string& path) {
    std::vector<json> lines;
    std::istringstream in(read_text(path));
    for (std::string line; std::getline(in, line);)
        lines.push_back(json::parse(line));
    return lines;
}

struct Case {
    std::string recipe, kind;
    std::int64_t first, last, rank, layer;
    int ranks;
    std::string mesh;
};

// What a run of the case must have written; the first complaint, or "".
std::string complaint(const Case& c, const std::string& run_dir) {
    std::vector<std::int64_t> skipped;
    std::string promoted;
    for (const json& e : read_lines(run_dir + "/events.jsonl")) {
        if (e["event"] == "skip") {
            skipped.push_back(e["step"].get<std::int64_t>() - 1);
            if (e["backward_layers"].get<std::string>().substr(0, 1) != std::to_string(c.layer))
                return "the event does not begin at the layer: " + e.dump();
            if (e["samples"].get<std::string>().empty()) return "no samples: " + e.dump();
        }
        if (e["event"] == "precision") promoted = e["transition"];
    }
    std::vector<std::int64_t> expected;
    for (std::int64_t s = c.first; s <= c.last; ++s)
        expected.push_back(s);
    if (skipped != expected)
        return fmt::format("skipped steps [{}], expected {}-{}", fmt::join(skipped, " "), c.first,
                           c.last);
    const std::string promotion =
        fmt::format("step={} layer={} to=16bit cause=skip_streak", c.first + 10, c.layer);
    if (c.last - c.first + 1 >= 10 ? promoted != promotion : !promoted.empty())
        return fmt::format("transition '{}'", promoted);
    double loss_before = 0.0, loss_end = 0.0;
    std::int64_t flagged = 0, steps = 0;
    for (const json& m : read_lines(run_dir + "/metrics.jsonl")) {
        if (!m.contains("loss")) continue;
        ++steps;
        flagged += m["skipped"] != 0;
        if (m["step"] == c.first) loss_before = m["loss"];
        loss_end = m["loss"];
    }
    if (flagged != std::ssize(expected)) return fmt::format("{} steps are marked skipped", flagged);
    if (steps != 2 * kStageSteps) return fmt::format("{} steps were made", steps);
    if (!(loss_end < loss_before))
        return fmt::format("no recovery: loss {} before, {} at the end", loss_before, loss_end);
    const Outcome finite = run_shell(
        "mpirun -q -n 1 " + fs::read_symlink("/proc/self/exe").string() + " --finite " + run_dir);
    return finite.code == 0 ? "" : finite.output;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc > 2 && std::strcmp(argv[1], "--finite") == 0) return check_finite(argc, argv);
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    const TempDir dir;
    const Outcome built = make_tiny_project(dir.path, kStageSteps);
    if (built.code != 0) {
        fmt::print(stderr, "{}\n", built.output);
        return 1;
    }
    std::vector<Case> cases = {{"r30", "inf", 6, 6, 1, 1, 2, "parallel.tp=1"},
                               {"r50", "nan", 5, 14, 1, 2, 2, "parallel.tp=1"}};
    if (!quick) {
        cases.push_back({"r30", "nan", 5, 5, 0, 2, 2, "parallel.tp=1"});
        cases.push_back({"r45", "inf", 5, 14, 1, 1, 2, "parallel.tp=2"});
        cases.push_back({"r30", "inf", 4, 14, 3, 1, 4, "parallel.tp=2"});
        cases.push_back({"r30", "nan", 7, 9, 2, 2, 4, "parallel.tp=1"});
    }
    int failed = 0;
    std::size_t n = 0;
    for (const Case& c : cases) {
        const std::string fault =
            fmt::format("{}@{}-{}:{}:{}", c.kind, c.first, c.last, c.rank, c.layer);
        const auto command = [&](const std::string& name) {
            return "STOA_FAULT=" + fault + " " +
                   train_command(
                       dir.path, c.ranks,
                       c.mesh + kModel + " precision.recipe=" + c.recipe + " run.name=" + name);
        };
        const std::string name = fmt::format("run-{}", n), again = fmt::format("again-{}", n);
        ++n;
        const Outcome o = run_shell(command(name));
        std::string wrong = o.code == 0 ? complaint(c, dir / "runs/" + name)
                                        : fmt::format("exit {}\n{}", o.code, o.output);
        if (wrong.empty()) {  // the same faults, with other checkpoints on the way
            run_shell(command(again) + " 'checkpoint.every=3 steps'");
            if (last_state(dir / "runs/" + again) != last_state(dir / "runs/" + name))
                wrong = "a second run of the same faults ends in other bits";
        }
        failed += !wrong.empty();
        fmt::print("{} {} {} ranks, {}: {}\n", c.recipe, fault, c.ranks, c.mesh,
                   wrong.empty() ? "as it must" : wrong);
    }
    const bool holds = failed == 0;
    fmt::print("{}\n", json{{"cases", cases.size()}, {"failed", failed}, {"holds", holds}}.dump());
    return holds ? 0 : 1;
}
