#include <fmt/format.h>

#include <iostream>

#include "checkpoints/checkpoint.h"
#include "configs/load_run_config.h"
#include "data/reasoning/engine.h"
#include "data/tokenizer/tokenizer.h"
#include "launcher/cli.h"
#include "launcher/commands.h"
#include "trainer/inference/decode.h"
#include "trainer/model/dp_traffic.h"
#include "trainer/run_state.h"

namespace stoa {
namespace {

namespace po = boost::program_options;

CommandLine generate_line() {
    CommandLine line{
        .usage = "stoa generate RUN_DIR (--prompt TEXT | --family NAME [--n N])",
        .examples =
            "stoa generate runs/tiny --prompt 'Once upon a time'\n"
            "stoa generate runs/tiny --prompt 'Problem: Compute 3 + 5 + 4.\\n'\n"
            "stoa generate runs/tiny --family chain_sum --n 10",
        .about =
            "Continues a prompt greedily with the newest checkpoint of a run, or solves held-out "
            "problems of a "
            "family and has the verifier judge each answer. \\n in a prompt is a line break."};
    line.options.add_options()("run", po::value<std::string>(), "run directory")(
        "prompt", po::value<std::string>(), "text to continue")(
        "family", po::value<std::string>(), "solve held-out problems of this family")(
        "n", po::value<std::int64_t>()->default_value(5), "how many problems")(
        "difficulty", po::value<std::int64_t>()->default_value(1), "1..10")(
        "max-new-tokens", po::value<std::int64_t>()->default_value(64),
        "limit of the continuation");
    line.positional.add("run", 1);
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

int solve_problems(TrainState& s, const Tokenizer& tokenizer, const po::variables_map& o) {
    const ReasoningFamily& family = reasoning_family(o["family"].as<std::string>());
    std::int64_t verified = 0;
    const std::int64_t n = o["n"].as<std::int64_t>();
    for (std::int64_t i = 0; i < n; ++i) {
        const ReasoningSample sample = make_sample(family, o["difficulty"].as<std::int64_t>(),
                                                   s.config.run.seed, ReasoningSplit::holdout, i);
        const RenderedSample text = render(sample);
        const auto ids = generate_greedy(s, {tokenizer.encode(text.prompt)},
                                         o["max-new-tokens"].as<std::int64_t>(),
                                         tokenizer.end_of_text(), Mesh{}, Exec{});
        const std::string solution = tokenizer.decode(ids[0]);
        std::string why = "no answer";
        const std::string answer = extract_answer(solution);
        const bool right = !answer.empty() && family.verify(sample.question, answer, why);
        verified += right ? 1 : 0;
        fmt::print("{}{}\n=> {}\n\n", text.prompt, solution,
                   right ? "verified" : "refuted: " + why);
    }
    fmt::print("{}/{} verified\n", verified, n);
    return 0;
}

}  // namespace

int command_generate(const Args& args) {
    const auto parsed = parse_command_line(generate_line(), args);
    if (!parsed) return 0;
    const po::variables_map& o = *parsed;
    if (o.count("run") == 0 || o.count("prompt") + o.count("family") != 1)
        throw ConfigError({.what = "a run directory and either --prompt or --family are needed",
                           .hint = "stoa generate runs/tiny --prompt 'Hello'"});
    const std::string run_dir = o["run"].as<std::string>();
    const LoadedConfig loaded = load_run_config(run_dir + "/resolved.yaml", {});
    RunConfig config = loaded.config;
    config.parallel.dp = config.parallel.tp = 1;  // one process, whatever mesh trained it
    config.parallel.determinism = Determinism::fast;
    config.parallel.zero = 0;
    config.checkpoint.blocking = true;  // saves nothing, so needs no snapshot
    config = resolve_for_world(config, 1);
    const Tokenizer tokenizer = Tokenizer::load(config.data.tokenizer);
    config = resolve_for_vocab(config, tokenizer.vocab_size());
    const Mesh mesh;
    const std::string dir = find_checkpoint(run_dir, mesh);
    if (dir.empty())
        throw CheckpointError({.what = "no checkpoint in this run directory",
                               .where = run_dir,
                               .hint = "train first: stoa train CFG"});
    TrainState s = make_train_state(config, 0, 1, Exec{});
    const CheckpointMeta meta = load_checkpoint(dir, checkpoint_shards(s.model), mesh);
    enter_stage(s, saved_stage(meta, config), Exec{});
    refresh_work(s.model, mesh, Exec{});
    if (o.count("family") > 0) return solve_problems(s, tokenizer, o);
    const std::string prompt = unescape(o["prompt"].as<std::string>());
    const auto ids =
        generate_greedy(s, {tokenizer.encode(prompt)}, o["max-new-tokens"].as<std::int64_t>(),
                        tokenizer.end_of_text(), mesh, Exec{});
    fmt::print("{}{}\n", prompt, tokenizer.decode(ids[0]));
    return 0;
}

}  // namespace stoa
