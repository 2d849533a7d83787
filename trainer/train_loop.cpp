#include "trainer/train_loop.h"

#include <fmt/format.h>

#include <chrono>
#include <map>

#include "checkpoints/run_directory.h"
#include "checkpoints/saver.h"
#include "kernels/core/log.h"
#include "kernels/cuda/device.h"
#include "parallel/agree.h"
#include "parallel/collectives.h"
#include "parallel/exit_record.h"
#include "parallel/mpi_session.h"
#include "trainer/fault_hook.h"
#include "trainer/lr_schedule.h"
#include "trainer/metrics.h"
#include "trainer/model/dp_traffic.h"
#include "trainer/report.h"
#include "trainer/run_state.h"
#include "trainer/train_step.h"

namespace stoa {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
}

// Why a step was skipped, and which samples it was: slots of a step are a pure function of the
// seed.
std::map<std::string, std::string> skip_details(const StepResult& r, const RunConfig& config,
                                                std::int64_t step) {
    return {{"reason", r.overflow ? "non-finite gradients"
                                  : fmt::format("spike: loss {:.2f} and log gradient norm {:.2f} "
                                                "standard deviations above the recent ones",
                                                r.spike.z_loss, r.spike.z_log_norm)},
            {"loss_scale", fmt::format("{}", r.loss_scale)},
            {"forward_layers", fmt::format("{}", fmt::join(r.forward_nonfinite, " "))},
            {"backward_layers", fmt::format("{}", fmt::join(r.backward_nonfinite, " "))},
            {"samples", fmt::format("seed {} step {} slots 0-{}", config.run.seed, step,
                                    config.batch.global_batch - 1)}};
}

constexpr std::int64_t kMaxRewinds = 3;

// Work that only rank 0 does; its failure is everyone's.
template <class Fn>
void on_rank_0(const Mesh& mesh, const char* phase, Fn&& work) {
    agree(mesh.world, phase, [&] {
        if (mesh.world.rank() == 0) work();
    });
}

constexpr int kMaxFailedSaves = 3;  // in a row

/// The saves of a run: the one in flight, and how many have failed since one was committed.
struct Saves {
    CheckpointSaver saver;
    int failed_in_a_row = 0;
    double waited_s = 0.0;  // for the one before, when the last one was due
    explicit Saves(const TrainRun& run)
        : saver(run.state.config.run_dir(), {.generation = run.identity.generation,
                                             .keep = {run.state.config.checkpoint.keep,
                                                      run.state.config.checkpoint.keep_every_steps},
                                             .read_back = true,
                                             .courteous = !run.state.config.checkpoint.blocking}) {}
};

// A disk too full for a checkpoint may be too full for a line about it.
void write_save_event(TrainRun& run, MetricsFiles& files, const char* event, std::int64_t step,
                      const std::map<std::string, std::string>& fields) {
    if (run.mesh.world.rank() != 0) return;
    try {
        files.write_event(event, step, fields);
    } catch (const Error& e) {
        log_warn("no event {}: {}", event, e.what());
    }
}

// `must`: this checkpoint is what the run goes on from or ends with.
void record_save(TrainRun& run, MetricsFiles& files, Saves& saves, const SaveReport& r, bool must) {
    const auto seconds = [](double s) { return fmt::format("{:.4f}", s); };
    if (!r.failure) {
        saves.failed_in_a_row = 0;
        write_save_event(run, files, "checkpoint", r.step,
                         {{"dir", r.dir},
                          {"bytes", std::to_string(r.bytes)},
                          {"seconds", seconds(r.total_s)},
                          {"snapshot_s", seconds(r.snapshot_s)},
                          {"waited_s", seconds(saves.waited_s)},
                          {"write_s", seconds(r.write_s)},
                          {"read_back_s", seconds(r.verify_s)},
                          {"commit_s", seconds(r.commit_s)},
                          {"pruned", std::to_string(r.pruned.size())}});
        if (!r.warning.empty()) log_warn("checkpoints were not pruned: {}", r.warning);
        return;
    }
    ++saves.failed_in_a_row;
    write_save_event(
        run, files, "checkpoint_failed", r.step,
        {{"reason", r.failure->what()}, {"in_a_row", std::to_string(saves.failed_in_a_row)}});
    if (must || r.failure->code() != ExitCode::checkpoint) throw Error(*r.failure);
    if (saves.failed_in_a_row >= kMaxFailedSaves) {
        ErrorFields fields = r.failure->fields();
        fields.what =
            fmt::format("{} saves in a row have failed: {}", kMaxFailedSaves, fields.what);
        throw CheckpointError(fields);
    }
    log_warn("no checkpoint at step {}, training goes on: {}", r.step, r.failure->what());
}

