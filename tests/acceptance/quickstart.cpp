// Runs ./quickstart.sh as a newcomer would and reads what the run left. --quick: the reduced run of
// the script (STOA_QUICK), which must work end to end but is too short to learn the problems.
// STOA_CRAWL names the web text; without it and without ../shared the script looks for its own.
#include <fmt/format.h>

#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/support/programs.h"

using namespace stoa::test;
using nlohmann::json;

namespace {

double loss_of(const json& eval, const std::string& source) {
    for (const json& l : eval.value("losses", json::array()))
        if (l.value("source", "") == source) return l["loss"].get<double>();
    return -1.0;
}

struct Score {
    std::int64_t verified = 0, problems = 0;
    double accuracy() const {
        return problems == 0 ? -1.0 : static_cast<double>(verified) / static_cast<double>(problems);
    }
};
Score score_of(const json& eval) {
    Score s;
    for (const json& f : eval.value("families", json::array())) {
        s.verified += f.value("verified", 0);
        s.problems += f.value("problems", 0);
    }
    return s;
}

std::string crawl_list() {
    if (const char* list = std::getenv("STOA_CRAWL")) return list;
    std::string base = source_dir() + "/../shared/data";
    if (const char* shared = std::getenv("STOA_SHARED_DATA")) base = shared;
    if (!fs::exists(base + "/aut_warc")) return "";
    return base + "/aut_warc/example.warc.gz:" + base + "/commoncrawl_whirlwind:" + base +
           "/c4_wiki_demo/c4_demo.jsonl.gz";
}

}  // namespace

int main(int argc, char** argv) {
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    const TempDir data;
    const std::string name = "acceptance-" + std::to_string(getpid());
    const std::string run_dir = source_dir() + "/runs/" + name;
    const std::string crawl = crawl_list();
    const auto begin = std::chrono::steady_clock::now();
    const std::string env = fmt::format(
        "STOA_QUICKSTART_DIR={} STOA_QUICKSTART_RUN={} {} {}", data.path,
        name, quick ? "STOA_QUICK=1" : "", crawl.empty() ? "" : "STOA_CRAWL='" + crawl + "'");
    const Outcome o = run_shell("cd '" + source_dir() + "' && " + env + " ./quickstart.sh");
    const double wall =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    fmt::print("{}\n", o.output);

    std::vector<json> evals;
    std::istringstream lines(read_text(run_dir + "/eval.jsonl"));
    for (std::string line; std::getline(lines, line);)
        evals.push_back(json::parse(line));
    double seconds = wall;  // the script says what it took after the build
    if (const auto at = o.output.find("quickstart took "); at != std::string::npos)
        seconds = std::stod(o.output.substr(at + 16));
    std::error_code ignored;
    fs::remove_all(run_dir, ignored);
    if (o.code != 0 || evals.size() < 2) {
        fmt::print(
            "{}\n",
            json{{"exit", o.code}, {"evaluations", evals.size()}, {"seconds", seconds}}.dump());
        return 1;
    }
    const json *before = nullptr, &after = evals.back();
    for (const json& e : evals)
        if (before == nullptr && score_of(e).problems > 0) before = &e;
    const double web_start = loss_of(evals.front(), "web"), web_end = loss_of(after, "web");
    const Score first = score_of(*before), last = score_of(after);
    const bool judged = o.output.find("=> verified") != std::string::npos ||
                        o.output.find("=> refuted") != std::string::npos;
    const bool table = judged && o.output.find("all, verified") != std::string::npos;
    bool holds = web_end < web_start && table && first.accuracy() <= 0.05;
    if (!quick) holds = holds && last.accuracy() >= 0.80 && seconds <= 300.0;
    fmt::print("{}\n", json{{"web_loss_start", web_start},
                            {"web_loss_end", web_end},
                            {"accuracy_before", first.accuracy()},
                            {"accuracy_after", last.accuracy()},
                            {"verified", last.verified},
                            {"problems", last.problems},
                            {"seconds", seconds},
                            {"holds", holds}}
                           .dump());
    return holds ? 0 : 1;
}
