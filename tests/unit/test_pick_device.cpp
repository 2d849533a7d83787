// Which GPU each rank gets, and every way in which it gets none, on described machines.
#include "launcher/pick_device.h"
#include "tests/support/catch.h"

using namespace stoa;

namespace {

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

cuda::DeviceInfo h100(const std::string& id) { return {"NVIDIA H100", 90, 80 * kGiB, id}; }
cuda::DeviceInfo h200(const std::string& id) { return {"NVIDIA H200", 90, 141 * kGiB, id}; }
cuda::DeviceInfo a100(const std::string& id) { return {"NVIDIA A100", 80, 40 * kGiB, id}; }

const RankDevices kNone{"laptop", {}, "no driver"};

template <class Fn>
std::string refusal(const Fn& fn) {
    try {
        fn();
    } catch (const DeviceError& e) {
        CHECK(e.code() == ExitCode::device);
        return e.what();
    }
    return "";
}
// All ranks refuse with the same words.
std::string refusal_of_all(DeviceChoice choice, const std::vector<RankDevices>& ranks) {
    const std::string first = refusal([&] { pick_device(choice, ranks, 0); });
    for (int r = 1; r < static_cast<int>(ranks.size()); ++r)
        CHECK(refusal([&] { pick_device(choice, ranks, r); }) == first);
    return first;
}
void check_says(const std::string& text, const std::vector<const char*>& parts) {
    for (const char* part : parts) {
        CAPTURE(text, part);
        CHECK(text.find(part) != std::string::npos);
    }
}

}  // namespace

TEST_CASE("each rank gets a GPU of its own, host by host") {
    const RankDevices one{"n1", {h100("a"), h100("b")}, ""}, two{"n2", {h100("a"), h100("b")}, ""};
    const std::vector<RankDevices> ranks{one, two, one, two};  // dealt out in turns
    for (const DeviceChoice choice : {DeviceChoice::automatic, DeviceChoice::cuda})
        for (int r = 0; r < 4; ++r) {
            const DevicePick pick = pick_device(choice, ranks, r);
            CHECK(pick.device == Device{DeviceKind::cuda, r / 2});
            CHECK(pick.capability == 90);
            CHECK(pick.sharers == 1);
            CHECK(pick.all_own);
            CHECK(pick.notice.empty());
        }
    CHECK(pick_device(DeviceChoice::cpu, ranks, 0).device == Device{});
}

TEST_CASE("a rank that sees one GPU alone takes it") {
    const std::vector<RankDevices> ranks{{"n1", {h100("a")}, ""}, {"n1", {h100("b")}, ""}};
    CHECK(pick_device(DeviceChoice::cuda, ranks, 1).device == Device{DeviceKind::cuda, 0});
}

TEST_CASE("without a GPU auto computes on the CPU and says why, cuda is refused") {
    const DevicePick pick = pick_device(DeviceChoice::automatic, {kNone, kNone}, 1);
    CHECK(pick.device == Device{});
    check_says(pick.notice, {"on the CPU", "no driver"});
    check_says(
        refusal_of_all(DeviceChoice::cuda, {kNone, kNone}),
        {"there is no GPU", "rank 0 on laptop", "no driver", "nvidia-smi", "parallel.device=cpu"});
}

TEST_CASE("a rank without a GPU among others is named") {
    const std::vector<RankDevices> ranks{{"n1", {h100("a")}, ""}, kNone};
    check_says(refusal_of_all(DeviceChoice::automatic, ranks),
               {"only some ranks", "rank 1 on laptop", "no driver"});
}

TEST_CASE("more ranks than GPUs are refused, or share") {
    const RankDevices n1{"n1", {h100("a"), h100("b")}, ""};
    const std::vector<RankDevices> ranks{n1, n1, n1};
    check_says(refusal_of_all(DeviceChoice::automatic, ranks),
               {"more ranks than GPUs", "rank 2 on n1", "each of the 3 ranks", "2 GPUs seen",
                "cuda shared"});
    for (int r = 0; r < 3; ++r) {
        const DevicePick pick = pick_device(DeviceChoice::cuda_shared, ranks, r);
        CHECK(pick.device.index == r % 2);
        CHECK(pick.sharers == (r % 2 == 0 ? 2 : 1));
        CHECK_FALSE(pick.all_own);
    }
}

TEST_CASE("GPUs of several kinds: other memory is a notice, another architecture an error") {
    const RankDevices slow{"n2", {h200("a")}, ""};
    const DevicePick pick =
        pick_device(DeviceChoice::automatic, {{"n1", {h100("a")}, ""}, slow}, 0);
    CHECK(pick.device.is_cuda());
    check_says(pick.notice, {"rank 1 on n2", "H200", "H100"});
    check_says(
        refusal_of_all(DeviceChoice::automatic, {{"n1", {h100("a")}, ""}, {"n2", {a100("a")}, ""}}),
        {"several architectures", "rank 1 on n2", "sm_90", "sm_80 (NVIDIA A100)"});
    cuda::DeviceInfo old{"Tesla T4", 75, 16 * kGiB, "a"};
    check_says(refusal_of_all(DeviceChoice::automatic, {{"n1", {old}, ""}}),
               {"too old", "sm_80 or newer", "Tesla T4, sm_75"});
}