// Waits for the save in flight, if there is one.
void finish_save(TrainRun& run, MetricsFiles& files, Saves& saves, bool must = false) {
    if (!saves.saver.saving()) return;
    const PhaseScope phase(Phase::save);
    record_save(run, files, saves, saves.saver.finish(run.mesh), must);
}

// Begins a save at a step boundary; `must`: and ends it. One is in flight at a time: where the one
// before is not written yet, training waits, so that the steps that are due are the steps that are
// saved. `urgent`: the run is asked to leave.
void save(TrainRun& run, MetricsFiles& files, Saves& saves, bool must, bool urgent) {
    const PhaseScope phase(Phase::save);
    fault_in(Phase::save, run.curriculum.step, run.mesh.world.rank());
    const auto begin = Clock::now();
    finish_save(run, files, saves);
    saves.waited_s = seconds_since(begin);
    saves.saver.start(checkpoint_meta(run), checkpoint_shards(run.state.model), run.state.snapshot,
                      run.mesh, urgent, run.exec.stream);
    if (must || run.state.config.checkpoint.blocking) finish_save(run, files, saves, must);
}

// What resume_run passed over.
void write_refused(TrainRun& run, MetricsFiles& files) {
    for (const RefusedCheckpoint& r : run.refused)
        write_save_event(run, files, "checkpoint_refused", run.curriculum.step,
                         {{"dir", r.dir}, {"reason", r.reason}});
    run.refused.clear();
}

EvalReport evaluate_and_report(TrainRun& run, MetricsFiles& files, EvalWhen when) {
    const PhaseScope phase(Phase::evaluate);
    fault_in(Phase::evaluate, run.curriculum.step, run.mesh.world.rank());
    EvalReport report =
        evaluate(run.state, run.curriculum, run.loader, run.tokenizer, when, run.mesh, run.exec);
    on_rank_0(run.mesh, "write evaluation", [&] {
        files.write_eval(report);
        fmt::print("{}\n", eval_line(report));
        std::fflush(stdout);
    });
    return report;
}

// A step in which peers may already wait in a collective: an error ends the job at once, named by
// rank.
StepResult step_or_abort(TrainRun& run, const StepInputs& in) {
    const int rank = run.mesh.world.rank();
    const auto leave = [&](ExitCode code, const char* kind, const std::string& text) {
        if (run.mesh.world.size() == 1) throw;
        fmt::print(stderr, "error: rank {} on {}, step {}: {}\n", rank, host_name(),
                   run.curriculum.step, text);
        log_error("step {}: {}", run.curriculum.step, text);
        write_exit_record({.rank = rank,
                           .code = static_cast<int>(code),
                           .kind = kind,
                           .what = text,
                           .phase = "step",
                           .step = run.curriculum.step});
        MpiSession::abort(static_cast<int>(code));
    };
    try {
        return train_step(run.state, in, run.mesh, run.exec);
    } catch (const Error& e) {
        // A collective that fails here may be the fault of a rank that called another one.
        if (run.mesh.world.size() > 1) board_trouble(e.what(), /*seconds=*/1.0);
        leave(e.code(), "error", e.what());
    } catch (const std::bad_alloc&) {
        leave(ExitCode::memory, "bad_alloc", "out of memory");
    } catch (const std::exception& e) {
        leave(ExitCode::internal, "exception", e.what());
    }
    __builtin_unreachable();  // leave() returns on no path
}

