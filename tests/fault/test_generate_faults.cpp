// `stoa generate` through the real binary, alone and on several ranks that divide a prompt: the
// same words, and of bad input one typed error with one exit code.
#include "tests/support/catch.h"
#include "tests/support/tiny_project.h"

using namespace stoa;
using namespace stoa::test;

namespace {

/// A trained run whose second layer selects keys.
const std::string& run_directory() {
    static const TempDir dir;
    static const bool made = [] {
        const Outcome built = make_tiny_project(dir.path, 5);
        INFO(built.output);
        REQUIRE(built.code == 0);
        const Outcome trained = run_shell(train_command(
            dir.path, 1,
            "'model.attention={kind: dynamic, layers: DT, window: 16, leaf: 4, beam: 4}'"));
        INFO(trained.output);
        REQUIRE(trained.code == 0);
        write_text(dir / "prompt.txt", "The old sailor repairs the engine of the ship before the");
        return true;
    }();
    (void)made;
    static const std::string path = dir / "runs/tiny";
    return path;
}
std::string prompt_file() { return run_directory() + "/../../prompt.txt"; }

Outcome generate(int ranks, const std::string& arguments) {
    const std::string mpirun =
        ranks == 1 ? "" : "mpirun -q -n " + std::to_string(ranks) + " --oversubscribe ";
    return run_shell(mpirun + stoa_binary() + " generate " + run_directory() + " " + arguments);
}

void check_one_error(const Outcome& o, int code, const std::string& part) {
    INFO(o.output);
    CHECK(o.code == code);
    const std::size_t at = o.output.find("error: ");
    REQUIRE(at != std::string::npos);
    CHECK(o.output.find("error: ", at + 1) == std::string::npos);
    CHECK(o.output.find(part) != std::string::npos);
}

}  // namespace

TEST_CASE("ranks that divide a prompt say what one process says", "[fault]") {
    const std::string arguments = "--max-new-tokens 20 --prompt-file " + prompt_file();
    const Outcome alone = generate(1, arguments);
    INFO(alone.output);
    CHECK(alone.code == 0);
    CHECK(alone.output.starts_with(read_text(prompt_file())));
    CHECK(alone.output.size() > read_text(prompt_file()).size() + 1);
    for (const int ranks : {2, 3}) {
        const Outcome o = generate(ranks, arguments);
        CHECK(o.code == 0);
        CHECK(o.output == alone.output);
    }
}

TEST_CASE("the prompt is that of rank 0", "[fault]") {
    const std::string self = stoa_binary() + " generate " + run_directory();
    const Outcome o = run_shell("mpirun -q --oversubscribe -n 1 " + self +
                                " --prompt 'The committee' --max-new-tokens 8 : -n 1 " + self +
                                " --prompt-file /nowhere --max-new-tokens 8");
    CHECK(o.code == 0);
    CHECK(o.output == generate(1, "--prompt 'The committee' --max-new-tokens 8").output);
}

TEST_CASE("one process keeps its cache in 8 bits, ranks that divide it do not", "[fault]") {
    const std::string arguments = "--cache fp8 --max-new-tokens 20 --prompt-file " + prompt_file();
    const Outcome o = generate(1, arguments);
    INFO(o.output);
    CHECK(o.code == 0);
    CHECK(o.output.starts_with(read_text(prompt_file())));
    check_one_error(generate(2, arguments), 2, "one process");
}

TEST_CASE("what cannot be continued is refused once, by all ranks", "[fault]") {
    for (const int ranks : {1, 2}) {
        check_one_error(generate(ranks, "--prompt-file /nowhere"), 3, "/nowhere");
        check_one_error(generate(ranks, "--prompt a --cache fp4"), 2, "wide or fp8");
        check_one_error(generate(ranks, "--prompt-file " + run_directory()), 3, "nothing in it");
        check_one_error(generate(ranks, "--max-new-tokens 200 --prompt-file " + prompt_file()), 2,
                        "at most 128");
        check_one_error(generate(ranks, "--max-new-tokens -1 --prompt hello"), 2, "negative");
    }
    check_one_error(generate(2, "--family chain_sum"), 2, "one process");
}
