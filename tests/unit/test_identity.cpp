#include "tests/support/catch.h"
#include "trainer/run_state.h"

using namespace stoa;

namespace {

CheckpointMeta meta_with(const std::map<std::string, std::string>& counters) {
    CheckpointMeta meta;
    meta.counters = counters;
    return meta;
}
std::string refusal(const CheckpointMeta& saved, const CheckpointMeta& now) {
    try {
        check_identity(saved, now, "ckpt");
    } catch (const ConfigError& e) {
        return e.what();
    }
    return "";
}

}  // namespace

TEST_CASE("a setting that decides the weights is compared where either side has it", "[identity]") {
    const CheckpointMeta plain = meta_with({{"identity.model.d_model", "64"}, {"step", "3"}}),
                         later = meta_with({{"identity.model.d_model", "64"}, {"step", "9"}}),
                         wider = meta_with({{"identity.model.d_model", "96"}}),
                         dynamic = meta_with({{"identity.model.d_model", "64"},
                                              {"identity.model.attention", "0 1"}});
    CHECK(refusal(plain, later).empty());
    CHECK(refusal(dynamic, dynamic).empty());
    CHECK(refusal(plain, wider).find("model.d_model") != std::string::npos);
    CHECK(refusal(plain, dynamic).find("model.attention: ") != std::string::npos);
    const std::string dropped = refusal(dynamic, plain);
    CHECK(dropped.find("model.attention: ") != std::string::npos);
    CHECK(dropped.find("0 1") != std::string::npos);
    CHECK(dropped.find("(absent)") != std::string::npos);
}
