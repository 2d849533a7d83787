// Speed on this machine's cores, side by side in one run: training steps of the two models of
// tests/bench/train_step.cpp against PyTorch (tests/acceptance/peers/torch_step.py) under every
// setting that helps it, GEMMs against OpenBLAS, r30 against fp32, two data-parallel ranks against
// one. Sums are those of parallel.determinism=fast, as no peer keeps bits over meshes; the speed of
// elastic is given beside. Programs take turns, so that all see the same machine; a figure is the
// median of the rounds.
//   cpu_speed [--quick] [--rounds N] [--python PROGRAM]...   PROGRAM: a Python that has torch
// Holds: fp32 at least 1.3 x the best peer on both models; GEMMs at 80 % of the best sgemm; r30 at
// 0.9 x fp32; two ranks at 1.8 x one. --quick runs everything once and small, and judges nothing.
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <thread>

#include "kernels/core/buffer.h"
#include "kernels/core/thread_pool.h"
#include "kernels/matmul.h"
#include "tests/support/programs.h"

using namespace stoa;
using namespace stoa::test;
using nlohmann::json;

namespace {

struct Options {
    bool quick = false;
    int rounds = 5, threads = 2;
    std::vector<std::string> pythons = {"/usr/bin/python3"};
};

double median(std::vector<double> x) {
    std::ranges::sort(x);
    return x.empty() ? 0.0 : (x[(x.size() - 1) / 2] + x[x.size() / 2]) / 2.0;
}
json with_spread(const std::vector<double>& x) {
    return {{"median", median(x)},
            {"min", x.empty() ? 0.0 : *std::ranges::min_element(x)},
            {"max", x.empty() ? 0.0 : *std::ranges::max_element(x)}};
}

/// The last line of a program's output as JSON; null when it is none.
json last_line(const std::string& command) {
    const Outcome o = run_shell(command);
    const std::size_t end = o.output.find_last_not_of('\n');
    const std::size_t begin = o.output.find_last_of('\n', end);
    const json line = json::parse(o.output.substr(begin + 1, end - begin), nullptr, false);
    return o.code != 0 || line.is_discarded() ? json{} : line;
}

struct Peer {
    std::string name, command;
    std::vector<double> tok_s;
};

/// PyTorch of each interpreter: as it comes; with waiting threads asleep and memory kept; and,
/// where Debian's OpenBLAS for OpenMP is installed, with that.
std::vector<Peer> peers_of(const Options& o, const std::string& model, int steps) {
    const std::string tuned =
        "OMP_WAIT_POLICY=passive MALLOC_TOP_PAD_=1073741824 MALLOC_MMAP_THRESHOLD_=4294967296 "
        "MALLOC_TRIM_THRESHOLD_=8589934592 ";
    const std::string blas = "/usr/lib/x86_64-linux-gnu/openblas-openmp";
    std::vector<Peer> peers;
    for (const std::string& python : o.pythons) {
        if (run_shell(python + " -c 'import torch'").code != 0) continue;
        for (const char* arch : {"gpt2", "stoa"}) {
            const std::string command =
                fmt::format("{} {}/tests/acceptance/peers/torch_step.py {} {} {} {} 2>/dev/null",
                            python, source_dir(), model, arch, o.threads, steps);
            const std::string name = python + " torch " + arch;
            peers.push_back({name, command, {}});
            peers.push_back({name + ", tuned", tuned + command, {}});
            if (fs::exists(blas) && python == "/usr/bin/python3")
                peers.push_back({name + ", tuned, OpenBLAS of OpenMP",
                                 tuned + "LD_LIBRARY_PATH=" + blas + " " + command,
                                 {}});
        }
    }
    return peers;
}

std::string our_step(const std::string& model, int ranks, int threads, const char* recipes,
                     int steps) {
    const std::string bench =
        (fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "bench_train_step")
            .string();
    return fmt::format("{}{} --model {} --threads {} --recipes {} --steps {} 2>/dev/null",
                       ranks > 1 ? fmt::format("mpirun -q -n {} ", ranks) : "", bench, model,
                       threads, recipes, steps);
}

json measure_model(const Options& o, const std::string& model, bool& holds, bool& has_peer) {
    const int steps = o.quick ? 2 : model == "small" ? 15 : 4;
    std::vector<Peer> peers = peers_of(o, model, steps);
    std::vector<double> fp32, r30_ratio, elastic_ratio, scaling, comm_share;
    for (int round = 0; round < o.rounds; ++round) {
        const json ours = last_line(our_step(model, 1, o.threads, "fp32/fast,r30/fast,fp32", steps))
                              .at("results")
                              .at(0);
        fp32.push_back(ours.at("fp32/fast").at("tok_s"));
        r30_ratio.push_back(ours.at("r30/fast_over_fp32/fast_speed"));
        elastic_ratio.push_back(ours.at("fp32_over_fp32/fast_speed"));
        for (Peer& p : peers)
            if (const json j = last_line(p.command); !j.is_null()) p.tok_s.push_back(j.at("tok_s"));
        const json one = last_line(our_step(model, 1, 1, "fp32/fast", steps)).at("results").at(0);
        const json two = last_line(our_step(model, 2, 1, "fp32/fast", steps)).at("results").at(0);
        scaling.push_back(two.at("fp32/fast").at("tok_s").get<double>() /
                          one.at("fp32/fast").at("tok_s").get<double>());
        comm_share.push_back(two.at("fp32/fast").at("exposed_comm_share"));
        fmt::print("{} round {}: fp32 {:.1f} tok/s, r30 {:.2f} of it, dp=2 {:.2f} x\n", model,
                   round, fp32.back(), r30_ratio.back(), scaling.back());
        std::fflush(stdout);
    }
    json table = json::object();
    double best = 0.0;
    double best_alike = 0.0;  // of the same architecture
    std::string best_name;
    for (const Peer& p : peers) {
        table[p.name] = with_spread(p.tok_s);
        if (p.name.find("gpt2") == std::string::npos)
            best_alike = std::max(best_alike, median(p.tok_s));
        if (median(p.tok_s) > best) best = median(p.tok_s), best_name = p.name;
    }
    has_peer = best > 0.0;
    const double ratio = has_peer ? median(fp32) / best : 0.0;
    holds = holds && ratio >= 1.3 && median(r30_ratio) >= 0.9 && median(scaling) >= 1.8;
    return {{"model", model},
            {"fp32_tok_s", with_spread(fp32)},
            {"peers_tok_s", table},
            {"best_peer", best_name},
            {"over_best_peer", ratio},
            {"over_best_of_this_architecture", best_alike > 0.0 ? median(fp32) / best_alike : 0.0},
            {"r30_over_fp32", with_spread(r30_ratio)},
            {"elastic_over_fast", with_spread(elastic_ratio)},
            {"dp2_over_one", with_spread(scaling)},
            {"dp2_exposed_comm_share", with_spread(comm_share)}};
}

using Sgemm = void (*)(int, int, int, int, int, int, float, const float*, int, const float*, int,
                       float, float*, int);

/// Best GFLOP/s of ours and of OpenBLAS for c = a b^T of (m, k) and (n, k), in turns.
json measure_gemm(const Options& o, Sgemm sgemm, std::int64_t m, std::int64_t n, std::int64_t k,
                  std::vector<double>& shares) {
    const Tensor a({m, k}, DType::fp32), b({n, k}, DType::fp32), c({m, n}, DType::fp32);
    for (const Tensor* t : {&a, &b})
        std::ranges::fill(t->as<float>(), 0.01f);
    const double flop = 2e-9 * static_cast<double>(m * n * k);
    const auto best_of = [&](const auto& multiply) {
        // Threads of the other library may still be spinning.
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        double best = 0.0;
        for (int i = 0; i < (o.quick ? 2 : 30); ++i) {
            const auto begin = std::chrono::steady_clock::now();
            multiply();
            best = std::max(
                best, flop / std::chrono::duration<double>(std::chrono::steady_clock::now() - begin)
                                 .count());
        }
        return best;
    };
    double ours = 0.0, theirs = 0.0;
    for (int turn = 0; turn < (o.quick ? 1 : 4); ++turn) {
        ours = std::max(
            ours, best_of([&] { matmul({.c = c, .a = a, .b = b, .transpose_b = true}, {}); }));
        theirs = std::max(
            theirs, best_of([&] {
                constexpr int kRowMajor = 101, kNo = 111, kYes = 112;
                const auto [rows, cols, depth] =
                    std::array{static_cast<int>(m), static_cast<int>(n), static_cast<int>(k)};
                sgemm(kRowMajor, kNo, kYes, rows, cols, depth, 1.0f, a.as<float>().data(), depth,
                      b.as<float>().data(), depth, 0.0f, c.as<float>().data(), cols);
            }));
    }
    shares.push_back(ours / theirs);
    return {{"shape", fmt::format("m={} n={} k={}", m, n, k)},
            {"gflop_s", ours},
            {"openblas_gflop_s", theirs}};
}

json measure_gemms(const Options& o, bool& holds) {
    void* const library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    void* const symbol = library == nullptr ? nullptr : dlsym(library, "cblas_sgemm");
    if (symbol == nullptr) {
        holds = false;
        return "libopenblas.so.0 is not installed";
    }
    const auto sgemm = reinterpret_cast<Sgemm>(symbol);
    set_cpu_threads(o.threads);
    std::vector<double> shares;
    json table = json::array();
    for (const auto& [m, n, k] : {std::array<std::int64_t, 3>{1024, 768, 256},
                                  {1024, 256, 768},
                                  {1024, 4096, 256},
                                  {256, 2304, 768},
                                  {256, 2048, 768},
                                  {256, 768, 2048},
                                  {256, 50257, 768}})
        table.push_back(measure_gemm(o, sgemm, m, n, k, shares));
    set_cpu_threads(1);
    const double least = *std::ranges::min_element(shares);
    holds = holds && least >= 0.8;
    return {{"least_share_of_openblas", least}, {"shapes", table}};
}

}  // namespace

int main(int argc, char** argv) {
    Options o;
    for (int i = 1; i < argc; ++i) {
        if (std::strcmp(argv[i], "--quick") == 0) o.quick = true, o.rounds = 1;
        if (i + 1 >= argc) continue;
        if (std::strcmp(argv[i], "--rounds") == 0) o.rounds = std::atoi(argv[i + 1]);
        if (std::strcmp(argv[i], "--python") == 0) o.pythons.emplace_back(argv[i + 1]);
    }
    bool holds = true, has_peer = false;
    json out{{"threads", o.threads}, {"rounds", o.rounds}};
    out["gemm"] = measure_gemms(o, holds);
    for (const char* model : {"small", "124m"})
        if (!o.quick || std::strcmp(model, "small") == 0)
            out["models"].push_back(measure_model(o, model, holds, has_peer));
    const char* const reason = o.quick ? "one short round is no measurement: run without --quick"
                               : !has_peer
                                   ? "no PyTorch to compare with: install python3-torch, or "
                                     "name one with --python"
                                   : nullptr;
    if (reason != nullptr) out["skipped"] = reason;
    out["holds"] = reason == nullptr && holds;
    fmt::print("{}\n", out.dump());
    return reason != nullptr ? 77 : holds ? 0 : 1;
}
