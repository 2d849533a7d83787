#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <new>
#include <sstream>

#include "checkpoints/checkpoint.h"
#include "configs/load_run_config.h"
#include "data/reasoning/engine.h"
#include "data/tokenizer/tokenizer.h"
#include "kernels/core/log.h"
#include "kernels/core/thread_pool.h"
#include "launcher/cli.h"
#include "launcher/commands.h"
#include "launcher/gpu_memory.h"
#include "launcher/pick_device.h"
#include "launcher/worker.h"
#include "parallel/agree.h"
#include "parallel/collectives.h"
#include "parallel/mpi_session.h"
#include "trainer/inference/shared_prefill.h"
#include "trainer/model/dp_traffic.h"
#include "trainer/run_state.h"

namespace stoa {
namespace {

namespace po = boost::program_options;

CommandLine generate_line() {
    CommandLine line{
        .usage =
            "stoa generate RUN_DIR (--prompt TEXT | --prompt-file FILE | --family NAME [--n N]) "
            "[parallel.device=WHERE]",
        .examples =
            "stoa generate runs/tiny --prompt 'Once upon a time'\n"
            "stoa generate runs/tiny --prompt 'Problem: Compute 3 + 5 + 4.\\n'\n"
            "stoa generate runs/tiny --family chain_sum --n 10\n"
            "stoa generate runs/long --prompt-file book.txt --cache fp8\n"
            "mpirun -n 4 stoa generate runs/long --prompt-file book.txt\n"
            "stoa generate runs/tiny parallel.device=cpu --prompt 'Once upon a time'",
        .about =
            "Continues a prompt greedily with the newest checkpoint of a run, or solves held-out "
            "problems of a "
            "family and has the verifier judge each answer. \\n in --prompt is a line break. Under "
            "mpirun the ranks divide a prompt and the layers' caches, for one that is too long for "
            "a machine; what is said does not depend on their number. Each rank computes where the "
            "run's parallel.device says: by default on a GPU of its own, without one on the CPU."};
    line.options.add_options()("run", po::value<std::string>(), "run directory")(
        "prompt", po::value<std::string>(), "text to continue")(
        "prompt-file", po::value<std::string>(), "file whose text is continued")(
        "family", po::value<std::string>(), "solve held-out problems of this family")(
        "n", po::value<std::int64_t>()->default_value(5), "how many problems")(
        "difficulty", po::value<std::int64_t>()->default_value(1), "1..10")(
        "max-new-tokens", po::value<std::int64_t>()->default_value(64),
        "limit of the continuation")(
        "cache", po::value<std::string>()->default_value("wide"),
        "wide, or fp8: tree layers keep what has left the window in 8 bits")(
        "set", po::value<std::vector<std::string>>()->multitoken(),
        "another parallel.device than the run's (may be given without --set)");
    line.positional.add("run", 1).add("set", -1);
    return line;
}

std::string unescape(const std::string& text) {
    std::string out;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const bool line_break = text[i] == '\\' && i + 1 < text.size() && text[i + 1] == 'n';
        out += line_break ? '\n' : text[i];
        i += line_break ? 1 : 0;
    }
    return out;
}

struct Trained {
    RunConfig config;
    std::unique_ptr<Tokenizer> tokenizer;
    DevicePick pick;
    std::unique_ptr<cuda::CudaStream> stream;
    Exec exec;
    TrainState state;
};

constexpr const char* kSmaller =
    "shorten the prompt, lower --max-new-tokens, divide it among more ranks (mpirun -n R stoa "
    "generate ...), or compute on the CPU: parallel.device=cpu";

CacheForm cache_form(const po::variables_map& o, int ranks) {
    const std::string name = o["cache"].as<std::string>();
    if (name == "wide") return CacheForm::wide;
    if (name != "fp8")
        throw ConfigError({.what = "--cache is not known",
                           .expected = "wide or fp8",
                           .actual = name,
                           .hint = "wide is the default"});
    if (ranks > 1)
        throw ConfigError({.what = "--cache fp8 is for one process",
                           .actual = std::to_string(ranks) + " ranks",
                           .hint = "run it without mpirun, or with --cache wide"});
    return CacheForm::fp8;
}

/// errors: ConfigError where the form would change nothing
void require_narrows(const TrainState& s, CacheForm form) {
    if (form == CacheForm::wide) return;
    if (s.device.is_cuda())
        throw ConfigError({.what = "--cache fp8 is for the CPU",
                           .hint = "parallel.device=cpu, or leave it away"});
    if (std::ranges::find(s.dims.attention, LayerAttention::tree) == s.dims.attention.end())
        throw ConfigError({.what = "--cache fp8 narrows nothing here",
                           .expected = "a layer that selects its keys by a tree",
                           .hint = "leave it away"});
    if (s.dims.formats.attention == DType::fp64)
        throw ConfigError(
            {.what = "--cache fp8 is not for a run in fp64", .hint = "leave it away"});
}

void solve_problems(Trained& t, const po::variables_map& o, CacheForm form) {
    TrainState& s = t.state;
    const Tokenizer& tokenizer = *t.tokenizer;
    const ReasoningFamily& family = reasoning_family(o["family"].as<std::string>());
    std::int64_t verified = 0;
    const std::int64_t n = o["n"].as<std::int64_t>();
    for (std::int64_t i = 0; i < n; ++i) {
        const ReasoningSample sample = make_sample(family, o["difficulty"].as<std::int64_t>(),
                                                   s.config.run.seed, ReasoningSplit::holdout, i);
        const RenderedSample text = render(sample);
        const std::vector<TokenId> prompt = tokenizer.encode(text.prompt);
        const auto room = o["max-new-tokens"].as<std::int64_t>();
        require_prompt_fits(s, prompt, room);
        require_fits_gpu(
            {.what = "the problem's caches",
             .parts = "",
             .bytes = decoding_bytes(s, 1, std::ssize(prompt) + room, std::ssize(prompt)),
             .hint = kSmaller},
            t.pick);
        const auto ids =
            generate_greedy(s, {prompt}, room, tokenizer.end_of_text(), Mesh{}, t.exec, form);
        const std::string solution = tokenizer.decode(ids[0]);
        std::string why = "no answer";
        const std::string answer = extract_answer(solution);
        const bool right = !answer.empty() && family.verify(sample.question, answer, why);
        verified += right ? 1 : 0;
        fmt::print("{}{}\n=> {}\n\n", text.prompt, solution,
                   right ? "verified" : "refuted: " + why);
    }
    fmt::print("{}/{} verified\n", verified, n);
}

// Where each rank computes, as `stoa train` decides it.
void open_devices(Trained& t, Mesh& mesh) {
    t.pick = pick_device(t.config.parallel.device, mesh.world);
    if (!t.pick.notice.empty() && mesh.world.rank() == 0) log_info("{}", t.pick.notice);
    agree(mesh.world, "open the GPU", [&] { t.stream = open_device(t.pick.device); });
    if (t.pick.all_own)
        agree(mesh.world, "connect over NCCL",
              [&] { mesh.dp.open_nccl(t.pick.device, /*fast_sums=*/true, kNcclDeadline_s); });
    t.exec = {t.pick.device, t.stream ? t.stream->stream() : Stream{}};
}

// `together`: an error is every rank's, now.
void check_memory(const Mesh& mesh, bool& together, const std::function<void()>& work) {
    together = true;
    agree(mesh.world, "check memory", work);
    together = false;
}

/// The newest checkpoint of a run, whole on every rank, whatever mesh trained it.
Trained load_trained(const po::variables_map& o, Mesh& mesh, bool& together) {
    const std::string run_dir = o["run"].as<std::string>();
    Trained t;
    agree(mesh.world, "load the run", [&] {
        std::vector<std::string> changed;
        if (o.count("set") > 0) changed = o["set"].as<std::vector<std::string>>();
        for (const std::string& c : changed)
            if (!c.starts_with("parallel.device="))
                throw ConfigError({.what = "only where a run computes can be changed here",
                                   .expected = "parallel.device=...",
                                   .actual = c,
                                   .hint = "the rest is as it was trained"});
        t.config = load_run_config(run_dir + "/resolved.yaml", changed).config;
        t.config.parallel.dp = t.config.parallel.tp = 1;
        t.config.parallel.determinism = Determinism::fast;
        t.config.parallel.zero = 0;
        t.config.checkpoint.blocking = true;  // saves nothing, so needs no snapshot
        t.config = resolve_for_world(t.config, 1);
        t.tokenizer = std::make_unique<Tokenizer>(Tokenizer::load(t.config.data.tokenizer));
        t.config = resolve_for_vocab(t.config, t.tokenizer->vocab_size());
    });
    open_devices(t, mesh);
    check_memory(mesh, together, [&] {
        MemoryPlan plan = plan_memory(t.config, 0, 1, 0, t.pick.device);
        plan.activation_bytes = 0;
        require_fits_gpu({.what = "the checkpoint's weights and optimizer state",
                          .parts = "",
                          .bytes = plan.total_bytes(),
                          .hint = "compute on the CPU: parallel.device=cpu"},
                         t.pick);
    });
    agree(mesh.world, "allocate memory",
          [&] { t.state = make_inference_state(t.config, 0, 1, t.exec); });
    const std::string dir = find_checkpoint(run_dir, mesh);
    if (dir.empty())
        throw CheckpointError({.what = "no checkpoint in this run directory",
                               .where = run_dir,
                               .hint = "train first: stoa train CFG"});
    const CheckpointMeta meta = load_checkpoint(dir, checkpoint_shards(t.state.model), mesh,
                                                LoadTensors::all, t.exec.stream);
    enter_stage(t.state, saved_stage(meta, t.config), t.exec);
    refresh_work(t.state.model, Mesh{}, t.exec);
    return t;
}

std::string read_prompt(const po::variables_map& o) {
    if (o.count("prompt") > 0) return unescape(o["prompt"].as<std::string>());
    const std::string path = o["prompt-file"].as<std::string>();
    std::ifstream in(path, std::ios::binary);
    std::ostringstream text;
    if (in.is_open() && !std::filesystem::is_directory(path)) text << in.rdbuf();
    if (!in.is_open() || text.view().empty())
        throw DataError({.what = "cannot read the prompt",
                         .where = path,
                         .expected = "a file of text",
                         .actual = in.is_open() ? "nothing in it" : std::strerror(errno),
                         .hint = "name another with --prompt-file"});
    return text.str();
}

// Before any rank takes it.
void require_caches_fit(const Trained& t, std::int64_t prompt, std::int64_t room,
                        const Mesh& mesh) {
    if (!t.pick.device.is_cuda()) return;
    const auto gib = [](std::int64_t b) { return static_cast<double>(b) / (1 << 30); };
    const SharedPrefillBytes bytes =
        shared_prefill_bytes(t.state, 1, prompt + room, prompt, mesh.dp_size(), mesh.dp_rank());
    require_fits_gpu({.what = "the prompt's caches",
                      .parts = fmt::format("{:.2f} caches, {:.2f} of a layer that passes, {:.2f} "
                                           "of its tokens, {:.2f} to work in",
                                           gib(bytes.own), gib(bytes.passing), gib(bytes.rows),
                                           gib(bytes.workspace)),
                      .bytes = bytes.total(),
                      .hint = kSmaller},
                     t.pick);
}

void generate(const po::variables_map& o, const MpiSession& session, bool& together) {
    set_log_rank(session.rank());
    Mesh mesh = make_mesh(session.size(), 1);
    CacheForm form = CacheForm::wide;
    agree(mesh.world, "check the command line", [&] {
        if (o["max-new-tokens"].as<std::int64_t>() < 0)
            throw ConfigError({.what = "--max-new-tokens is negative",
                               .expected = "0 or more",
                               .actual = std::to_string(o["max-new-tokens"].as<std::int64_t>()),
                               .hint = "64 is the default"});
        if (session.size() > 1 && o.count("family") > 0)
            throw ConfigError({.what = "problems are solved by one process",
                               .actual = std::to_string(session.size()) + " ranks",
                               .hint = "run it without mpirun"});
        form = cache_form(o, session.size());
    });
    Trained t = load_trained(o, mesh, together);
    agree(mesh.world, "check the cache", [&] { require_narrows(t.state, form); });
    set_cpu_threads(threads_of(t.config, ranks_on_this_machine(mesh.world)));
    if (o.count("family") > 0) {
        solve_problems(t, o, form);
    } else {
        const auto room = o["max-new-tokens"].as<std::int64_t>();
        std::string prompt;
        std::vector<TokenId> tokens;
        agree(mesh.world, "read the prompt", [&] {
            if (session.rank() == 0) prompt = read_prompt(o);
        });
        prompt = broadcast(prompt, 0, mesh.world);  // every host may have a file of that name
        agree(mesh.world, "read the prompt", [&] {
            tokens = t.tokenizer->encode(prompt);
            require_prompt_fits(t.state, tokens, room);
        });
        check_memory(mesh, together,
                     [&] { require_caches_fit(t, std::ssize(tokens), room, mesh); });
        const TokenId stop = t.tokenizer->end_of_text();
        const auto ids =
            form == CacheForm::fp8
                ? generate_greedy(t.state, {tokens}, room, stop, Mesh{}, t.exec, form)[0]
                : generate_shared(t.state, tokens, room, stop, mesh, t.exec);
        if (session.rank() == 0) fmt::print("{}{}\n", prompt, t.tokenizer->decode(ids));
    }
    close_mesh(mesh);
}

[[noreturn]] void leave_alone(const MpiSession& session, ExitCode code, const std::string& text) {
    fmt::print(stderr, "error: rank {} on {}: {}\n", session.rank(), host_name(), text);
    if (session.size() == 1) std::exit(static_cast<int>(code));
    MpiSession::abort(static_cast<int>(code));
}

}  // namespace

