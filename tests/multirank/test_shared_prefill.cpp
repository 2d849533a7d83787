// A prompt that the dp ranks read together leaves what one rank that reads it alone has, to the
// last bit: hidden rows, next tokens, every layer's cache (of which each rank keeps its turn).
#include <mpi.h>

#include <cstring>

#include "parallel/collectives.h"
#include "tests/support/catch.h"
#include "tests/support/model_prefill.h"
#include "tests/support/texts.h"
#include "trainer/inference/shared_prefill.h"

using namespace stoa;
using namespace stoa::test;

namespace {

using Texts = std::vector<std::vector<TokenId>>;

int world_size() {
    int size = 1;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    return size;
}

struct Options {
    std::string layers;
    Recipe recipe = Recipe::fp32;
    std::int64_t seq_len = 128, zero = 1;
};
TrainState make_state(const Options& o, const Mesh& mesh) {
    // Sums over heads and features in one order, so that tp does not show.
    RunConfig c = tiny_config({.micro_batch = 1,
                               .recompute = Recompute::full,
                               .recipe = o.recipe,
                               .whole_blocks = o.recipe != Recipe::fp32,
                               .seq_len = o.seq_len,
                               .dp_shards = 4,
                               .tp_chunks = 2,
                               .zero = o.zero,
                               .attention = wide_attention(o.layers)},
                              mesh.dp_size(), mesh.tp_size());
    c.model.init_std = 0.3;  // far from indifferent
    return make_train_state(c, mesh.tp_rank(), mesh.tp_size(), Exec{}, mesh.dp_rank());
}

bool same_bytes(const std::byte* a, const std::byte* b, std::int64_t n) {
    return std::memcmp(a, b, static_cast<std::size_t>(n)) == 0;
}
bool same_bits(const Tensor& a, const Tensor& b) {
    return a.view.bytes() == b.view.bytes() &&
           (a.view.empty() || same_bytes(a.view.data, b.view.data, a.view.bytes()));
}
// What coming queries see; where in its memory a window lies does not matter.
bool same_keys(const ImportanceCache& a, const ImportanceCache& b) {
    if (a.length != b.length || a.far_keys != b.far_keys || a.window_keys != b.window_keys)
        return false;
    bool same = true;
    for (const auto& [x, y] : {std::pair{&a.k, &b.k},
                               {&a.v, &b.v},
                               {&a.gate, &b.gate},
                               {&a.importance, &b.importance}}) {
        const std::int64_t heads = x->view.shape[0], rows = x->view.shape[1],
                           bytes = x->view.bytes() / heads / rows;
        for (std::int64_t h = 0; h < heads; ++h) {
            const auto at = [&](const Tensor* t, std::int64_t row) {
                return t->view.data + (h * rows + row) * bytes;
            };
            same = same && same_bytes(at(x, 0), at(y, 0), a.far_keys * bytes) &&
                   same_bytes(at(x, a.window_begin), at(y, b.window_begin), a.window_keys * bytes);
        }
    }
    return same;
}
bool same_cache(const LayerCache& a, const LayerCache& b) {
    bool same = same_bits(a.k, b.k) && same_bits(a.v, b.v) && a.trees.size() == b.trees.size() &&
                a.windows.size() == b.windows.size();
    for (std::size_t i = 0; same && i < a.trees.size(); ++i)
        same = a.trees[i].len == b.trees[i].len &&
               same_bytes(a.trees[i].memory.data(), b.trees[i].memory.data(),
                          a.trees[i].memory.bytes());
    for (std::size_t i = 0; same && i < a.windows.size(); ++i)
        same = same_keys(a.windows[i], b.windows[i]);
    return same;
}

// The caches that this rank keeps are those of `alone`, and all ranks' together are all of it.
void check_caches(const Decoder& d, const Decoder& alone, const Mesh& mesh) {
    for (std::size_t l = 0; l < d.cache.layers.size(); ++l) {
        CAPTURE(l, d.cache.rank);
        if (d.cache.holds(static_cast<std::int64_t>(l)))
            CHECK(same_cache(d.cache.layers[l], alone.cache.layers[l]));
        else
            CHECK(layer_cache_bytes(d.cache.layers[l]) == 0);
    }
    CHECK(all_reduce_scalar(kv_cache_bytes(d.cache), ReduceOp::sum, mesh.dp) ==
          kv_cache_bytes(alone.cache));
}

// The same weights on one rank, and on this one of a mesh.
struct Pair {
    Options options;
    const Mesh& mesh;
    TrainState whole = make_state(options, Mesh{}), part = make_state(options, mesh);
};

// `texts` read together and continued by `more` tokens, against one rank with the whole model, and
// against the ranks of tp that read alone.
void check_reading(Pair& pair, const Texts& texts, std::int64_t more) {
    auto& [o, mesh, whole, s] = pair;
    CAPTURE(o.layers, recipe_name(o.recipe), mesh.dp_size(), mesh.tp_size(), mesh.dp_rank(),
            texts[0].size(), texts.size());
    const std::int64_t batch = std::ssize(texts), capacity = o.seq_len;
    Decoder one = make_decoder(whole, batch, capacity), alone = make_decoder(s, batch, capacity),
            shared = make_shared_decoder(s, batch, capacity, mesh);
    std::vector<TokenId> expected = feed(whole, one, texts, Mesh{}, Exec{});
    feed(s, alone, texts, mesh, Exec{});
    std::vector<TokenId> next = prefill_shared(s, shared, texts, mesh, Exec{});
    CHECK(next == expected);
    CHECK(same_bits(shared.hidden, one.hidden));
    CHECK(shared.length == one.length);
    check_caches(shared, alone, mesh);
    for (std::int64_t i = 0; i < more; ++i) {
        Texts step;
        for (std::size_t b = 0; b < texts.size(); ++b)  // one by one, and once three at a time
            step.push_back(i == 4 ? std::vector<TokenId>{expected[b], 3, 5}
                                  : std::vector<TokenId>{expected[b]});
        expected = feed(whole, one, step, Mesh{}, Exec{});
        feed(s, alone, step, mesh, Exec{});
        next = feed(s, shared, step, mesh, Exec{});
        CAPTURE(i);
        CHECK(next == expected);
        CHECK(same_bits(shared.hidden, one.hidden));
    }
    if (more > 0) check_caches(shared, alone, mesh);
}

}  // namespace

