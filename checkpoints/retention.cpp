#include <algorithm>
#include <filesystem>

#include "checkpoints/checkpoint.h"
#include "checkpoints/run_directory.h"
#include "checkpoints/verify.h"

namespace stoa {

std::vector<std::string> prunable(const std::string& run_dir, const KeepRule& keep,
                                  const std::string& known_good) {
    const std::vector<std::string> dirs = list_checkpoints(run_dir);
    std::vector<std::string> out;
    const auto newest = static_cast<std::size_t>(std::max<std::int64_t>(keep.newest, 1));
    if (keep.newest == 0 || dirs.size() <= newest) return out;
    bool good_is_kept = false;  // nothing goes before a newer one has been read back whole
    for (std::size_t age = 0; age < dirs.size(); ++age) {
        const std::string& dir = dirs[dirs.size() - 1 - age];
        const std::int64_t step = step_of_name(std::filesystem::path(dir).filename().string());
        const bool milestone = keep.every_steps > 0 && step % keep.every_steps == 0;
        if (good_is_kept && age >= newest) {
            if (!milestone) out.push_back(dir);
        } else if (!good_is_kept) {
            const auto is_good = [](const FileVerdict& v) { return v.problem.empty(); };
            good_is_kept = dir == known_good || std::ranges::all_of(judge_files(dir), is_good);
        }
    }
    std::ranges::reverse(out);
    return out;
}

std::vector<std::string> prune_checkpoints(const std::string& run_dir, const KeepRule& keep,
                                           const std::string& known_good) {
    std::vector<std::string> gone = prunable(run_dir, keep, known_good);
    for (const std::string& dir : gone)
        delete_checkpoint(dir);
    return gone;
}

}  // namespace stoa
