// `stoa bundle` and `stoa doctor` as a user meets them.
#include <chrono>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "launcher/bundle/libraries.h"
#include "tests/support/catch.h"
#include "tests/support/programs.h"
#include "tests/support/tiny_project.h"

using namespace stoa::test;
using nlohmann::json;

namespace {

// Every library that a process under LD_DEBUG has begun with, but for the node's own.
std::set<std::string> loaded_from_elsewhere(const std::string& log_dir, const std::string& bundle,
                                            std::size_t& inside) {
    std::set<std::string> outside;
    for (const auto& entry : fs::directory_iterator(log_dir)) {
        std::istringstream lines(read_text(entry.path().string()));
        const std::string mark = "calling init: ";
        for (std::string line; std::getline(lines, line);) {
            const std::size_t at = line.find(mark);
            if (at == std::string::npos) continue;
            const std::string path = line.substr(at + mark.size());
            inside += path.starts_with(bundle + "/");
            if (!path.starts_with(bundle + "/") &&
                !stoa::is_of_the_node(fs::path(path).filename().string()))
                outside.insert(path);
        }
    }
    return outside;
}

}  // namespace

TEST_CASE("a bundle that was moved runs one rank and two, with its own libraries only") {
    const TempDir dir;
    const Outcome made = run_shell(stoa_binary() + " bundle " + (dir / "made"));
    CAPTURE(made.output);
    REQUIRE(made.code == 0);
    const std::string bundle = dir / "moved here";  // with a space
    fs::rename(dir / "made", bundle);
    const std::string quoted = "'" + bundle + "'";
    CHECK(run_shell(quoted + "/stoa bundle --check " + quoted).code == 0);
    CHECK(run_shell(quoted + "/stoa --version").output.starts_with("stoa "));
    REQUIRE(make_tiny_project(dir / "p", 2).code == 0);
    const std::string train = quoted + "/stoa train " + (dir / "p/run.yaml") + " eval.problems=0";
    for (const int ranks : {1, 2}) {
        const std::string logs = dir / ("ld-" + std::to_string(ranks));
        fs::create_directories(logs);
        const std::string start = ranks == 1 ? "" : quoted + "/bin/mpirun -n 2 ";
        const Outcome o =
            run_shell("cd / && env -u LD_LIBRARY_PATH LD_DEBUG=libs LD_DEBUG_OUTPUT=" + logs +
                      "/x " + start + train + " run.name=r" + std::to_string(ranks));
        CAPTURE(ranks, o.output);
        CHECK(o.code == 0);
        std::size_t inside = 0;
        CHECK(loaded_from_elsewhere(logs, bundle, inside) == std::set<std::string>{});
        CHECK(inside > 10);
        // One rank starts no process beside its own: the shells of the script and its `dirname`,
        // `readlink` leave a log each, and the program becomes its shell.
        std::size_t daemons = 0;
        for (const auto& entry : fs::directory_iterator(logs))
            daemons += read_text(entry.path().string()).find("mca_ess") != std::string::npos;
        CHECK((ranks == 1 ? daemons == 0 : daemons > 0));
    }

    for (const auto& entry : fs::directory_iterator(bundle + "/lib"))
        if (entry.path().filename().string().starts_with("libz.so"))
            std::ofstream(entry.path(), std::ios::app) << "x";
    const Outcome changed = run_shell(stoa_binary() + " bundle --check " + quoted);
    CHECK(changed.code == 3);
    CHECK(changed.output.find("not as it was written") != std::string::npos);
}

TEST_CASE("stoa bundle refuses a folder that is taken, and names a library that is missing") {
    const TempDir dir;
    write_text(dir / "file", "x");
    for (const std::string& taken : {dir.path, dir / "file"}) {
        const Outcome o = run_shell(stoa_binary() + " bundle " + taken);
        CAPTURE(o.output);
        CHECK(o.code == 2);
        CHECK(o.output.find("is taken") != std::string::npos);
    }
    CHECK(read_text(dir / "file") == "x");
    CHECK(run_shell(stoa_binary() + " bundle --check " + dir.path).code == 3);
    // What ldd says of a program whose library is gone.
    fs::create_directories(dir / "bin");
    write_text(
        dir / "bin/ldd",
        "#!/bin/sh\nprintf '\\tlinux-vdso.so.1 (0x1)\\n\\tlibyaml-cpp.so.0.7 => not found\\n'\n");
    fs::permissions(dir / "bin/ldd", fs::perms::owner_all);
    const Outcome o =
        run_shell("PATH=" + (dir / "bin") + ":$PATH " + stoa_binary() + " bundle " + (dir / "b"));
    CAPTURE(o.output);
    CHECK(o.code == 3);
    CHECK(o.output.find("libyaml-cpp.so.0.7") != std::string::npos);
    CHECK(!fs::exists(dir / "b"));
    const auto needs =
        stoa::parse_ldd({"a", "b"},
                        "a:\n\tlibz.so.1 => /lib/libz.so.1 (0x7f)\n\t/lib64/ld-linux.so (0x1)\nb:\n"
                        "\tlibq.so => not found\n\tlibcuda.so.1 => not found\n");
    REQUIRE(needs.size() == 2);
    CHECK(needs[0].libraries.size() == 1);
    CHECK(needs[0].libraries[0].path == "/lib/libz.so.1");
    CHECK(needs[0].first_missing().empty());
    CHECK(needs[1].first_missing() == "libq.so");
}

TEST_CASE("stoa doctor measures this machine and survives an mpirun that never answers") {
    const TempDir dir;
    fs::create_directories(dir / "bin");
    const Outcome o = run_shell(stoa_binary() + " doctor --json --dir " + dir.path);
    CAPTURE(o.output);
    const json j = json::parse(o.output, nullptr, false);
    REQUIRE(j.is_object());
    CHECK(o.code == (j["problems"] == 0 ? 0 : 1));
    CHECK(j["measured"]["mpi_ranks"] == 2);
    CHECK(j["measured"]["mpi_latency_us"] > 0.0);
    CHECK(j["measured"]["cpu_gflops"] > 0.0);
    CHECK(j["measured"]["write_mb_s"] > 0.0);
    CHECK(fs::is_empty(dir / "bin"));

    write_text(
        dir / "bin/mpirun",
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 'mpirun (Open MPI) 4.1.4' || exec sleep 60\n");
    fs::permissions(dir / "bin/mpirun", fs::perms::owner_all);
    const auto begin = std::chrono::steady_clock::now();
    const Outcome hung = run_shell("PATH=" + (dir / "bin") + ":$PATH " + stoa_binary() +
                                   " doctor --limit 3 --dir " + (dir / "nowhere"));
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    CAPTURE(hung.output);
    CHECK(hung.code == 1);
    CHECK(seconds < 30.0);
    CHECK(hung.output.find("did not answer in time and was ended") != std::string::npos);
    CHECK(hung.output.find("nowhere: cannot be read: No such file") != std::string::npos);
    CHECK(run_shell(stoa_binary() + " doctor --ranks 0").code == 2);
    CHECK(run_shell(stoa_binary() + " doctor --limit 0").code == 2);
}
