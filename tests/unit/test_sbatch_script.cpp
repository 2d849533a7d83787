#include <cstdlib>
#include <limits>
#include <set>
#include <sstream>

#include "launcher/process.h"
#include "launcher/sbatch_script.h"
#include "launcher/slurm_requeue.h"
#include "tests/support/catch.h"
#include "tests/support/programs.h"

using namespace stoa;

namespace {

SlurmOptions options() {
    SlurmOptions o;
    o.words = {"configs/tiny.yaml", "run.name=first", "data.sources.web.path=a folder"};
    o.run_name = "first";
    o.run_dir = "runs/first";
    o.nodes = 2;
    o.ranks_per_node = 4;
    o.typed = "stoa slurm configs/tiny.yaml --nodes 2 --ranks-per-node 4";
    return o;
}

std::set<std::string> directives(const std::string& script) {
    std::set<std::string> found;
    std::istringstream lines(script);
    bool commands = false;
    for (std::string line; std::getline(lines, line);) {
        if (line.starts_with("#SBATCH ")) {
            CHECK_FALSE(commands);  // SLURM does not read those behind the first command
            found.insert(line.substr(8));
        }
        commands = commands || (!line.empty() && line[0] != '#');
    }
    return found;
}

std::string last_line(const std::string& script) {
    REQUIRE(script.back() == '\n');
    const auto begin = script.rfind('\n', script.size() - 2);
    return script.substr(begin + 1, script.size() - begin - 2);
}

bool has_key(const std::set<std::string>& all, const std::string& key) {
    for (const std::string& d : all)
        if (d.starts_with(key)) return true;
    return false;
}

}  // namespace

TEST_CASE("sbatch_script asks for the nodes and for a job that survives") {
    const std::string script = sbatch_script(options());
    CHECK(script.starts_with("#!/bin/bash\n"));
    CHECK(script.find(kSbatchMark) != std::string::npos);
    CHECK(script.find("stoa slurm configs/tiny.yaml --nodes 2") != std::string::npos);
    const auto d = directives(script);
    for (const char* wanted :
         {"--job-name=first", "--nodes=2", "--ntasks-per-node=4", "--requeue", "--open-mode=append",
          "--signal=B:USR2@180", "--time=24:00:00", "--output=first-%j.out"})
        CHECK(d.count(wanted) == 1);
    for (const char* absent : {"--gpus", "--partition", "--account", "--qos", "--array",
                               "--dependency", "--cpus-per-task", "--no-requeue"})
        CHECK_FALSE(has_key(d, absent));
}

TEST_CASE("the last line of the script is the supervisor itself") {
    const std::string line = last_line(sbatch_script(options()));
    CHECK(line ==
          "exec stoa launch --ranks 8 --requeue --stop-before 120 configs/tiny.yaml run.name=first "
          "'data.sources.web.path=a folder'");
}

TEST_CASE("sbatch_script writes what was asked for, and only that") {
    SlurmOptions o = options();
    o.gpus_per_node = 4;
    o.cpus_per_rank = 6;
    o.partition = "gpu";
    o.account = "lab";
    o.qos = "long";
    o.time = "3-0";
    o.signal_seconds = 300;
    o.sbatch_lines = {"--mem=0", "--exclusive"};
    o.setup_lines = {"module load openmpi"};
    o.launch_args = "--limit step=2min";
    const std::string script = sbatch_script(o);
    const auto d = directives(script);
    for (const char* wanted :
         {"--gpus-per-node=4", "--cpus-per-task=6", "--partition=gpu", "--account=lab",
          "--qos=long", "--time=3-0", "--signal=B:USR2@300", "--mem=0", "--exclusive"})
        CHECK(d.count(wanted) == 1);
    CHECK(script.find("\nmodule load openmpi\n") != std::string::npos);
    CHECK(last_line(script).find("--stop-before 200 --limit step=2min configs/tiny.yaml") !=
          std::string::npos);
}

TEST_CASE("a chain is not requeued, an array has a run per seed") {
    SlurmOptions chain = options();
    chain.requeue = false;
    chain.singleton = true;
    const auto d = directives(sbatch_script(chain));
    CHECK(d.count("--no-requeue") == 1);
    CHECK(d.count("--requeue") == 0);
    CHECK(d.count("--dependency=singleton") == 1);
    CHECK(last_line(sbatch_script(chain)).find("--requeue") == std::string::npos);

    SlurmOptions array = options();
    array.array_seeds = "0-3%2";
    const auto e = directives(sbatch_script(array));
    CHECK(e.count("--array=0-3%2") == 1);
    CHECK(e.count("--output=first-%A_%a.out") == 1);
    const std::string line = last_line(sbatch_script(array));
    CHECK(line.find(
              " run.seed=\"$SLURM_ARRAY_TASK_ID\" run.name=first-seed\"$SLURM_ARRAY_TASK_ID\"") !=
          std::string::npos);
}

