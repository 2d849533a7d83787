#include "launcher/pick_device.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "parallel/collectives.h"
#include "parallel/mpi_session.h"

namespace stoa {
namespace {

constexpr int kOldest = 80;  // sm_80: the first with bf16
constexpr const char* kOnCpu = "or compute on the CPU: parallel.device=cpu";

std::string who(const std::vector<RankDevices>& ranks, std::size_t r) {
    return fmt::format("rank {} on {}", r, ranks[r].host);
}

// Ranks with a smaller number on the same host.
std::size_t number_on_host(const std::vector<RankDevices>& ranks, std::size_t r) {
    const auto same = [&](const RankDevices& o) { return o.host == ranks[r].host; };
    return static_cast<std::size_t>(
        std::count_if(ranks.begin(), ranks.begin() + static_cast<std::ptrdiff_t>(r), same));
}

std::size_t index_of(const std::vector<RankDevices>& ranks, std::size_t r) {
    return number_on_host(ranks, r) % ranks[r].devices.size();
}
const cuda::DeviceInfo& gpu_of(const std::vector<RankDevices>& ranks, std::size_t r) {
    return ranks[r].devices[index_of(ranks, r)];
}

// The first rank with a GPU that an earlier one has, too; ranks.size() where there is none.
std::size_t first_sharer(const std::vector<RankDevices>& ranks) {
    std::set<std::pair<std::string, std::string>> taken;
    for (std::size_t r = 0; r < ranks.size(); ++r)
        if (!taken.insert({ranks[r].host, gpu_of(ranks, r).id}).second) return r;
    return ranks.size();
}

void require_one_kind(const std::vector<RankDevices>& ranks, std::string& notice) {
    const cuda::DeviceInfo& first = gpu_of(ranks, 0);
    for (std::size_t r = 0; r < ranks.size(); ++r) {
        const cuda::DeviceInfo& gpu = gpu_of(ranks, r);
        if (gpu.capability < kOldest)
            throw DeviceError({.what = "the GPU is too old",
                               .where = who(ranks, r),
                               .expected = fmt::format("sm_{} or newer", kOldest),
                               .actual = fmt::format("{}, sm_{}", gpu.name, gpu.capability),
                               .hint = std::string("use another GPU, ") + kOnCpu});
        if (gpu.capability != first.capability)  // their products differ by roundings
            throw DeviceError(
                {.what = "the ranks' GPUs are of several architectures",
                 .where = who(ranks, r),
                 .expected = fmt::format("sm_{} as rank 0 ({})", first.capability, first.name),
                 .actual = fmt::format("sm_{} ({})", gpu.capability, gpu.name),
                 .hint = "start the ranks on machines of one kind, or choose with "
                         "CUDA_VISIBLE_DEVICES"});
        if (gpu.name != first.name && notice.empty())
            notice = fmt::format("{} computes on {}, rank 0 on {}: the slowest sets the pace",
                                 who(ranks, r), gpu.name, first.name);
    }
}

}  // namespace

DevicePick pick_device(DeviceChoice choice, const std::vector<RankDevices>& ranks, int rank) {
    if (choice == DeviceChoice::cpu) return {};
    const auto has_none = [](const RankDevices& r) { return r.devices.empty(); };
    const auto without =
        static_cast<std::size_t>(std::ranges::find_if(ranks, has_none) - ranks.begin());
    if (without < ranks.size()) {
        const bool all = std::ranges::all_of(ranks, has_none);
        if (choice == DeviceChoice::automatic && all)
            return {.notice = fmt::format("computing on the CPU: {}", ranks[without].reason)};
        throw DeviceError({.what = all ? "there is no GPU" : "only some ranks have a GPU",
                           .where = who(ranks, without),
                           .expected = "a GPU for every rank",
                           .actual = ranks[without].reason,
                           .hint = std::string("take a build with CUDA, and install or update the "
                                               "NVIDIA driver (nvidia-smi lists the GPUs; stoa "
                                               "doctor looks at both), ") +
                                   kOnCpu});
    }
    DevicePick pick;
    require_one_kind(ranks, pick.notice);
    const std::size_t sharer = first_sharer(ranks);
    if (sharer < ranks.size() && choice != DeviceChoice::cuda_shared) {
        const auto here = std::ranges::count(ranks, ranks[sharer].host, &RankDevices::host);
        throw DeviceError(
            {.what = "more ranks than GPUs",
             .where = who(ranks, sharer),
             .expected = fmt::format("a GPU for each of the {} ranks of this host", here),
             .actual = fmt::format("{} GPU{} seen", ranks[sharer].devices.size(),
                                   ranks[sharer].devices.size() == 1 ? "" : "s"),
             .hint = std::string("start fewer ranks, let them share with parallel.device='cuda "
                                 "shared' (slower: through host memory), ") +
                     kOnCpu});
    }
    const auto me = static_cast<std::size_t>(rank);
    pick.device = {DeviceKind::cuda, static_cast<int>(index_of(ranks, me))};
    pick.capability = gpu_of(ranks, me).capability;
    pick.all_own = sharer == ranks.size();
    pick.sharers = 0;
    for (std::size_t r = 0; r < ranks.size(); ++r)
        if (ranks[r].host == ranks[me].host && gpu_of(ranks, r).id == gpu_of(ranks, me).id)
            ++pick.sharers;
    return pick;
}

DevicePick pick_device(DeviceChoice choice, const Communicator& world) {
    if (choice == DeviceChoice::cpu) return {};
    using nlohmann::json;
    RankDevices mine{.host = host_name()};
    mine.devices = cuda::list_devices(mine.reason);
    json text{{"host", mine.host}, {"reason", mine.reason}, {"devices", json::array()}};
    for (const cuda::DeviceInfo& d : mine.devices)
        text["devices"].push_back({d.name, d.capability, d.memory_bytes, d.id});
    json all = json::array();
    for (const std::string& of_rank : gather(text.dump(), 0, world))
        all.push_back(of_rank);
    std::vector<RankDevices> ranks;
    for (const json& of_rank : json::parse(broadcast(all.dump(), 0, world))) {
        const json one = json::parse(of_rank.get<std::string>());
        RankDevices r{.host = one["host"], .reason = one["reason"]};
        for (const json& d : one["devices"])
            r.devices.push_back({d[0], d[1], d[2], d[3]});
        ranks.push_back(std::move(r));
    }
    DevicePick pick = pick_device(choice, ranks, world.rank());
    if (cuda::toolkit_version() == 0) pick.notice.clear();  // nobody expects one
    return pick;
}

std::unique_ptr<cuda::CudaStream> open_device(Device device) {
    if (!device.is_cuda()) return nullptr;
    cuda::use_device(device.index);
    return std::make_unique<cuda::CudaStream>();
}

}  // namespace stoa
