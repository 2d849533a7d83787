// "Evaluate (p and not q) or r for p = true, q = false, r = true.": innermost parts first.
#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "data/reasoning/families/families.h"
#include "data/reasoning/scan.h"

namespace stoa::families {
namespace {

const char* truth(bool b) { return b ? "true" : "false"; }

struct Node {
    enum class Kind { variable, negation, conjunction, disjunction } kind = Kind::variable;
    int variable = 0;
    std::unique_ptr<Node> left, right;
};

std::unique_ptr<Node> draw_tree(std::int64_t operators, std::int64_t variables, Draws& draws) {
    auto node = std::make_unique<Node>();
    if (operators == 0) {
        node->variable = static_cast<int>(draws.below(static_cast<std::uint32_t>(variables)));
        return node;
    }
    if (draws.below(4) == 0) {
        node->kind = Node::Kind::negation;
        node->left = draw_tree(operators - 1, variables, draws);
        return node;
    }
    node->kind = draws.below(2) == 0 ? Node::Kind::conjunction : Node::Kind::disjunction;
    const std::int64_t on_left = draws.between(0, operators - 1);
    node->left = draw_tree(on_left, variables, draws);
    node->right = draw_tree(operators - 1 - on_left, variables, draws);
    return node;
}

std::string tree_text(const Node& node, bool top) {
    using Kind = Node::Kind;
    if (node.kind == Kind::variable) return std::string(1, static_cast<char>('p' + node.variable));
    if (node.kind == Kind::negation) return "not " + tree_text(*node.left, false);
    const std::string text = tree_text(*node.left, false) +
                             (node.kind == Kind::conjunction ? " and " : " or ") +
                             tree_text(*node.right, false);
    return top ? text : "(" + text + ")";
}

bool reduce(const Node& node, std::uint32_t assignment, std::vector<std::string>& steps) {
    using Kind = Node::Kind;
    if (node.kind == Kind::variable) return ((assignment >> node.variable) & 1u) != 0;
    const bool a = reduce(*node.left, assignment, steps);
    if (node.kind == Kind::negation) {
        steps.push_back(fmt::format("not {} = {}", truth(a), truth(!a)));
        return !a;
    }
    const bool b = reduce(*node.right, assignment, steps);
    const bool both = node.kind == Kind::conjunction;
    const bool value = both ? a && b : a || b;
    steps.push_back(
        fmt::format("{} {} {} = {}", truth(a), both ? "and" : "or", truth(b), truth(value)));
    return value;
}

/// A second evaluator, on the text: recursive descent with not > and > or, and no short cuts.
class TextEvaluator {
public:
    explicit TextEvaluator(Text question) : s_(question, true), question_(question) {}

    bool run(bool& value) {
        const std::size_t at = question_.rfind(" for ");
        if (at == Text::npos) return false;
        s_ = Scanner(question_.substr(0, at), true);
        if (!s_.literal("Evaluate ")) return false;
        Scanner given(question_.substr(at + 5));
        for (bool more = true; more; more = given.literal(", ")) {
            const char name = given.peek();
            if (name < 'p' || name > 'z' || known_[name - 'p']) return false;
            (void)given.literal(Text(&name, 1));
            const bool yes = given.literal(" = true");
            if (!yes && !given.literal(" = false")) return false;
            known_[name - 'p'] = true;
            value_[name - 'p'] = yes;
        }
        if (!given.literal(".") || !given.at_end()) return false;
        return either(value) && s_.at_end();
    }
    const std::vector<std::string>& reductions() const { return reductions_; }

private:
    bool either(bool& value) {
        if (!both(value)) return false;
        while (s_.literal("or ")) {
            bool right = false;
            if (!both(right)) return false;
            apply("or", value, right, value || right);
        }
        return true;
    }
    bool both(bool& value) {
        if (!factor(value)) return false;
        while (s_.literal("and ")) {
            bool right = false;
            if (!factor(right)) return false;
            apply("and", value, right, value && right);
        }
        return true;
    }
    bool factor(bool& value) {
        if (++depth_ > 64) return false;  // hostile nesting must not exhaust the stack
        bool ok = false;
        if (s_.literal("not ")) {
            ok = factor(value);
            if (ok) {
                reductions_.push_back(fmt::format("not {} = {}", truth(value), truth(!value)));
                value = !value;
            }
        } else if (s_.literal("(")) {
            ok = either(value) && s_.literal(")");
        } else {
            const char name = s_.peek();
            ok = name >= 'p' && name <= 'z' && known_[name - 'p'] && s_.literal(Text(&name, 1));
            if (ok) value = value_[name - 'p'];
        }
        --depth_;
        return ok;
    }
    void apply(const char* op, bool& left, bool right, bool value) {
        reductions_.push_back(
            fmt::format("{} {} {} = {}", truth(left), op, truth(right), truth(value)));
        left = value;
    }

    Scanner s_;
    Text question_;
    bool known_[11] = {}, value_[11] = {};
    int depth_ = 0;
    std::vector<std::string> reductions_;
};

}  // namespace

// difficulty + 2 operators (one more at random) over 3 to 8 variables.
void generate_boolean_evaluation(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    const std::int64_t variables = 3 + (difficulty - 1) / 2 + (difficulty == 10 ? 1 : 0);
    const std::uint32_t assignment = draws.below(1u << variables);
    const auto tree = draw_tree(difficulty + 2 + draws.between(0, 1), variables, draws);
    sample.question = "Evaluate " + tree_text(*tree, true) + " for ";
    for (std::int64_t v = 0; v < variables; ++v)
        sample.question += fmt::format("{}{} = {}", v == 0 ? "" : ", ", static_cast<char>('p' + v),
                                       truth(((assignment >> v) & 1u) != 0));
    sample.question += '.';
    sample.answer = truth(reduce(*tree, assignment, sample.steps));
}

bool verify_boolean_evaluation(Text question, Text answer, std::string& why) {
    bool value = false;
    if (question.size() > 4096 || !TextEvaluator(question).run(value))
        return refuse(why, "the question is not a boolean expression with its assignment");
    Scanner s(answer, true);
    const bool yes = s.literal("true");
    if ((!yes && !s.literal("false")) || !s.at_end())
        return refuse(why, "the answer is neither true nor false");
    return yes == value || refuse(why, fmt::format("the value is {}", truth(value)));
}

// The reductions are those of the text evaluator, in its order, and the last one is the answer.
bool check_boolean_evaluation(const ReasoningSample& sample, std::string& why) {
    bool value = false;
    TextEvaluator evaluator(sample.question);
    if (!evaluator.run(value)) return refuse(why, "not a boolean expression");
    const auto& expected = evaluator.reductions();
    for (std::size_t i = 0; i < std::max(expected.size(), sample.steps.size()); ++i)
        if (i >= expected.size() || i >= sample.steps.size() || expected[i] != sample.steps[i])
            return refuse(why, fmt::format("step {} is wrong", i + 1));
    return true;
}

}  // namespace stoa::families
