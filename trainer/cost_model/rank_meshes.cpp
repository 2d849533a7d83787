#include <algorithm>

#include "configs/check_config.h"
#include "configs/load_run_config.h"
#include "trainer/cost_model/cost_model.h"
#include "trainer/model/activations.h"

namespace stoa {
namespace {

bool is_legal(const RunConfig& c) {
    std::vector<Problem> problems;
    check_rules(c, KeyPlaces{}, problems);
    return problems.empty();
}

bool by_speed(const RankedMesh& a, const RankedMesh& b) {
    if (a.fits != b.fits) return a.fits;
    return a.cost.tokens_per_s > b.cost.tokens_per_s;
}

}  // namespace

std::vector<RankedMesh> rank_meshes(const RunConfig& config, const Cluster& cluster,
                                    std::int64_t devices) {
    constexpr double kUsable = 0.92;  // the rest: libraries, contexts, buffers of collectives
    std::vector<RankedMesh> meshes;
    for (std::int64_t tp = 1; tp <= std::min<std::int64_t>(devices, 1024); tp *= 2) {
        if (devices % tp != 0) continue;
        for (const std::int64_t micro_batch : {1, 2, 4, 8})
            for (const Recompute recompute :
                 {Recompute::none, Recompute::selective, Recompute::full})
                for (const std::int64_t zero : {1, 3}) {
                    RankedMesh mesh{.config = config, .cost = {}};
                    RunConfig& c = mesh.config;
                    c.parallel.tp = tp;
                    c.parallel.dp = devices / tp;
                    c.parallel.sequence = tp > 1;
                    c.parallel.recompute = recompute;
                    c.parallel.recompute_layers.clear();
                    c.parallel.zero = zero;
                    c.batch.micro_batch = micro_batch;
                    if (c.batch.global_batch % (micro_batch * c.parallel.dp) != 0) continue;
                    if (zero == 3 && c.parallel.dp == 1) continue;
                    if (!is_legal(c)) continue;
                    mesh.cost = predict_step(c, cluster);
                    mesh.memory_bytes =
                        static_cast<double>(plan_memory(c, 0, static_cast<int>(tp)).total_bytes());
                    mesh.fits = mesh.memory_bytes <= kUsable * 1e9 * cluster.memory_gb;
                    meshes.push_back(std::move(mesh));
                }
    }
    std::ranges::stable_sort(meshes, by_speed);
    return meshes;
}

}  // namespace stoa