void report_end(TrainRun& run, MetricsFiles& files, const EvalReport& last) {
    on_rank_0(run.mesh, "report", [&] {
        fmt::print("{}\n{}", solutions_text(last), accuracy_table(files.read_evals()));
        fmt::print("\ndone: {} steps, {} tokens. Checkpoints and records: {}\n",
                   run.curriculum.step, run.curriculum.tokens, run.state.config.run_dir());
        if (run.exec.device.is_cuda())
            fmt::print("{}\n", gpu_memory_line(measure_gpu(run.exec.device, run.planned_bytes)));
        std::fflush(stdout);
    });
}

// Places the state anew where the policy has changed formats, or sums are to have another order;
// what it held is lost.
void place_anew(TrainRun& run, RunConfig config, const PolicyState& policy) {
    set_levels(config, policy);
    const RunConfig& now = run.state.config;
    if (config.precision.wide_layers == now.precision.wide_layers &&
        config.precision.wide_attention == now.precision.wide_attention &&
        config.parallel.dp_shards == now.parallel.dp_shards &&
        config.parallel.tp_chunks == now.parallel.tp_chunks)
        return;
    run.state = TrainState{};  // first: two of them need not fit
    run.state = make_train_state(config, run.mesh.tp_rank(), run.mesh.tp_size(), run.exec,
                                 run.mesh.dp_rank());
    const MemoryPlan plan = plan_memory(config, run.mesh.tp_rank(), run.mesh.tp_size(),
                                        run.mesh.dp_rank(), run.exec.device, run.gpu);
    run.planned_bytes = plan.rank_bytes();
    if (run.exec.device.is_cuda()) cuda::reserve_scratch(run.exec.stream, plan.kernel_bytes);
}

// The weights of the last checkpoint, the data from here on: what led here is not seen again.
void rewind_run(TrainRun& run, MetricsFiles& files, std::int64_t rewinds) {
    const CurriculumState now = run.curriculum;
    if (rewinds > kMaxRewinds)
        throw DivergedError(
            {.what = "the loss keeps spiking",
             .where = "step " + std::to_string(now.step),
             .expected = fmt::format("at most {} rewinds to one checkpoint", kMaxRewinds),
             .hint = "lower optimizer.lr, or set optimizer.spike_z=0"});
    const bool loaded = resume_run(run);
    write_refused(run, files);
    const std::int64_t from = run.curriculum.step;
    run.curriculum = now;
    if (!loaded) forget_history(run.state.guard);  // nothing to return to: this is the new normal
    on_rank_0(run.mesh, "write event", [&] {
        files.write_event(
            "rewind", now.step,
            {{"weights_of_step", loaded ? std::to_string(from) : "(no checkpoint)"},
             {"samples", fmt::format("seed {} steps {}-{} are not seen again",
                                     run.state.config.run.seed, from, now.step - 1)}});
    });
}

// Refused checkpoints are kept under a name that no save and no start meets again.
void step_aside(TrainRun& run, std::vector<RefusedCheckpoint> refused) {
    on_rank_0(run.mesh, "set refused checkpoints aside", [&] {
        const std::vector<std::string> names = set_aside(refused);
        for (std::size_t i = 0; i < refused.size(); ++i) {
            if (names[i].empty()) continue;
            log_warn("{} is now {}", refused[i].dir, names[i]);
            refused[i].dir = names[i];
        }
    });
    run.refused = std::move(refused);
}

}  // namespace

