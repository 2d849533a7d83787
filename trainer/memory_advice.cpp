#include "trainer/memory_advice.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <limits>

#include "configs/check_config.h"
#include "data/curriculum.h"
#include "kernels/quantize.h"

namespace stoa {
namespace {

std::int64_t number_in(const std::string& path, const std::string& label) {
    std::ifstream in(path);
    for (std::string word; in >> word;)
        if (label.empty() || word == label) {
            std::int64_t n = 0;
            if (label.empty()) return word == "max" ? 0 : std::atoll(word.c_str());
            return in >> n ? n : 0;
        }
    return 0;
}

double gib(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

std::int64_t plan_bytes(const RunConfig& c, Device device, const GpuSetup& gpu) {
    const MemoryPlan plan = plan_memory(c, 0, static_cast<int>(c.parallel.tp), 0, device, gpu);
    return plan.rank_bytes() + plan.graph_bytes;
}

bool is_legal(const RunConfig& c) {
    std::vector<Problem> problems;
    check_rules(c, KeyPlaces{}, problems);
    return problems.empty();
}

// What can be tried, cheapest first: a step that changes the configuration or says it cannot.
struct Step {
    const char* why;
    std::function<std::string(RunConfig&)> apply;  // "key=value", or "" where there is nothing left
};
const std::vector<Step>& steps() {
    const auto recompute = [](Recompute to, const char* name) {
        return [to, name](RunConfig& c) -> std::string {
            if (c.parallel.recompute >= to) return "";
            c.parallel.recompute = to;
            c.parallel.recompute_layers.clear();
            return std::string("parallel.recompute=") + name;
        };
    };
    const auto recipe = [](Recipe to, const char* name) {
        return [to, name](RunConfig& c) -> std::string {
            if (c.precision.recipe >= to) return "";
            c.precision.recipe = to;
            return std::string("precision.recipe=") + name;
        };
    };
    static const std::vector<Step> all = {
        {"no snapshot: training waits while a checkpoint is written",
         [](RunConfig& c) -> std::string {
             if (c.checkpoint.blocking) return "";
             c.checkpoint.blocking = true;
             const CheckpointConfig& every = c.checkpoint;
             return every.every_seconds > 0.0
                        ? fmt::format("'checkpoint.every={}s blocking'", every.every_seconds)
                        : fmt::format("'checkpoint.every={} steps blocking'", every.every_steps);
         }},
        {"a third less than bf16 at equal loss", recipe(Recipe::r30, "r30")},
        {"norms and SwiGLU are computed twice", recompute(Recompute::selective, "selective")},
        {"more, smaller passes; the same steps",
         [](RunConfig& c) -> std::string {
             if (c.batch.micro_batch == 1) return "";
             c.batch.micro_batch = 1;
             return "batch.micro_batch=1";
         }},
        {"a third more computing", recompute(Recompute::full, "full")},
        {"gradients in bf16", recipe(Recipe::r45, "r45")},
        {"masters in fp24, Adam's v in fp8", recipe(Recipe::r50, "r50")},
        {"needs twice the ranks for one replica",
         [](RunConfig& c) -> std::string {
             if (c.parallel.tp_chunks % (2 * c.parallel.tp) != 0) return "";
             c.parallel.tp *= 2;
             c.parallel.dp = 0;
             return "parallel.tp=" + std::to_string(c.parallel.tp);
         }},
    };
    return all;
}

}  // namespace

std::int64_t available_memory_bytes() {
    std::int64_t available = 1024 * number_in("/proc/meminfo", "MemAvailable:");
    const std::int64_t limit = number_in("/sys/fs/cgroup/memory.max", "");
    const std::int64_t used = number_in("/sys/fs/cgroup/memory.current", "");
    if (limit > 0 && (available == 0 || limit - used < available)) available = limit - used;
    return std::max<std::int64_t>(available, 0);
}

DiskNeed plan_disk(const RunConfig& config) {
    Placer list;
    const LocalDims dims = local_dims(config, 0, 1);
    const ModelState state = layout_model_state(list, config, dims, 8, 0, 1);
    DiskNeed need;
    for (const Param& p : state.params) {
        const std::int64_t n = p.global_shape.numel();
        need.checkpoint_bytes += n * size_of(p.master.dtype);
        for (const Scaled* t : {&p.m, &p.v}) {
            need.checkpoint_bytes += n * size_of(t->data.dtype);
            if (t->data.dtype == DType::e4m3)
                need.checkpoint_bytes += scale_shape(p.global_shape, QuantBlocks::row).numel();
        }
    }
    const CheckpointConfig& c = config.checkpoint;
    const std::int64_t milestones =
        c.keep_every_steps > 0 ? total_steps(config) / c.keep_every_steps : 0;
    need.run_bytes = need.checkpoint_bytes * (c.keep + milestones + 1);
    return need;
}

std::vector<Advice> advise(const RunConfig& config, std::int64_t limit_bytes, Device device,
                           const GpuSetup& gpu) {
    std::vector<Advice> good;
    for (const Step& s : steps()) {  // one change alone
        RunConfig c = config;
        const std::string change = s.apply(c);
        if (change.empty() || !is_legal(c)) continue;
        const std::int64_t bytes = plan_bytes(c, device, gpu);
        if (bytes <= limit_bytes) good.push_back({fmt::format("{} ({})", change, s.why), bytes});
    }
    if (good.empty()) {  // changes added up, in order of their price
        RunConfig c = config;
        std::string changes;
        std::int64_t least = plan_bytes(config, device, gpu);
        for (const Step& s : steps()) {
            RunConfig next = c;
            const std::string change = s.apply(next);
            if (change.empty() || !is_legal(next)) continue;
            const std::int64_t bytes = plan_bytes(next, device, gpu);
            if (bytes >= least) continue;  // as a GPU's snapshot, which lies in host memory
            c = next;
            least = bytes;
            changes += (changes.empty() ? "" : " ") + change;
            if (bytes <= limit_bytes) good.push_back({changes, bytes});
        }
    }
    if (good.size() > 3) good.resize(3);
    return good;
}

void require_fits(const RunConfig& config, const MemoryPlan& plan, int ranks_here,
                  std::int64_t available_bytes) {
    if (available_bytes <= 0) return;
    const std::int64_t limit = available_bytes / std::max(ranks_here, 1) - kOutsidePlanBytes;
    if (plan.rank_bytes() <= limit) return;
    std::string hint;
    for (const Advice& a : advise(config, limit))
        hint += fmt::format("{}{:.2f} GiB with {}", hint.empty() ? "" : "\n      ", gib(a.bytes),
                            a.change);
    if (hint.empty()) hint = "no single change makes it fit: use a smaller model or more machines";
    throw MemoryError({.what = "the run does not fit this machine",
                       .expected = fmt::format("at most {:.2f} GiB for each of {} rank{}",
                                               gib(std::max<std::int64_t>(limit, 0)), ranks_here,
                                               ranks_here == 1 ? "" : "s"),
                       .actual = fmt::format("{:.2f} GiB planned", gib(plan.rank_bytes())),
                       .hint = hint});
}

}  // namespace stoa
