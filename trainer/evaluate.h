#pragma once
// Held-out measurements during training: loss per source, and greedy accuracy on held-out problems
// as judged by the verifier.
#include <cstdint>
#include <string>
#include <vector>

#include "data/curriculum.h"
#include "data/token_loader.h"
#include "data/tokenizer/tokenizer.h"
#include "parallel/mesh.h"
#include "trainer/model/transformer.h"

namespace stoa {

struct SourceLoss {
    std::string source;
    double loss = 0.0;  // nats per token
    std::int64_t tokens = 0;
};
struct FamilyAccuracy {
    std::string family;
    std::int64_t difficulty = 1, problems = 0;
    std::int64_t verified = 0;    // the verifier accepted the answer
    std::int64_t refuted = 0;     // an answer, but a wrong one
    std::int64_t unanswered = 0;  // no "Answer:" line
};
struct SolvedProblem {
    std::string family, question, solution, answer, why;  // why: the reason of a refusal
    bool verified = false;
};
enum class EvalWhen { start, interval, stage_switch, end };
constexpr const char* eval_when_name(EvalWhen w) {
    return w == EvalWhen::start          ? "start"
           : w == EvalWhen::interval     ? "interval"
           : w == EvalWhen::stage_switch ? "switch"
                                         : "end";
}

struct EvalReport {
    std::int64_t step = 0;
    EvalWhen when = EvalWhen::interval;
    std::string stage;  // that the next step belongs to; empty at the end
    std::vector<SourceLoss> losses;
    std::vector<FamilyAccuracy> accuracies;
    std::vector<SolvedProblem> shown;  // the first problems of each family, on rank 0
    double accuracy() const;           // verified / problems over all families; 0 without any
};

/// comm: as the model over tp; sums over dp. Every rank returns the same numbers.
/// At the start the losses only: nothing has been learnt yet.
EvalReport evaluate(TrainState& s, const CurriculumState& curriculum, const TokenLoader& loader,
                    const Tokenizer& tokenizer, EvalWhen when, const Mesh& mesh, const Exec& exec);

}  // namespace stoa
