#include "trainer/evaluate.h"

#include <algorithm>

#include "data/reasoning/engine.h"
#include "kernels/device_memory.h"
#include "kernels/elementwise.h"
#include "parallel/agree.h"
#include "parallel/collectives.h"
#include "trainer/inference/decode.h"
#include "trainer/model/dp_traffic.h"
#include "trainer/model/loss.h"

namespace stoa {
namespace {

constexpr std::size_t kShownPerFamily = 3;

// Rows [begin, begin + count) of a batch, padded with empty rows to `count`.
MicroBatch slice(const MicroBatch& all, std::int64_t begin, std::int64_t count) {
    MicroBatch mb{.batch = count, .seq_len = all.seq_len};
    const auto cells = static_cast<std::size_t>(count * all.seq_len);
    mb.tokens.assign(cells, 0);
    mb.targets.assign(cells, -1);
    mb.key_begin.resize(cells);
    for (std::size_t r = 0; r < cells; ++r)
        mb.key_begin[r] = static_cast<std::int32_t>(r % static_cast<std::size_t>(all.seq_len));
    const std::int64_t rows = std::min(count, all.batch - begin);
    const auto copy = [&](const std::vector<std::int32_t>& from, std::vector<std::int32_t>& to) {
        std::copy_n(from.begin() + begin * all.seq_len, rows * all.seq_len, to.begin());
    };
    copy(all.tokens, mb.tokens);
    copy(all.targets, mb.targets);
    copy(all.key_begin, mb.key_begin);
    return mb;
}

// Mean loss of all rows; dp rank d takes micro-batches d, d + dp, ... All make equally many passes,
// for weights that come from the others (zero: 3).
SourceLoss held_out_loss(TrainState& s, const std::string& source, const MicroBatch& rows,
                         const Mesh& mesh, const Exec& exec) {
    const std::int64_t mb_rows = s.config.batch.micro_batch;
    double sum = 0.0;
    for (std::int64_t round = 0; round < rows.batch; round += mesh.dp_size() * mb_rows) {
        const std::int64_t begin = round + mesh.dp_rank() * mb_rows;
        if (begin >= rows.batch) {
            take_part_in_forward(s.model, mesh, exec);
            continue;
        }
        load_micro_batch(s, slice(rows, begin, mb_rows), exec);
        zero(s.acts.loss_sum, exec);
        model_forward(s, mesh, exec);
        loss_forward_backward(s, /*d_loss=*/0.0, mesh.tp, exec);
        sum += read_back<double>(s.acts.loss_sum, exec)[0];
    }
    sum = all_reduce_scalar(sum, ReduceOp::sum, mesh.dp);
    const std::int64_t tokens = rows.valid_tokens();
    return {.source = source,
            .loss = tokens == 0 ? 0.0 : sum / static_cast<double>(tokens),
            .tokens = tokens};
}

std::vector<ReasoningSample> held_out_problems(const RunConfig& config, const SourceConfig& source,
                                               const std::string& family) {
    std::vector<ReasoningSample> problems;
    for (std::int64_t i = 0; i < config.eval.problems; ++i)
        problems.push_back(make_sample(reasoning_family(family), source.difficulty, config.run.seed,
                                       ReasoningSplit::holdout, i));
    return problems;
}

// One problem a row: the loss of its solution.
MicroBatch problem_rows(const std::vector<ReasoningSample>& problems, const Tokenizer& tokenizer,
                        std::int64_t seq_len) {
    MicroBatch mb{.seq_len = seq_len};
    for (const ReasoningSample& p : problems) {
        const RenderedSample text = render(p);
        std::vector<TokenId> ids = tokenizer.encode(text.prompt);
        const std::size_t prompt = ids.size();
        std::ranges::copy(tokenizer.encode(text.solution), std::back_inserter(ids));
        ids.push_back(tokenizer.end_of_text());
        const auto n = static_cast<std::size_t>(seq_len);
        if (ids.size() > n) continue;  // longer than the stage's context: accuracy still counts it
        ++mb.batch;
        for (std::size_t t = 0; t < n; ++t) {
            mb.tokens.push_back(t < ids.size() ? ids[t] : tokenizer.end_of_text());
            mb.targets.push_back(t + 1 < ids.size() && t + 1 >= prompt ? ids[t + 1] : -1);
            mb.key_begin.push_back(0);
        }
    }
    return mb;
}

FamilyAccuracy held_out_accuracy(TrainState& s, const std::string& family,
                                 const std::vector<ReasoningSample>& problems,
                                 const Tokenizer& tokenizer, std::vector<SolvedProblem>& shown,
                                 const Mesh& mesh, const Exec& exec) {
    const RunConfig& config = s.config;
    const std::int64_t context = longest_sequence(config);
    std::vector<const ReasoningSample*> mine;
    std::vector<std::vector<TokenId>> prompts;
    std::int64_t longest = 1, too_long = 0;
    for (std::size_t i = static_cast<std::size_t>(mesh.dp_rank()); i < problems.size();
         i += static_cast<std::size_t>(mesh.dp_size())) {
        std::vector<TokenId> ids = tokenizer.encode(render(problems[i]).prompt);
        if (static_cast<std::int64_t>(ids.size()) >= context) {
            ++too_long;
            continue;
        }
        longest = std::max(longest, static_cast<std::int64_t>(ids.size()));
        mine.push_back(&problems[i]);
        prompts.push_back(std::move(ids));
    }
    const std::int64_t room = std::min(config.eval.max_new_tokens, context - longest);
    const auto outputs = generate_greedy(s, prompts, room, tokenizer.end_of_text(), mesh, exec);
    std::int64_t counts[3] = {0, 0, too_long};  // verified, refuted, unanswered
    for (std::size_t i = 0; i < mine.size(); ++i) {
        SolvedProblem p{.family = family,
                        .question = mine[i]->question,
                        .solution = tokenizer.decode(outputs[i])};
        p.answer = extract_answer(p.solution);
        if (p.answer.empty())
            p.why = "no answer";
        else
            p.verified = reasoning_family(family).verify(p.question, p.answer, p.why);
        ++counts[p.verified ? 0 : p.answer.empty() ? 2 : 1];
        if (i < kShownPerFamily) shown.push_back(std::move(p));
    }
    for (std::int64_t& n : counts)
        n = all_reduce_scalar(n, ReduceOp::sum, mesh.dp);
    return {.family = family,
            .problems = counts[0] + counts[1] + counts[2],
            .verified = counts[0],
            .refuted = counts[1],
            .unanswered = counts[2]};
}

}  // namespace

double EvalReport::accuracy() const {
    std::int64_t verified = 0, problems = 0;
    for (const FamilyAccuracy& f : accuracies) {
        verified += f.verified;
        problems += f.problems;
    }
    return problems == 0 ? 0.0 : static_cast<double>(verified) / static_cast<double>(problems);
}

EvalReport evaluate(TrainState& s, const CurriculumState& curriculum, const TokenLoader& loader,
                    const Tokenizer& tokenizer, EvalWhen when, const Mesh& mesh, const Exec& exec) {
    const RunConfig& config = s.config;
    const StageConfig& stage =
        run_finished(curriculum, config) ? config.stages.back() : stage_at(curriculum, config);
    const std::int64_t seq_len = stage.seq_len;
    enter_stage(s, stage, exec);
    EvalReport report{.step = curriculum.step, .when = when};
    if (!run_finished(curriculum, config)) report.stage = stage_at(curriculum, config).name;
    for (std::size_t i = 0; i < config.data.sources.size(); ++i) {
        const SourceConfig& source = config.data.sources[i];
        if (source.kind == SourceKind::shards) {
            MicroBatch rows;
            agree(mesh.world, "read held-out text", [&] {
                rows = loader.load_holdout(static_cast<std::int64_t>(i), config.eval.sequences,
                                           seq_len);
            });
            report.losses.push_back(held_out_loss(s, source.name, rows, mesh, exec));
            continue;
        }
        std::vector<ReasoningSample> all;
        for (const std::string& family : source.families) {
            std::vector<ReasoningSample> problems;
            agree(mesh.world, "make held-out problems",
                  [&] { problems = held_out_problems(config, source, family); });
            if (when != EvalWhen::start) {
                report.accuracies.push_back(
                    held_out_accuracy(s, family, problems, tokenizer, report.shown, mesh, exec));
                report.accuracies.back().difficulty = source.difficulty;
            }
            std::ranges::copy_n(problems.begin(),
                                std::min<std::int64_t>(config.eval.sequences,
                                                       static_cast<std::int64_t>(problems.size())),
                                std::back_inserter(all));
        }
        report.losses.push_back(
            held_out_loss(s, source.name, problem_rows(all, tokenizer, seq_len), mesh, exec));
    }
    return report;
}

}  // namespace stoa