int command_generate(const Args& args) {
    const auto parsed = parse_command_line(generate_line(), args);
    if (!parsed) return 0;
    const po::variables_map& o = *parsed;
    if (o.count("run") == 0 || o.count("prompt") + o.count("prompt-file") + o.count("family") != 1)
        throw ConfigError(
            {.what = "a run directory and one of --prompt, --prompt-file, --family are needed",
             .hint = "stoa generate runs/tiny --prompt 'Hello'"});
    int argc = 0;
    char** argv = nullptr;
    MpiSession session(argc, argv);
    bool together = false;
    try {
        generate(o, session, together);
    } catch (const Error& e) {
        // A rank may be alone in lacking memory, with the others waiting for it. All else is
        // agreed: every rank is here with it, and the first one tells.
        if (e.code() == ExitCode::memory && !together)
            leave_alone(session, ExitCode::memory, e.what());
        // Before any rank leaves: mpirun ends the others with the first that does.
        if (session.rank() == 0) log_error("{}", e.what());
        session.close();
        return static_cast<int>(e.code());
    } catch (const std::bad_alloc&) {
        leave_alone(session, ExitCode::memory, "out of memory");
    } catch (const std::exception& e) {
        leave_alone(session, ExitCode::internal, e.what());
    }
    session.close();
    return 0;
}

}  // namespace stoa