TEST_CASE("containers: all of it inside on one node, the ranks inside on several") {
    SlurmOptions o = options();
    o.container = "images/stoa.sif";
    CHECK(last_line(sbatch_script(o)).find("--mpirun-args 'apptainer exec images/stoa.sif'") !=
          std::string::npos);
    CHECK(last_line(sbatch_script(o)).starts_with("exec stoa launch"));
    o.nodes = 1;
    o.gpus_per_node = 1;
    CHECK(last_line(sbatch_script(o))
              .starts_with("exec apptainer exec --nv images/stoa.sif stoa launch"));
    o.container = "registry.example.org#lab/stoa:1.0";
    CHECK(last_line(sbatch_script(o))
              .find("--srun --mpirun-args '--container-image=registry.example.org#lab/stoa:1.0") !=
          std::string::npos);
    CHECK(container_kind("") == ContainerKind::none);
    CHECK(container_kind("x.sqsh") == ContainerKind::pyxis);
    CHECK(container_kind("apptainer:docker://x") == ContainerKind::apptainer);
}

TEST_CASE("a job's name has only characters that SLURM takes") {
    SlurmOptions o = options();
    o.run_name = "my run/2%";
    CHECK(slurm_job_name(o) == "my_run_2_");
}

TEST_CASE("shell_word is read back by a shell as it was") {
    for (const std::string word :
         {"plain", "a b", "it's", "$HOME", "", "a=b;c", "x[0]*", "\"q\"", "t\\n"}) {
        CAPTURE(word);
        CHECK(stoa::test::run_shell("printf %s " + shell_line({word})).output == word);
    }
}

TEST_CASE("times of SLURM are read as SLURM means them") {
    CHECK(parse_time_left("0:30") == 30.0);
    CHECK(parse_time_left("5:00") == 300.0);
    CHECK(parse_time_left("1:02:03") == 3723.0);
    CHECK(parse_time_left("2-01:00:00") == 2 * 86400.0 + 3600.0);
    CHECK(parse_time_left("UNLIMITED") == std::numeric_limits<double>::infinity());
    for (const char* no : {"", "INVALID", "NOT_SET", "1-", "-1", "1:2:3:4", "a:b"})
        CHECK_FALSE(parse_time_left(no));

    CHECK(parse_time_limit("90") == 5400.0);  // minutes
    CHECK(parse_time_limit("1:30") == 90.0);  // minutes:seconds
    CHECK(parse_time_limit("24:00:00") == 86400.0);
    CHECK(parse_time_limit("1-12") == 36 * 3600.0);
    CHECK(parse_time_limit("1-0:30") == 86400.0 + 1800.0);
    CHECK(parse_time_limit("1-0:0:5") == 86405.0);
    for (const char* no : {"", "0", "24h", "-5", "1-", "1:2:3:4", " 5"})
        CHECK_FALSE(parse_time_limit(no));
}

TEST_CASE("slurm_job is the job of the environment, and a task by its place in the array") {
    for (const char* name : {"SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID",
                             "SLURM_RESTART_COUNT", "SLURM_JOB_NODELIST"})
        unsetenv(name);
    CHECK_FALSE(slurm_job());
    setenv("SLURM_JOB_ID", "77", 1);
    setenv("SLURM_RESTART_COUNT", "2", 1);
    setenv("SLURM_JOB_NODELIST", "n[0-1]", 1);
    CHECK(slurm_job()->id == "77");
    CHECK(slurm_job()->restarts == 2);
    CHECK(slurm_job()->nodes == "n[0-1]");
    // The last task of an array bears the array's number, which would mean all of its tasks.
    setenv("SLURM_ARRAY_JOB_ID", "77", 1);
    setenv("SLURM_ARRAY_TASK_ID", "3", 1);
    CHECK(slurm_job()->id == "77_3");
    for (const char* name : {"SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID",
                             "SLURM_RESTART_COUNT", "SLURM_JOB_NODELIST"})
        unsetenv(name);
}
