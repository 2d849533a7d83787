// The same bits on every mesh: SHA-256 of masters, Adam's moments and scales after 50 steps on
// (dp,tp) = (1,1), (2,1), (1,2), (2,2), (4,1), (1,4), (4,2), in fp32 and r30, with micro-batches of
// 1, 2 and 4, with and without recompute, ZeRO-1 to 3, overlap, sequence parallel, tied and untied
// embeddings, an odd vocabulary, other numbers of threads; and loss and gradient norm of every
// step. Between whom sums are added is `elastic 4x4`; with `fast` the hashes must differ, or the
// program compares nothing.
//   mesh_bits [--quick]      The program starts itself under mpirun for every mesh.
#include <fmt/format.h>
#include <mpi.h>

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "kernels/core/thread_pool.h"
#include "parallel/mpi_session.h"
#include "tests/support/logical_state.h"
#include "tests/support/tiny_run.h"

using namespace stoa;
using namespace stoa::test;
using nlohmann::json;

namespace {

struct Case {
    std::int64_t dp = 1, tp = 1, micro_batch = 4;
    Recipe recipe = Recipe::fp32;
    Recompute recompute = Recompute::none;
    bool tied = true;
    bool fast = false;
    int threads = 1;
    int zero = 1;
    bool overlap = true;
    bool sequence = false;
    bool selects = false;  // attention by layer: tree, importance, window
    bool helped = false;   // ... importance with dense rows and distillation
    std::string text() const {
        return fmt::format("{} {} {} {} {} {} {} {} {} {} {} {} {}", dp, tp, micro_batch,
                           static_cast<int>(recipe), static_cast<int>(recompute), int{tied},
                           int{fast}, threads, zero, int{overlap}, int{sequence}, int{selects},
                           int{helped});
    }
    std::string subject() const {  // what must have one hash
        return fmt::format("{}{}{}{}", recipe_name(recipe), tied ? "" : " untied",
                           selects ? " dynamic" : "", helped ? " helped" : "");
    }
    std::string name() const {
        return fmt::format("{} dp {} tp {} micro {} recompute {} threads {} zero {}{}{}{}",
                           subject(), dp, tp, micro_batch, static_cast<int>(recompute), threads,
                           zero, overlap ? "" : " blocking", sequence ? " sequence" : "",
                           fast ? " fast" : "");
    }
};

TinyOptions options_of(const Case& c) {
    TinyOptions o{.micro_batch = c.micro_batch,
                  .recompute = c.recompute,
                  .tie_embeddings = c.tied,
                  .recipe = c.recipe,
                  .global_batch = 16,
                  .zero = c.zero,
                  .overlap = c.overlap,
                  .sequence = c.sequence};
    if (c.recipe != Recipe::fp32) {  // sizes that fp8 and four tp ranks can take
        o.whole_blocks = true;
        o.head_dim = 64;
        o.seq_len = 128;
    }
    if (c.selects) o.attention = tiny_attention(AttentionKind::dynamic, KeySelector::tree, "TPW");
    if (c.helped) o.attention.dense_rows = 0.2, o.attention.distil = 1.0;
    if (c.fast)
        o.determinism = Determinism::fast;
    else
        o.dp_shards = o.tp_chunks = 4;
    return o;
}

int rank_main(int argc, char** argv) {
    MpiSession session(argc, argv);
    const auto arg = [&](int i) { return std::stoll(argv[2 + i]); };
    const Case c{.dp = arg(0),
                 .tp = arg(1),
                 .micro_batch = arg(2),
                 .recipe = static_cast<Recipe>(arg(3)),
                 .recompute = static_cast<Recompute>(arg(4)),
                 .tied = arg(5) != 0,
                 .fast = arg(6) != 0,
                 .threads = static_cast<int>(arg(7)),
                 .zero = static_cast<int>(arg(8)),
                 .overlap = arg(9) != 0,
                 .sequence = arg(10) != 0,
                 .selects = arg(11) != 0,
                 .helped = arg(12) != 0};
    Mesh mesh = make_mesh(c.dp, c.tp, c.overlap ? Overlap::on : Overlap::off);
    set_cpu_threads(c.threads);
    TrainState s;
    const Trace t = tiny_run(options_of(c), mesh, arg(13), &s);
    const std::string hash = state_hash(s, mesh);
    if (mesh.world.rank() == 0)
        fmt::print("TRACE {}\n",
                   json{{"sha256", hash}, {"loss", t.loss}, {"grad_norm", t.grad_norm}}.dump());
    close_mesh(mesh);
    session.close();
    return 0;
}

/// "" where the case could not run.
json run_case(const char* self, const Case& c, int steps) {
    const Outcome o = run_shell(
        fmt::format("mpirun -q -n {} {} --rank {} {}", c.dp * c.tp, self, c.text(), steps));
    const std::size_t at = o.output.find("TRACE ");
    if (o.code == 0 && at != std::string::npos)
        return json::parse(o.output.substr(at + 6, o.output.find('\n', at) - at - 6));
    fmt::print(stderr, "{}: exit {}\n{}\n", c.name(), o.code, o.output);
    return {};
}

std::vector<Case> cases_of(bool quick) {
    constexpr std::pair<int, int> kMeshes[] = {{1, 1}, {2, 1}, {1, 2}, {2, 2},
                                               {4, 1}, {1, 4}, {4, 2}};
    std::vector<Case> cases;
    for (const Recipe recipe : {Recipe::fp32, Recipe::r30})
        for (const auto& [dp, tp] : kMeshes)
            for (const std::int64_t micro_batch : {4, 2, 1})
                for (const Recompute recompute : {Recompute::none, Recompute::full}) {
                    // quick: each mesh once, the rest in turn
                    if (quick && (micro_batch + dp + tp) % 3 != 0) continue;
                    if (quick && (recompute == Recompute::full) != (dp == 2)) continue;
                    cases.push_back({.dp = dp,
                                     .tp = tp,
                                     .micro_batch = micro_batch,
                                     .recipe = recipe,
                                     .recompute = recompute,
                                     .zero = micro_batch == 2 ? 0 : 1});
                }
    for (const auto& [dp, tp] : kMeshes)
        cases.push_back({.dp = dp, .tp = tp, .micro_batch = dp == 1 ? 1 : 4, .tied = false});
    // Sharded gradients and weights, on a thread beside the computation or not.
    for (const Recipe recipe : {Recipe::fp32, Recipe::r30})
        for (const auto& [dp, tp] : kMeshes)
            for (const int zero : {1, 2, 3})
                for (const bool overlap : {false, true}) {
                    if (dp == 1 || (zero == 1 && overlap)) continue;  // as above
                    if (quick && (zero + dp + tp + int{overlap}) % 3 != 0) continue;
                    cases.push_back(
                        {.dp = dp,
                         .tp = tp,
                         .recipe = recipe,
                         .recompute = zero == 2 ? Recompute::selective : Recompute::full,
                         .tied = recipe != Recipe::fp32 || dp != 2,
                         .zero = zero,
                         .overlap = overlap});
                }
    // Sequence parallel, with all of it.
    for (const Recipe recipe : {Recipe::fp32, Recipe::r30})
        for (const auto& [dp, tp] : kMeshes)
            for (const std::int64_t micro_batch : {4, 2, 1}) {
                if (tp == 1) continue;
                if (quick && (micro_batch + dp) % 3 != 0) continue;
                cases.push_back({.dp = dp,
                                 .tp = tp,
                                 .micro_batch = micro_batch,
                                 .recipe = recipe,
                                 .recompute = micro_batch == 4   ? Recompute::none
                                              : micro_batch == 2 ? Recompute::selective
                                                                 : Recompute::full,
                                 .tied = recipe != Recipe::fp32 || micro_batch > 1,
                                 .zero = micro_batch == 4 ? 3 : 1,
                                 .sequence = true});
            }
    // Selected keys: the selection is the same on every mesh, and so is what is learned from it.
    for (const Recipe recipe : {Recipe::fp32, Recipe::r30})
        for (const auto& [dp, tp] : kMeshes)
            for (const std::int64_t micro_batch : {4, 1}) {
                if (quick && (micro_batch + dp + tp) % 3 == 0) continue;
                cases.push_back({.dp = dp,
                                 .tp = tp,
                                 .micro_batch = micro_batch,
                                 .recipe = recipe,
                                 .recompute = tp == 1   ? Recompute::none
                                              : dp == 1 ? Recompute::selective
                                                        : Recompute::full,
                                 .zero = micro_batch == 1 ? 1 : 3,
                                 .sequence = tp > 1 && micro_batch == 1,
                                 .selects = true});
            }
    // Dense rows are drawn by where a sequence lies in the step, whoever computes it.
    for (const Recipe recipe : {Recipe::fp32, Recipe::r30})
        for (const auto& [dp, tp] : kMeshes)
            for (const std::int64_t micro_batch : {4, 2, 1}) {
                if (quick && (recipe != Recipe::fp32 || (micro_batch + dp + tp) % 3 != 0)) continue;
                cases.push_back({.dp = dp,
                                 .tp = tp,
                                 .micro_batch = micro_batch,
                                 .recipe = recipe,
                                 .recompute = dp == 2 ? Recompute::full : Recompute::none,
                                 .threads = dp * tp == 1 ? 2 : 1,
                                 .selects = true,
                                 .helped = true});
            }
    for (const Recipe recipe : {Recipe::fp32, Recipe::r30})
        cases.push_back(
            {.micro_batch = 2, .recipe = recipe, .recompute = Recompute::selective, .threads = 3});
    return cases;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc > 1 && std::strcmp(argv[1], "--rank") == 0) return rank_main(argc, argv);
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    const int steps = quick ? 6 : 50;
    std::map<std::string, json> first;
    int different = 0, failed = 0;
    const std::vector<Case> cases = cases_of(quick);
    for (const Case& c : cases) {
        const json t = run_case(argv[0], c, steps);
        if (t.is_null()) {
            ++failed;
            continue;
        }
        const bool same = first.emplace(c.subject(), t).first->second == t;
        different += same ? 0 : 1;
        fmt::print("{}: {} {}\n", c.name(), t.at("sha256").get<std::string>().substr(0, 16),
                   same ? "same" : "DIFFERENT");
        std::fflush(stdout);
    }
    // fast adds in another order on another mesh: that the comparison notices.
    const json one = run_case(argv[0], {.fast = true}, steps);
    const json two = run_case(argv[0], {.dp = 2, .fast = true}, steps);
    const bool notices = !one.is_null() && !two.is_null() && one != two;
    json hashes = json::object();
    for (const auto& [subject, t] : first)
        hashes[subject] = t.at("sha256");
    const bool holds = different == 0 && failed == 0 && notices;
    fmt::print("{}\n", json{{"cases", cases.size()},
                            {"steps", steps},
                            {"different", different},
                            {"failed", failed},
                            {"fast_differs", notices},
                            {"sha256", hashes},
                            {"holds", holds}}
                           .dump());
    return holds ? 0 : 1;
}