bool resume_run(TrainRun& run, std::int64_t at_most) {
    const std::string run_dir = run.state.config.run_dir();
    on_rank_0(run.mesh, "sweep leftovers",
              [&] { clean_run_directory(run_dir, run.identity.generation); });
    FoundCheckpoint found = find_newest(run_dir, run.mesh, run.identity.run_id, at_most);
    const std::string dir = found.dir;
    if (dir.empty()) return false;
    step_aside(run, std::move(found.refused));
    // The manifest first: a configuration that does not fit is refused by its key, not by a
    // tensor's shape; and the formats of the layers are its policy's.
    agree(run.mesh.world, "compare configuration", [&] {
        const CheckpointMeta saved = read_checkpoint_info(dir).meta;
        check_identity(saved, checkpoint_meta(run), dir);
        RunConfig config = run.state.config;
        adopt_sums(saved, config, dir);
        place_anew(run, config, saved_policy(saved, config));
    });
    const CheckpointMeta meta = load_checkpoint(dir, checkpoint_shards(run.state.model), run.mesh,
                                                LoadTensors::all, run.exec.stream);
    agree(run.mesh.world, "restore counters", [&] { restore_counters(meta, run); });
    refresh_work(run.state.model, run.mesh, run.exec);
    log_info("resumed from {} at step {} ({} tokens)", dir, run.curriculum.step,
             run.curriculum.tokens);
    return true;
}

