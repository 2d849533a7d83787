#pragma once
// The words of the schema's choices.
#include <string>
#include <type_traits>
#include <vector>

#include "configs/run_config.h"

namespace stoa {

// The words of each choice, in the order of its enum.
inline std::vector<std::string> words_of(Recompute) { return {"none", "selective", "full"}; }
inline std::vector<std::string> words_of(Recipe) {
    return {"fp32", "bf16", "r30", "r45", "r50", "fp64"};
}
inline std::vector<std::string> words_of(Format) {
    return {"auto", "fp32", "bf16", "fp16", "fp8", "fp24"};
}
inline std::vector<std::string> words_of(Moments) {
    return {"auto", "fp32", "bf16", "fp8-bf16", "fp8"};
}
inline std::vector<std::string> words_of(ScheduleKind) {
    return {"wsd", "cosine", "linear", "constant"};
}
inline std::vector<std::string> words_of(SourceKind) { return {"shards", "reasoning"}; }
inline std::vector<std::string> words_of(LossOn) { return {"all", "solution"}; }
inline std::vector<std::string> words_of(AttentionKind) { return {"dense", "window", "dynamic"}; }
inline std::vector<std::string> words_of(DeviceChoice) {
    return {"auto", "cpu", "cuda", "cuda shared"};
}
inline std::vector<std::string> words_of(KeySelector) { return {"tree", "importance"}; }

template <class E>
concept Choice = std::is_enum_v<E>;

inline std::string joined(const std::vector<std::string>& words) {
    std::string s;
    for (const std::string& w : words)
        s += (s.empty() ? "" : " | ") + w;
    return s;
}

}  // namespace stoa
