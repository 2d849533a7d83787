#include "launcher/worker.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <thread>

#include "configs/load_run_config.h"
#include "kernels/core/log.h"
#include "kernels/core/thread_pool.h"
#include "launcher/gpu_memory.h"
#include "launcher/pick_device.h"
#include "launcher/run_lock.h"
#include "parallel/agree.h"
#include "parallel/collectives.h"
#include "parallel/mesh.h"
#include "trainer/fault_hook.h"
#include "trainer/memory_advice.h"
#include "trainer/metrics.h"
#include "trainer/pre_flight.h"
#include "trainer/report.h"
#include "trainer/stop_signal.h"
#include "trainer/train_loop.h"

namespace stoa {
namespace {

namespace fs = std::filesystem;

void write_file(const std::string& path, const std::string& text) {
    std::ofstream out(path, std::ios::trunc | std::ios::binary);
    out << text;
    out.flush();
    if (!out)
        throw DataError(
            {.what = "cannot write to the run directory",
             .where = path,
             .actual = std::strerror(errno),
             .hint = "make it writable, free space, or choose another with run.dir=PATH"});
}

void make_run_directory(const RunConfig& config, const LoadedConfig& loaded, RunLock& lock) {
    std::error_code failed;
    fs::create_directories(config.run_dir() + "/logs", failed);
    if (failed)
        throw DataError({.what = "cannot create the run directory",
                         .where = config.run_dir(),
                         .actual = failed.message(),
                         .hint = "make it writable or choose another with run.dir=PATH"});
    if (std::getenv("STOA_JOB") == nullptr) lock = RunLock(config.run_dir(), "stoa train");
    if (!lock.stale().empty())
        log_info("taking over the run directory from a job that has ended: {}", lock.stale());
    write_file(config.run_dir() + "/config.yaml", loaded.source_text);
    write_file(config.run_dir() + "/resolved.yaml", loaded.resolved_yaml);
}

// Every rank reads the file itself; different contents would train different models.
void require_same_config(const LoadedConfig& loaded, const Communicator& world) {
    const auto hash =
        static_cast<std::int64_t>(std::hash<std::string>{}(loaded.resolved_yaml) >> 1);
    const std::int64_t low = all_reduce_scalar(hash, ReduceOp::min, world);
    const std::int64_t high = all_reduce_scalar(hash, ReduceOp::max, world);
    if (low != high)
        throw ConfigError({.what = "the ranks read different configurations",
                           .expected = "the same file and overrides on every rank",
                           .hint = "put the file on shared storage, or copy it to every node"});
}

// The supervisor goes one checkpoint further back when a run keeps failing at the same step.
std::int64_t resume_limit() {
    const char* text = std::getenv("STOA_RESUME_AT_MOST");
    return text == nullptr || *text == '\0' ? kAnyStep : std::atoll(text);
}

void announce(const TrainRun& run, const MemoryPlan& plan) {
    const RunConfig& c = run.state.config;
    log_info(
        "run {}  seed {}  dp={} tp={}  {}  {} parameters, {} steps, {} tokens, plan {:.1f} MiB a "
        "rank",
        c.run_dir(), c.run.seed, run.mesh.dp_size(), run.mesh.tp_size(),
        recipe_name(c.precision.recipe), human_count(static_cast<double>(count_parameters(c))),
        total_steps(c), human_count(static_cast<double>(total_tokens(c))),
        static_cast<double>(plan.rank_bytes()) / (1 << 20));
}

// Names a machine or link that is much slower than the others, as a warning, before training.
// STOA_PREFLIGHT=off leaves it out, STOA_PREFLIGHT=FACTOR sets what counts as much (4).
void pre_flight(const Communicator& world, Watch& watch) {
    const char* text = std::getenv("STOA_PREFLIGHT");
    if (world.size() == 1 || (text != nullptr && std::string(text) == "off")) return;
    const double given = text == nullptr ? 0.0 : std::atof(text);
    const double factor = given > 1.0 ? given : 4.0;
    const PreFlightTimes times = measure_pre_flight(world, factor);
    if (world.rank() != 0) return;
    for (const PreFlightOutlier& o : find_outliers(times, factor)) {
        const std::string who = o.peer < 0 ? fmt::format("rank {}", o.rank)
                                           : fmt::format("ranks {} and {}", o.rank, o.peer);
        log_warn("pre-flight: {} of {} took {:.1f} ms, {:.1f} times the median of {:.2f} ms",
                 o.what, who, o.ms, o.ms / o.median_ms, o.median_ms);
        watch.record("pre_flight", 0,
                     {{"what", o.what},
                      {"who", who},
                      {"ms", fmt::format("{:.2f}", o.ms)},
                      {"median_ms", fmt::format("{:.2f}", o.median_ms)}});
    }
}

}  // namespace

// Under mpirun's binding a rank sees only its own cores.
int threads_of(const RunConfig& config, int ranks_here) {
    if (config.parallel.threads > 0) return static_cast<int>(config.parallel.threads);
    cpu_set_t set;
    CPU_ZERO(&set);
    const int mine = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    const auto all = static_cast<int>(std::thread::hardware_concurrency());
    return std::max(1, mine < all ? mine : mine / ranks_here);
}

ExitCode run_worker(const WorkerOptions& options, const MpiSession& session, Watch& watch) {
    set_log_rank(session.rank());
    install_stop_handlers();  // from here on a signal means: save, then leave
    // Before the mesh exists its shape must be known: the first agreement is over all ranks.
    Mesh everyone = make_mesh(session.size(), 1);
    watch.begin(everyone.world);
    fault_in(Phase::start, 0, session.rank());
    LoadedConfig loaded;
    RunConfig config;
    agree(everyone.world, "load config", [&] {
        loaded = load_run_config(options.config_path, options.overrides);
        config = resolve_for_world(loaded.config, session.size());
    });
    require_same_config(loaded, everyone.world);
    const DevicePick pick = pick_device(config.parallel.device, everyone.world);
    if (!pick.notice.empty() && everyone.world.rank() == 0) log_info("{}", pick.notice);
    // On a GPU open_side_streams has the say.
    Mesh mesh = make_mesh(config.parallel.dp, config.parallel.tp,
                          pick.device.is_cuda() ? Overlap::off : config.parallel.overlap);

    if (mesh.tp_across_machines > 0 && mesh.world.rank() == 0)
        log_warn(
            "{} of {} tensor-parallel groups have ranks on several machines: every layer waits for "
            "the network; start a multiple of tp = {} ranks on each machine",
            mesh.tp_across_machines, mesh.dp_size(), mesh.tp_size());

    RunLock lock;  // a supervisor holds it for its ranks
    agree(mesh.world, "make run directory", [&] {
        if (mesh.world.rank() != 0) return;
        make_run_directory(config, loaded, lock);
    });
    const RunIdentity identity = claim_run(config.run_dir(), mesh.world);
    agree(mesh.world, "open log", [&] { open_log(config.run_dir() + "/logs", mesh.world.rank()); });
    watch.records_in(config.run_dir());

    std::unique_ptr<Tokenizer> tokenizer;
    agree(mesh.world, "load tokenizer", [&] {
        tokenizer = std::make_unique<Tokenizer>(Tokenizer::load(config.data.tokenizer));
        config = resolve_for_vocab(config, tokenizer->vocab_size());
    });
    std::unique_ptr<TokenLoader> loader;
    agree(mesh.world, "open data",
          [&] { loader = std::make_unique<TokenLoader>(config, *tokenizer); });

    std::unique_ptr<cuda::CudaStream> stream;
    agree(mesh.world, "open the GPU", [&] { stream = open_device(pick.device); });
    if (pick.all_own)  // a group's ranks fail alike, and here those of the others hear of it
        for (Communicator* group : {&mesh.tp, &mesh.dp, &mesh.dp_beside})
            agree(mesh.world, "connect over NCCL",
                  [&] { group->open_nccl(pick.device, !is_elastic(config), kNcclDeadline_s); });
    if (pick.device.is_cuda() && config.parallel.overlap != Overlap::off)
        agree(mesh.world, "open side streams", [&] { open_side_streams(mesh, pick.device); });
    const Exec exec{pick.device, stream ? stream->stream() : Stream{}};
    const PolicyState policy = initial_policy(config, pick.capability);
    set_levels(config, policy);
    if (!config.precision.wide_layers.empty() && mesh.world.rank() == 0)
        log_info(
            "sm_{} multiplies no 8 bits: the {} feed-forward layers that precision.recipe has in "
            "them are in 16, and attention in bf16",
            pick.capability, config.precision.wide_layers.size());
    std::string reason;
    const cuda::DeviceInfo gpu =
        exec.device.is_cuda()
            ? cuda::list_devices(reason).at(static_cast<std::size_t>(exec.device.index))
            : cuda::DeviceInfo{};
    const GpuSetup setup{gpu_libraries(gpu.capability, cuda::has_cudnn()),
                         mesh.tp.nccl() != nullptr || mesh.dp.nccl() != nullptr};
    const MemoryPlan plan =
        plan_memory(config, mesh.tp_rank(), mesh.tp_size(), mesh.dp_rank(), exec.device, setup);
    if (options.print_memory_plan && mesh.world.rank() == 0) fmt::print("{}", describe_plan(plan));
    const int ranks_here = ranks_on_this_machine(mesh.world);
    agree(mesh.world, "check memory", [&] {
        if (!exec.device.is_cuda())
            return require_fits(config, plan, ranks_here, available_memory_bytes());
        require_fits_gpu(config, plan,
                         room_at_hand(gpu, exec.device.index, pick.sharers, cuda::free_bytes()),
                         setup);
    });
    set_cpu_threads(threads_of(config, ranks_here));
    TrainState state;
    agree(mesh.world, "allocate memory", [&] {
        state = make_train_state(config, mesh.tp_rank(), mesh.tp_size(), exec, mesh.dp_rank());
        state.policy = policy;
        if (exec.device.is_cuda()) cuda::reserve_scratch(exec.stream, plan.kernel_bytes);
    });
    TrainRun run{.tokenizer = *tokenizer,
                 .loader = *loader,
                 .mesh = mesh,
                 .exec = exec,
                 .state = std::move(state),
                 .curriculum = initial_curriculum(config),
                 .resolved_config = loaded.resolved_yaml,
                 .resume_command = options.resume_command,
                 .identity = identity,
                 .gpu = setup,
                 .planned_bytes = plan.rank_bytes()};
    announce(run, plan);
    pre_flight(mesh.world, watch);
    agree(mesh.world, "check for a fresh start", [&] {
        if (options.fresh && !list_checkpoints(config.run_dir()).empty())
            throw ConfigError({.what = "--fresh, but the run has checkpoints",
                               .where = config.run_dir(),
                               .hint = "choose another run.name, or leave out --fresh to resume"});
    });
    {
        const PhaseScope phase(Phase::restore);
        fault_in(Phase::restore, 0, session.rank());
        resume_run(run, resume_limit());
    }
    if (run_finished(run.curriculum, config) && run.curriculum.step > 0) {
        log_info(
            "the run is finished: {} steps are done. To train on, add another stage "
            "stage.",
            run.curriculum.step);
        close_mesh(mesh);
        close_mesh(everyone);
        return ExitCode::ok;
    }
    const ExitCode code = train_loop(run);
    set_phase(Phase::end);
    close_mesh(mesh);
    close_mesh(everyone);
    return code;
}

}  // namespace stoa
