#include <fmt/format.h>
#include <sys/prctl.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <new>

#include "kernels/core/log.h"
#include "launcher/cli.h"
#include "launcher/commands.h"
#include "launcher/process.h"
#include "launcher/worker.h"
#include "parallel/exit_record.h"

namespace stoa {
namespace {

namespace po = boost::program_options;

CommandLine train_line() {
    CommandLine line{
        .usage = "stoa train CFG [key=value ...] [--fresh]",
        .examples =
            "stoa train configs/tiny.yaml\n"
            "mpirun -n 2 stoa train configs/tiny.yaml parallel.tp=2\n"
            "srun --mpi=pmix stoa train configs/125m.yaml run.name=first\n"
            "stoa train configs/tiny.yaml optimizer.lr=1e-3 'stages.0.tokens=2M tokens'",
        .about =
            "Trains the run that CFG describes, alone or as one rank under mpirun or srun. "
            "Continues from the "
            "newest good checkpoint in the run directory. SIGTERM, SIGUSR1 and SIGUSR2 save and "
            "leave with 75, "
            "Ctrl-C saves and leaves with 130; the same command then goes on."};
    line.options.add_options()("config", po::value<std::string>(), "the YAML file")(
        "set", po::value<std::vector<std::string>>()->multitoken(),
        "overrides, dotted key=value (may be given without --set)")(
        "fresh", po::bool_switch(), "refuse to start where checkpoints exist")(
        "print-memory-plan", po::bool_switch(), "print every tensor of the arena");
    line.positional.add("config", 1).add("set", -1);
    return line;
}

// The command that continues this run: what `stoa launch` was given, else this rank's own line.
std::string typed_command(const Args& args, const MpiSession& session) {
    if (const char* launched = std::getenv("STOA_COMMAND")) return launched;
    std::string text = session.size() > 1 ? fmt::format("mpirun -n {} ", session.size()) : "";
    text += this_program() + " train";
    for (const std::string& a : args)
        text += a.find_first_of(" '\"$*[]{}") == std::string::npos ? " " + a : " '" + a + "'";
    return text;
}

// A rank of `stoa launch`: its folder in shared memory has to be there before MPI starts, on every
// host (older ones are of generations that have ended), and it ends with its mpirun, even stopped.
void prepare_process() {
    namespace fs = std::filesystem;
    const char* text = std::getenv("STOA_BOARD_DIR");
    if (text == nullptr || *text == '\0') return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const fs::path dir(text);
    std::error_code ignored;
    fs::create_directories(dir, ignored);
    const std::string name = dir.filename().string(), run = name.substr(0, name.rfind("-g") + 2);
    const char* local_rank = std::getenv("OMPI_COMM_WORLD_LOCAL_RANK");
    if (local_rank == nullptr || std::string(local_rank) != "0") return;
    for (const auto& entry : fs::directory_iterator(dir.parent_path(), ignored))
        if (const std::string other = entry.path().filename().string();
            other != name && other.starts_with(run)) {
            std::error_code failed;
            fs::remove_all(entry.path(), failed);
        }
}

// Not agreed: a bug of ours or no memory, and peers may be waiting.
[[noreturn]] void leave_alone(const MpiSession& session, ExitCode code, const char* kind,
                              const std::string& text) {
    fmt::print(stderr, "error: rank {} on {}: {}\n", session.rank(), host_name(), text);
    write_exit_record(
        {.rank = session.rank(), .code = static_cast<int>(code), .kind = kind, .what = text});
    MpiSession::abort(static_cast<int>(code));
}

}  // namespace

int command_train(const Args& args) {
    const auto options = parse_command_line(train_line(), args);
    if (!options) return 0;
    if (options->count("config") == 0)
        throw ConfigError(
            {.what = "no configuration file given", .hint = "stoa train configs/tiny.yaml"});
    prepare_process();
    Watch watch;  // before MPI: a start that hangs is seen, too
    int argc = 0;
    char** argv = nullptr;
    MpiSession session(argc, argv);
    WorkerOptions worker{.config_path = (*options)["config"].as<std::string>(),
                         .fresh = (*options)["fresh"].as<bool>(),
                         .print_memory_plan = (*options)["print-memory-plan"].as<bool>(),
                         .resume_command = typed_command(args, session)};
    if (options->count("set") > 0)
        worker.overrides = (*options)["set"].as<std::vector<std::string>>();
    ExitCode code = ExitCode::internal;
    try {
        code = run_worker(worker, session, watch);
    } catch (const Error& e) {
        // Agreed: every rank is here with the same error. Rank 0 tells it once; each rank logs it.
        log_error("{}", e.what());
        code = e.code();
        if (session.rank() == std::max(0, e.fields().rank))
            write_exit_record({.rank = session.rank(),
                               .code = static_cast<int>(code),
                               .kind = "error",
                               .what = e.fields().what,
                               .where = e.fields().where});
    } catch (const std::bad_alloc&) {
        leave_alone(session, ExitCode::memory, "bad_alloc", "out of memory");
    } catch (const std::exception& e) {
        leave_alone(session, ExitCode::internal, "exception", e.what());
    }
    session.close();
    watch.end();
    return static_cast<int>(code);
}

}  // namespace stoa
