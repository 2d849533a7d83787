// Wrong command lines and configurations through the real binary: exit code, message, no stack
// trace.
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/catch.h"
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace fs = std::filesystem;

namespace {

std::string env(const char* name) {
    const char* value = std::getenv(name);
    return value ? value : "";
}

struct Result {
    int code = -1;
    std::string out, err;
};

struct Workplace {
    fs::path dir;
    Workplace() {
        std::string name = (fs::temp_directory_path() / "stoa-config-XXXXXX").string();
        REQUIRE(mkdtemp(name.data()) != nullptr);
        dir = name;
    }
    ~Workplace() { fs::remove_all(dir); }
    std::string file(const std::string& name, const std::string& text) const {
        std::ofstream(dir / name, std::ios::binary) << text;
        return (dir / name).string();
    }
    std::string read(const std::string& name) const {
        std::ifstream in(dir / name, std::ios::binary);
        std::ostringstream s;
        s << in.rdbuf();
        return s.str();
    }
};

std::string quoted(const std::string& word) {
    std::string q = word;
    for (std::size_t i = 0; (i = q.find('\'', i)) != std::string::npos; i += 4)
        q.replace(i, 1, "'\\''");
    return "'" + q + "'";
}

Result run(const Workplace& place, const std::vector<std::string>& args,
           const std::string& prefix = "") {
    std::string command = prefix + quoted(env("STOA_BIN"));
    for (const std::string& a : args)
        command += " " + quoted(a);
    command +=
        " >" + quoted((place.dir / "out").string()) + " 2>" + quoted((place.dir / "err").string());
    const int status = std::system(command.c_str());
    Result r{WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), place.read("out"),
             place.read("err")};
    return r;
}

void check_refused(const Result& r, const std::vector<std::string>& says) {
    CAPTURE(r.out, r.err);
    CHECK(r.code == 2);
    CHECK(r.err.find("error: ") != std::string::npos);
    for (const std::string& s : says) {
        CAPTURE(s);
        CHECK(r.err.find(s) != std::string::npos);
    }
    for (const char* trace : {"terminate called", "what():", "Segmentation", "AddressSanitizer",
                              "runtime error", "#0 "})
        CHECK(r.err.find(trace) == std::string::npos);
    CHECK(r.err.find("options:") == std::string::npos);  // no help text behind an error
}

bool have_binary() {
    if (!env("STOA_BIN").empty() && fs::exists(env("STOA_BIN"))) return true;
    WARN("skipped: STOA_BIN does not name the stoa binary");
    return false;
}

const std::string kGood =
    "batch: {global_batch: 4, micro_batch: 1}\n"
    "stages: [{name: a, tokens: 1k, seq_len: 8, mix: {r: 1}}]\n"
    "data: {tokenizer: none.json, sources: {r: {kind: reasoning, families: [chain_sum]}}}\n";

}  // namespace

TEST_CASE("wrong verbs and options exit with 2 and one hint") {
    if (!have_binary()) return;
    const Workplace place;
    check_refused(run(place, {}), {"--help"});
    check_refused(run(place, {"trian"}), {"unknown verb trian", "did you mean `stoa train`?"});
    check_refused(run(place, {"--halp"}), {"unknown option --halp"});
    check_refused(run(place, {"check", "--rnks", "2", "x"}),
                  {"unknown option --rnks", "--ranks", "see `stoa check --help`"});
    check_refused(run(place, {"check"}), {"missing argument: CONFIG"});
    check_refused(run(place, {"check", "a", "--ranks", "two"}), {"two"});
    check_refused(run(place, {"launch", "x.yaml"}), {"missing option --ranks"});
    const Result help = run(place, {"--help"});
    CHECK(help.code == 0);
    CHECK(help.out.rfind("examples:\n", 0) == 0);
    CHECK(run(place, {"--version"}).out.rfind("stoa ", 0) == 0);
}

TEST_CASE("wrong files exit with 2 and name the place") {
    if (!have_binary()) return;
    const Workplace place;
    check_refused(run(place, {"check", (place.dir / "none.yaml").string()}),
                  {"none.yaml: there is no such file"});
    check_refused(run(place, {"check", place.dir.string()}), {"is a directory"});
    check_refused(run(place, {"check", place.file("syntax.yaml", "run: {name: [\nmodel: }\n")}),
                  {"syntax.yaml:", "not valid YAML", "1 error, nothing was started"});
    check_refused(run(place, {"check", place.file("empty.yaml", "")}), {"the file is empty"});
    std::string garbage;
    unsigned state = 12345;  // a fixed linear congruential sequence
    for (int i = 0; i < 5000; ++i)
        garbage += static_cast<char>((state = state * 1664525u + 1013904223u) >> 24);
    check_refused(run(place, {"check", place.file("garbage.yaml", garbage)}),
                  {"garbage.yaml:", "not a text file"});
    check_refused(
        run(place, {"check", place.file("typo.yaml", kGood + "optimizer:\n  lrr: 1e-3\n")}),
        {"typo.yaml:5:3: error: unknown key 'optimizer.lrr'", "did you mean 'optimizer.lr'?",
         "^^^"});
    const std::string good = place.file("good.yaml", kGood);
    check_refused(run(place, {"check", good, "optimizer.lr=9", "model.n_layer=2"}),
                  {"command line: error: optimizer.lr", "'model.n_layers'?",
                   "2 errors, nothing was started"});
    check_refused(run(place, {"check", good, "--ranks", "3"}), {"micro_batch x dp = 1 x 3"});
    check_refused(run(place, {"check", good}), {"data.tokenizer: there is no file none.json"});
    check_refused(run(place, {"launch", "--ranks", "3", "--tp", "2", good}), {"parallel.tp = 2"});
}