// First, so that nothing before it has held more.
TEST_CASE("a rank holds its part, its layers and one that passes", "[multirank]") {
    Mesh mesh = make_mesh(world_size(), 1);
    RunConfig c = prefill_model({.kind = AttentionKind::dynamic, .window = 32, .leaf = 8});
    c.model.d_model = 32;
    c.model.n_kv_heads = 2;
    c.parallel.dp = mesh.dp_size();
    c.batch.global_batch = mesh.dp_size();
    TrainState s = make_train_state(c, 0, 1, Exec{}, mesh.dp_rank());
    constexpr std::int64_t kTokens = 10'000, kNew = 8;
    std::vector<Tensor> positions;
    extend_positions(s, kTokens + kNew, positions);
    const auto planned_on = [&](int ranks, int rank) {
        return shared_prefill_bytes(s, 1, kTokens + kNew, kTokens, ranks, rank);
    };
    const SharedPrefillBytes planned = planned_on(mesh.dp_size(), mesh.dp_rank());

    const std::int64_t held = allocated_bytes(), most = peak_allocated_bytes();
    Decoder d = make_shared_decoder(s, 1, kTokens + kNew, mesh);
    CHECK(kv_cache_bytes(d.cache) == planned.own);
    prefill_shared(s, d, {random_text(1, kTokens)}, mesh, Exec{});
    REQUIRE(peak_allocated_bytes() > most);
    const std::int64_t measured = peak_allocated_bytes() - held;
    CAPTURE(mesh.dp_rank(), measured, planned.own, planned.passing, planned.rows,
            planned.workspace);
    CHECK(measured >= planned.total());
    CHECK(measured < planned.total() + planned.total() / 4);  // working memory of the kernels
    // Of 4 layers: 2 and another one on 2 ranks, 1 and another one on 4; the rest is by rows.
    const SharedPrefillBytes one = planned_on(1, 0);
    const auto in_layers = [&](std::int64_t bytes) {
        return 4.0 * double(bytes) / double(one.own);
    };
    CHECK(in_layers(planned.own) == Approx(4.0 / mesh.dp_size()));
    CHECK(in_layers(planned.passing) < 1.001);
    // And a chunk that comes from others.
    CHECK(double(planned.rows) < 1.25 * double(one.rows) / mesh.dp_size());
    CHECK(one.passing == 0);
    close_mesh(mesh);
}

TEST_CASE("ranks that share a prompt have the bits of one that reads it alone", "[multirank]") {
#ifdef __SANITIZE_ADDRESS__  // slow, and the same code for every format
    const Recipe recipe = Recipe::fp32;
    const auto layers = GENERATE(as<std::string>(), "TPW", "DTP");
#else
    const Recipe recipe = GENERATE(Recipe::fp32, Recipe::bf16, Recipe::r30);
    const auto layers = GENERATE(as<std::string>(), "D", "W", "T", "P", "TPW", "DTP");
#endif
    for (int tp = 1; tp <= world_size() / 2; tp *= 2) {
        Mesh mesh = make_mesh(world_size() / tp, tp);
        Pair pair{{layers, recipe}, mesh};
        for (const std::int64_t n : {1, 3, 37, 101})
            check_reading(pair, {random_text(static_cast<std::uint64_t>(n), n)}, n == 37 ? 8 : 2);
        close_mesh(mesh);
    }
}