ExitCode train_loop(TrainRun& run) {
    const RunConfig config = run.state.config;
    const Mesh& mesh = run.mesh;
    const std::int64_t steps = total_steps(config);
    const std::int64_t dp_shards = virtual_mesh(config, mesh.dp_size(), mesh.tp_size()).dp_shards;
    MetricsFiles files;
    on_rank_0(mesh, "open records", [&] {
        files = MetricsFiles(config.run_dir(), run.curriculum.step);
        files.write_event(run.curriculum.step == 0 ? "start" : "resume", run.curriculum.step,
                          {{"ranks", std::to_string(mesh.world.size())}});
    });
    write_refused(run, files);
    Saves saves(run);
    EvalReport last;
    if (run.curriculum.step == 0) last = evaluate_and_report(run, files, EvalWhen::start);

    auto last_save = Clock::now();
    double seconds_per_step = 0.0;
    GpuMemory gpu;             // of the last step that was logged: asking takes the host a moment
    std::int64_t rewinds = 0;  // to the last checkpoint
    set_phase(Phase::step);
    while (!run_finished(run.curriculum, config)) {
        const auto step_begin = Clock::now();
        board_step(run.curriculum.step);
        fault_in(Phase::step, run.curriculum.step, mesh.world.rank());
        const StageConfig& stage = stage_at(run.curriculum, config);
        enter_stage(run.state, stage, run.exec);
        StepInputs in{.lr = learning_rate(config, run.curriculum),
                      .step = run.curriculum.step,
                      .stop = stop_requested(),
                      .saving = saves.saver.words(),
                      .snapshot = &saves.saver.copied()};
        in.save_due = config.checkpoint.every_seconds > 0.0 &&
                      seconds_since(last_save) >= config.checkpoint.every_seconds;
        agree(mesh.world, "load batch", [&] {
            in.micro_batches =
                run.loader.load_step(run.curriculum, mesh.dp_rank(), mesh.dp_size(), dp_shards);
        });
        const double data_ms = 1e3 * seconds_since(step_begin);
        take_comm_seconds();
        const StepResult result = step_or_abort(run, in);
        pace_step(step_begin);
        board_step_done();
        const CommSeconds comm = take_comm_seconds();
        run.curriculum = advance(run.curriculum, config);
        const double step_s = seconds_since(step_begin);
        seconds_per_step = seconds_per_step == 0.0 ? step_s : 0.9 * seconds_per_step + 0.1 * step_s;

        const std::int64_t step = run.curriculum.step;
        const bool finished = run_finished(run.curriculum, config);
        const bool switched = run.curriculum.stage_begin_step == step && !finished;
        const bool leaving = result.stop != StopRequest::none;
        if (leaving) set_phase(Phase::drain);
        const bool logs = step % config.log.every_steps == 0 || finished || switched;
        if (logs) gpu = measure_gpu(run.exec.device, run.planned_bytes);
        const StepRecord record{
            .step = step,
            .tokens = run.curriculum.tokens,
            .stage = stage.name,
            .loss = result.loss,
            .grad_norm = result.grad_norm,
            .lr = in.lr,
            .step_ms = 1e3 * step_s,
            .data_ms = data_ms,
            .comm_ms = 1e3 * comm.exposed,
            .hidden_comm_ms = 1e3 * comm.hidden,
            .tokens_per_s = static_cast<double>(config.batch.global_batch * stage.seq_len) / step_s,
            .valid_tokens = result.valid_tokens,
            .mem_peak_bytes = peak_memory_bytes(),
            .gpu = gpu,
            .skipped = result.skipped,
            .selection = logs && mesh.world.rank() == 0 ? layer_selections(run.state, run.exec)
                                                        : std::vector<LayerSelection>{}};
        on_rank_0(mesh, "write records", [&] {
            files.write_step(record);
            if (result.skipped)
                files.write_event("skip", step, skip_details(result, config, step - 1));
            for (const Transition& t : result.transitions)
                files.write_event("precision", step, {{"transition", to_text(t)}});
            if (logs || leaving || result.skipped)
                show_progress(progress_line(record, steps, seconds_per_step),
                              finished || switched || leaving || result.skipped);
        });
        if (run.state.skipped_in_a_row >= config.optimizer.max_skips)
            throw DivergedError({.what = "gradients stayed non-finite",
                                 .where = "step " + std::to_string(step),
                                 .expected = "fewer than " +
                                             std::to_string(config.optimizer.max_skips) +
                                             " skipped steps in a row",
                                 .hint = "lower optimizer.lr; the last checkpoint is from before"});
        for (const Transition& t : result.transitions)
            log_info("precision: {}", to_text(t));
        if (auto report = saves.saver.advance(result.saving, mesh))
            record_save(run, files, saves, *report, /*must=*/false);
        if (result.spike.action == SpikeAction::rewind) {
            finish_save(run, files, saves);
            rewind_run(run, files, ++rewinds);
        }
        if (switched) {
            forget_history(run.state.guard);
            on_rank_0(mesh, "write event", [&] {
                files.write_event("stage", step,
                                  {{"stage", stage_at(run.curriculum, config).name}});
            });
            log_info("stage '{}' begins at step {}", stage_at(run.curriculum, config).name, step);
        }
        const bool eval_due = config.eval.every_steps > 0 && step % config.eval.every_steps == 0;
        if (finished || ((switched || eval_due) && !leaving))
            last = evaluate_and_report(run, files,
                                       finished   ? EvalWhen::end
                                       : switched ? EvalWhen::stage_switch
                                                  : EvalWhen::interval);
        const bool save_due = result.save_due || (config.checkpoint.every_steps > 0 &&
                                                  step % config.checkpoint.every_steps == 0);
        const bool must = finished || leaving || !result.transitions.empty();
        if (save_due || must) {
            save(run, files, saves, must, /*urgent=*/leaving && !finished);
            last_save = Clock::now();
            rewinds = 0;
        }
        if (!result.transitions.empty() && !finished && !leaving) resume_run(run);
        if (fault_due(step)) finish_save(run, files, saves);
        fault_point(step, mesh.world.rank());
        if (leaving && !finished) {
            on_rank_0(mesh, "write event", [&] {
                files.write_event(
                    "stop", step,
                    {{"reason",
                      result.stop == StopRequest::interrupted ? "interrupted" : "preempted"}});
                fmt::print("stopped at step {}: checkpoint saved. Resume with:\n  {}\n", step,
                           run.resume_command);
                std::fflush(stdout);
            });
            return result.stop == StopRequest::interrupted ? ExitCode::interrupted
                                                           : ExitCode::preempted;
        }
    }
    report_end(run, files, last);
    return ExitCode::ok;
}

}  // namespace stoa
