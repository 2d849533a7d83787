// 50 steps in fp32 at (dp,tp) = (1,1), (2,1), (1,2), (2,2), with and without recompute and gradient
// accumulation, odd vocabulary included: loss and gradient norm within 1e-5 of (1,1).
// The program starts itself under mpirun for every mesh.
#include <fmt/format.h>
#include <mpi.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "parallel/mpi_session.h"
#include "tests/support/programs.h"
#include "tests/support/tiny_run.h"

using namespace stoa;
using namespace stoa::test;
using nlohmann::json;

namespace {

struct Case {
    std::int64_t dp, tp, micro_batch, vocab;
    bool recompute;
};

// argv: --rank DP TP MICRO VOCAB RECOMPUTE STEPS
int rank_main(int argc, char** argv) {
    MpiSession session(argc, argv);
    const auto arg = [&](int i) { return std::stoll(argv[2 + i]); };
    Mesh mesh = make_mesh(arg(0), arg(1));
    const Trace t = tiny_run({.vocab_size = arg(3),
                              .micro_batch = arg(2),
                              .recompute = arg(4) != 0 ? Recompute::full : Recompute::none},
                             mesh, arg(5));
    if (mesh.world.rank() == 0)
        fmt::print("TRACE {}\n", json{{"loss", t.loss}, {"grad_norm", t.grad_norm}}.dump());
    close_mesh(mesh);
    session.close();
    return 0;
}

Trace run_case(const char* self, const Case& c, int steps) {
    const Outcome o =
        run_shell(fmt::format("mpirun -q -n {} {} --rank {} {} {} {} {} {}", c.dp * c.tp, self,
                              c.dp, c.tp, c.micro_batch, c.vocab, int{c.recompute}, steps));
    const std::size_t at = o.output.find("TRACE ");
    if (o.code != 0 || at == std::string::npos) {
        fmt::print(stderr, "dp {} tp {}: exit {}\n{}\n", c.dp, c.tp, o.code, o.output);
        return {};
    }
    const json t = json::parse(o.output.substr(at + 6, o.output.find('\n', at) - at - 6));
    return {t["loss"].get<std::vector<double>>(), t["grad_norm"].get<std::vector<double>>()};
}

}  // namespace

int main(int argc, char** argv) {
    if (argc > 1 && std::strcmp(argv[1], "--rank") == 0) return rank_main(argc, argv);
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    constexpr int kSteps = 50;
    double worst_loss = 0.0, worst_norm = 0.0;
    int cases = 0;
    for (const std::int64_t vocab : {std::int64_t{67}, std::int64_t{64}}) {
        const Trace reference = run_case(argv[0], {1, 1, 8, vocab, false}, kSteps);
        for (const auto& [dp, tp] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}})
            for (const bool recompute : {false, true})
                for (const std::int64_t micro_batch :
                     {4, 1}) {  // global batch 8: 1 .. 8 accumulation steps
                    if (quick && (vocab == 64 || (recompute && micro_batch == 1) ||
                                  (!recompute && micro_batch == 4)))
                        continue;
                    const Trace t =
                        run_case(argv[0], {dp, tp, micro_batch, vocab, recompute}, kSteps);
                    const double loss =
                        reference.loss.empty() ? 1e300 : worst_relative(t.loss, reference.loss);
                    const double norm = reference.loss.empty()
                                            ? 1e300
                                            : worst_relative(t.grad_norm, reference.grad_norm);
                    fmt::print(
                        "dp {} tp {} micro {} recompute {} vocab {}: loss {:.2e} grad norm "
                        "{:.2e}\n",
                        dp, tp, micro_batch, recompute ? "full" : "none", vocab, loss, norm);
                    worst_loss = std::max(worst_loss, loss);
                    worst_norm = std::max(worst_norm, norm);
                    ++cases;
                }
    }
    const bool holds = worst_loss < 1e-5 && worst_norm < 1e-5 && cases > 0;
    fmt::print("{}\n", json{{"cases", cases},
                            {"steps", kSteps},
                            {"worst_loss_relative", worst_loss},
                            {"worst_grad_norm_relative", worst_norm},
                            {"holds", holds}}
                           .dump());
    return holds ? 0 : 1;
}