TEST_CASE("ranks that share a prompt continue it as one does", "[multirank]") {
    Mesh mesh = make_mesh(world_size(), 1);
    TrainState s = make_state({.layers = "TPW"}, mesh);
    const std::vector<TokenId> prompt = random_text(5, 37);
    const auto alone = generate_greedy(s, {prompt}, 20, /*stop=*/-1, Mesh{}, Exec{})[0];
    CHECK(generate_shared(s, prompt, 20, -1, mesh, Exec{}) == alone);
    const std::vector<TokenId> until(alone.begin(), std::ranges::find(alone, alone[9]));
    CHECK(generate_shared(s, prompt, 20, alone[9], mesh, Exec{}) == until);
    CHECK_THROWS_AS(generate_shared(s, prompt, 1000, -1, mesh, Exec{}), ConfigError);
    close_mesh(mesh);
}

TEST_CASE("texts of different lengths are read side by side", "[multirank]") {
    const auto layers = GENERATE(as<std::string>(), "TPW", "DDP");
    for (int tp = 1; tp <= world_size() / 2; tp *= 2) {
        Mesh mesh = make_mesh(world_size() / tp, tp);
        Pair pair{{layers}, mesh};
        check_reading(pair, {random_text(1, 7), random_text(2, 90), {}, random_text(3, 41)}, 6);
        close_mesh(mesh);
    }
}

TEST_CASE("a part of several chunks is one part", "[multirank]") {
    const auto layers = GENERATE(as<std::string>(), "TPW", "TDT");
    Mesh mesh = make_mesh(world_size(), 1);
    const std::int64_t n = world_size() * kPassTokens + 150;
    Pair pair{{layers, Recipe::fp32, n + 16}, mesh};
    check_reading(pair, {random_text(9, n)}, 2);
    close_mesh(mesh);
}

TEST_CASE("weights that come from other ranks serve a shared prompt, too", "[multirank]") {
    Mesh mesh = make_mesh(world_size(), 1);
    Pair pair{{"TPD", Recipe::bf16, 128, /*zero=*/3}, mesh};
    REQUIRE_FALSE(pair.part.model.gathered.empty());
    check_reading(pair, {random_text(4, 77)}, 6);
    close_mesh(mesh);
}

TEST_CASE("one rank alone may read layer by layer", "[multirank]") {
    const Mesh alone;
    Pair pair{{"TPD"}, alone};
    check_reading(pair, {random_text(1, 60), random_text(2, 9)}, 5);
}

TEST_CASE("what cannot be read together is refused on all ranks", "[multirank]") {
    Mesh mesh = make_mesh(world_size(), 1);
    TrainState s = make_state({"TPD"}, mesh);
    const auto read = [&](Decoder& d, const Texts& texts) {
        prefill_shared(s, d, texts, mesh, Exec{});
    };
    Decoder d = make_shared_decoder(s, 1, 40, mesh);
    CHECK_THROWS_AS(read(d, {random_text(1, 41)}), ShapeError);                    // too long
    CHECK_THROWS_AS(read(d, {{}}), ShapeError);                                    // nothing
    CHECK_THROWS_AS(read(d, {random_text(1, 4), random_text(2, 4)}), ShapeError);  // too many
    CHECK_THROWS_AS(read(d, {random_text(static_cast<std::uint64_t>(mesh.dp_rank()), 9)}),
                    ShapeError);  // of each rank its own
    Decoder other = make_decoder(s, 1, 40);
    CHECK_THROWS_AS(read(other, {random_text(1, 9)}), ShapeError);  // nobody shares it
    Decoder roomy = make_shared_decoder(s, 1, 200, mesh);
    CHECK_THROWS_AS(read(roomy, {random_text(1, 140)}), ShapeError);  // no such positions
    CHECK_NOTHROW(read(d, {random_text(1, 38)}));
    CHECK_THROWS_AS(read(d, {random_text(1, 1)}), ShapeError);  // it has read
    CHECK_NOTHROW(feed(s, d, {{1, 2}}, mesh, Exec{}));
    CHECK_THROWS_AS(feed(s, d, {{1}}, mesh, Exec{}), ShapeError);  // full
    CHECK(d.length == std::vector<std::int64_t>{40});
    close_mesh(mesh);
}
