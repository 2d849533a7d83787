// The same bits on every mesh: SHA-256 of the masters, and of Adam's moments, after 50 steps on
// (dp,tp) = (1,1), (2,1), (1,2), (2,2), (4,1), (1,4), (4,2), in fp32 and r30, with micro-batches of
// 1, 2 and 4, with and without recompute, tied and untied embeddings, an odd vocabulary, other
// numbers of threads; and loss and gradient norm of every step. Between whom sums are added is
// `elastic 4x4`; with `fast` the hashes must differ, or the program compares nothing.
//   mesh_bits [--quick]      The program starts itself under mpirun for every mesh.
#include <fmt/format.h>
#include <mpi.h>

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "kernels/core/thread_pool.h"
#include "parallel/collectives.h"
#include "parallel/mpi_session.h"
#include "tests/support/programs.h"
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
    std::string text() const {
        return fmt::format("{} {} {} {} {} {} {} {}", dp, tp, micro_batch, static_cast<int>(recipe),
                           static_cast<int>(recompute), int{tied}, int{fast}, threads);
    }
    std::string subject() const {  // what must have one hash
        return fmt::format("{}{}", recipe_name(recipe), tied ? "" : " untied");
    }
    std::string name() const {
        return fmt::format("{} dp {} tp {} micro {} recompute {} threads {}{}", subject(), dp, tp,
                           micro_batch, static_cast<int>(recompute), threads, fast ? " fast" : "");
    }
};

TinyOptions options_of(const Case& c) {
    TinyOptions o{.micro_batch = c.micro_batch,
                  .recompute = c.recompute,
                  .tie_embeddings = c.tied,
                  .recipe = c.recipe,
                  .global_batch = 16};
    if (c.recipe != Recipe::fp32) {  // sizes that fp8 and four tp ranks can take
        o.whole_blocks = true;
        o.head_dim = 64;
        o.seq_len = 128;
    }
    if (c.fast)
        o.determinism = Determinism::fast;
    else
        o.dp_shards = o.tp_chunks = 4;
    return o;
}

/// The logical cells of this rank's part of p, which is stored as bytes, in the whole tensor.
void put_cells(std::vector<std::byte>& whole, const Param& p, const TensorView& part) {
    const std::int64_t cell = size_of(part.dtype), cols = part.cols();
    const std::int64_t all_cols = p.global_shape[p.global_shape.rank - 1];
    const bool rows_cut = p.cut == TpCut::rows, cols_cut = p.cut == TpCut::cols;
    const std::int64_t rows = rows_cut ? p.range.count : part.rows();
    for (std::int64_t r = 0; r < rows; ++r)
        std::memcpy(
            whole.data() + ((r + p.row_begin()) * all_cols + (cols_cut ? p.range.begin : 0)) * cell,
            part.data + r * cols * cell, static_cast<std::size_t>(cols * cell));
}

/// Masters and moments of the logical model, one after the other; the same on every rank.
std::vector<std::byte> logical_state(const TrainState& s, const Communicator& tp) {
    std::vector<std::byte> all;
    for (const Param& p : s.model.params)
        for (const TensorView& t : {p.master, p.m.data, p.v.data}) {
            std::vector<std::byte> whole(
                static_cast<std::size_t>(p.global_shape.numel() * size_of(t.dtype)));
            if (p.cut != TpCut::replicated || tp.rank() == 0) put_cells(whole, p, t);
            if (tp.size() > 1)
                MPI_Allreduce(MPI_IN_PLACE, whole.data(), static_cast<int>(whole.size()), MPI_BYTE,
                              MPI_BOR, tp.handle());
            all.insert(all.end(), whole.begin(), whole.end());
        }
    return all;
}

std::string sha256(const std::vector<std::byte>& bytes) {
    const TempDir dir;
    write_text(dir / "state",
               std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
    return run_shell("sha256sum " + (dir / "state")).output.substr(0, 64);
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
                 .threads = static_cast<int>(arg(7))};
    Mesh mesh = make_mesh(c.dp, c.tp);
    set_cpu_threads(c.threads);
    TrainState s;
    const Trace t = tiny_run(options_of(c), mesh, arg(8), &s);
    const std::vector<std::byte> state = logical_state(s, mesh.tp);
    std::vector<std::byte> first = state;  // of world rank 0
    if (mesh.world.size() > 1)
        MPI_Bcast(first.data(), static_cast<int>(first.size()), MPI_BYTE, 0, mesh.world.handle());
    const std::int64_t same =
        all_reduce_scalar(std::int64_t{first == state}, ReduceOp::min, mesh.world);
    if (mesh.world.rank() == 0)
        fmt::print("TRACE {}\n", json{{"sha256", same != 0 ? sha256(state) : "ranks differ"},
                                      {"loss", t.loss},
                                      {"grad_norm", t.grad_norm}}
                                     .dump());
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
                                     .recompute = recompute});
                }
    for (const auto& [dp, tp] : kMeshes)
        cases.push_back({.dp = dp, .tp = tp, .micro_batch = dp == 1 ? 1 : 4, .tied = false});
    for (const Recipe recipe : {Recipe::fp32, Recipe::r30})
        cases.push_back(
            {.micro_batch = 2, .recipe = recipe, .recompute = Recompute::selective, .threads = 3});
    return cases;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc > 1 && std::strcmp(argv[1], "--rank") == 0) return rank_main(argc, argv);
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    const int steps = quick ? 10 : 50;
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