TEST_CASE("any short garbage is refused, never a crash") {
    if (!have_binary()) return;
    const Workplace place;
    const char* texts[] = {"{",
                           "}",
                           "[",
                           "]",
                           ":",
                           "-",
                           "?",
                           "&",
                           "*",
                           "!",
                           "|",
                           ">",
                           "%",
                           "@",
                           "`",
                           "'",
                           "\"",
                           "#",
                           ",",
                           "a: b: c",
                           "a: [b",
                           "- -",
                           "*x",
                           "&x *x",
                           "!!int x",
                           "--- |",
                           "a: !<",
                           "%YAML 9.9\n---\nrun: {}",
                           "\xef\xbb\xbf",
                           "stages: {}",
                           "stages: [[]]",
                           "data: {sources: []}",
                           "data: {sources: {a: 1}}"};
    for (const char* text : texts) {
        CAPTURE(text);
        check_refused(run(place, {"check", place.file("c.yaml", text)}), {});
    }
}

TEST_CASE("docs/config.md is what the schema prints") {
    if (!have_binary()) return;
    const Workplace place;
    std::ifstream in(fs::path(env("STOA_SOURCE_DIR")) / "docs" / "config.md");
    std::ostringstream committed;
    committed << in.rdbuf();
    // To renew: stoa check --schema > docs/config.md
    CHECK(committed.str() == run(place, {"check", "--schema"}).out);
}

TEST_CASE("launch says what is missing and shows what it would run") {
    if (!have_binary()) return;
    const Workplace place;
    const std::string good = place.file("good.yaml", kGood);
    const Result dry =
        run(place, {"launch", "--ranks", "2", "--tp", "2", good, "run.name=x", "--dry-run"});
    CHECK(dry.code == 0);
    CHECK(dry.out.find("mpirun -q -n 2 --bind-to none --oversubscribe ") == 0);
    CHECK(dry.out.find(" train ") != std::string::npos);
    CHECK(dry.out.find("parallel.tp=2") != std::string::npos);
    const Result missing = run(place, {"launch", "--ranks", "2", good}, "PATH=/nonexistent ");
    CAPTURE(missing.err);
    CHECK(missing.code == 5);
    CHECK(missing.err.find("cannot start mpirun") != std::string::npos);
    CHECK(missing.err.find("openmpi-bin") != std::string::npos);
}

namespace {

/// A stand-in for mpirun that answers SIGUSR2 as the workers' job does, with exit code 75.
Result launch_and_signal(const Workplace& place, const std::vector<int>& signals,
                         const std::string& on_usr2) {
    const std::string bin = (place.dir / "bin").string();
    fs::create_directories(bin);
    std::ofstream(bin + "/mpirun")
        << "#!/bin/sh\ntrap '" << on_usr2 << "' USR2\necho $$ > " << place.dir.string()
        << "/pid\nn=0; while [ $n -lt 300 ]; do sleep 0.1; n=$((n+1)); done\nexit 9\n";
    fs::permissions(bin + "/mpirun", fs::perms::owner_all);
    const std::string good = place.file("good.yaml", kGood), stoa = env("STOA_BIN");
    const std::string path = "PATH=" + bin + ":" + env("PATH");
    const pid_t child = fork();
    if (child == 0) {
        std::freopen((place.dir / "out").c_str(), "w", stdout);
        std::freopen((place.dir / "err").c_str(), "w", stderr);
        putenv(const_cast<char*>(path.c_str()));
        execl(stoa.c_str(), "stoa", "launch", "--ranks", "1", good.c_str(), nullptr);
        _exit(99);
    }
    for (int i = 0; i < 200 && place.read("pid").empty(); ++i)
        usleep(50'000);
    for (const int s : signals) {
        usleep(200'000);
        kill(child, s);
    }
    int status = 0;
    waitpid(child, &status, 0);
    // The process group of the stand-in is gone as well: nothing is left running.
    const pid_t inner = static_cast<pid_t>(std::atoi(place.read("pid").c_str()));
    for (int i = 0; i < 100 && kill(inner, 0) == 0; ++i)
        usleep(50'000);
    CHECK(kill(inner, 0) != 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), place.read("out"),
            place.read("err")};
}

}  // namespace

TEST_CASE("launch turns stop signals into one SIGUSR2 and the exit code of the ranks") {
    if (!have_binary()) return;
    for (const int signal : {SIGTERM, SIGUSR1, SIGUSR2}) {
        const Workplace place;
        CHECK(launch_and_signal(place, {signal}, "exit 75").code == 75);
    }
    const Workplace place;
    CHECK(launch_and_signal(place, {SIGINT}, "exit 75").code == 130);
    const Workplace failed;
    CHECK(launch_and_signal(failed, {SIGTERM}, "exit 6").code == 6);
    const Workplace twice;  // ranks that do not leave: the second signal ends them
    const Result r = launch_and_signal(twice, {SIGINT, SIGINT}, "true");
    CHECK(r.code == 130);
    CHECK(r.err.find("nothing was saved") != std::string::npos);
}
