// What each rank holds while ranks read one long prompt together (sequence-parallel prefill), by
// plan and as the system measures it, for a tree model of 4 layers of width 256. Runs of different
// numbers of ranks print the same `hidden`, a checksum of the last hidden row after decoding.
//   mpirun -n R prefill_memory [--tokens N] [--kind tree|importance|window|dense]
#include <fmt/format.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "parallel/collectives.h"
#include "parallel/mpi_session.h"
#include "tests/support/model_prefill.h"
#include "trainer/inference/shared_prefill.h"
#include "trainer/metrics.h"

using namespace stoa;
using namespace stoa::test;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

namespace {

constexpr std::int64_t kNew = 16;

double mebibytes(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

double seconds_since(Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
}

AttentionConfig attention_named(const std::string& kind) {
    if (kind == "dense") return {};
    AttentionConfig a{.kind = AttentionKind::dynamic};
    a.layers = kind == "window" ? "W" : kind == "importance" ? "P" : "T";
    return a;
}

std::string checksum(ConstTensorView t) {
    std::uint64_t mixed = 0;
    for (const std::byte b : std::span(t.data, static_cast<std::size_t>(t.bytes())))
        mixed = mix_key(mixed, static_cast<std::uint64_t>(b));
    return fmt::format("{:016x}", mixed);
}

/// Of this rank.
json read_together(const AttentionConfig& attention, std::int64_t tokens, const Mesh& mesh) {
    RunConfig c = prefill_model(attention);
    c.parallel.dp = c.batch.global_batch = mesh.dp_size();
    TrainState s = make_train_state(c, 0, 1, Exec{}, mesh.dp_rank());
    std::vector<Tensor> positions;
    extend_positions(s, tokens + kNew, positions);
    std::vector<TokenId> text;
    Draws draws(3, 4);
    for (std::int64_t i = 0; i < tokens; ++i)
        text.push_back(static_cast<TokenId>(draws.below(256)));
    const SharedPrefillBytes plan =
        shared_prefill_bytes(s, 1, tokens + kNew, tokens, mesh.dp_size(), mesh.dp_rank());
    const std::int64_t before = peak_memory_bytes();
    Decoder d = make_shared_decoder(s, 1, tokens + kNew, mesh);
    barrier(mesh.dp);  // dp: the clock begins on all
    auto from = Clock::now();
    std::vector<TokenId> next = prefill_shared(s, d, {text}, mesh, Exec{});
    const double read_s = seconds_since(from);
    from = Clock::now();
    for (std::int64_t i = 0; i < kNew; ++i)
        next = feed(s, d, {{next[0]}}, mesh, Exec{});
    return {{"rank", mesh.dp_rank()},
            {"own_mb", mebibytes(plan.own)},
            {"passing_mb", mebibytes(plan.passing)},
            {"rows_mb", mebibytes(plan.rows)},
            {"workspace_mb", mebibytes(plan.workspace)},
            {"planned_mb", mebibytes(plan.total())},
            {"before_mb", mebibytes(before)},
            {"peak_resident_mb", mebibytes(peak_memory_bytes())},
            {"read_s", read_s},
            {"decode_ms", 1e3 * seconds_since(from) / static_cast<double>(kNew)},
            {"hidden", checksum(d.hidden)}};
}

}  // namespace

int main(int argc, char** argv) {
    MpiSession session(argc, argv);
    std::int64_t tokens = 65'536;
    std::string kind = "tree";
    for (int i = 1; i + 1 < argc; ++i) {
        if (std::strcmp(argv[i], "--tokens") == 0) tokens = std::atoll(argv[i + 1]);
        if (std::strcmp(argv[i], "--kind") == 0) kind = argv[i + 1];
    }
    Mesh mesh = make_mesh(session.size(), 1);
    const json mine = read_together(attention_named(kind), tokens, mesh);
    json ranks = json::array();
    double most = 0.0;
    bool alike = true;
    for (const std::string& text : gather(mine.dump(), 0, mesh.world)) {
        ranks.push_back(json::parse(text));
        most = std::max(most, ranks.back()["peak_resident_mb"].get<double>());
        alike = alike && ranks.back()["hidden"] == mine["hidden"];
    }
    if (session.rank() == 0)
        fmt::print("{}\n", json{{"bench", "prefill_memory"},
                                {"kind", kind},
                                {"tokens", tokens},
                                {"ranks", session.size()},
                                {"alike", alike},
                                {"most_resident_mb", most},
                                {"by_rank", ranks}}
                               .dump());
    close_mesh(mesh);
    session.close();
    return alike ? 0 : 1;
}
