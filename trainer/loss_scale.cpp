#include "trainer/loss_scale.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "kernels/core/error.h"

namespace stoa {

LossScale initial_loss_scale(bool fp16_attention) {
    LossScale s;
    if (!fp16_attention) s.value = 1.0, s.dynamic = false;
    return s;
}

void update(LossScale& s, bool overflow) {
    if (!s.dynamic) return;
    if (overflow) {
        s.good = 0;
        s.hysteresis = std::max<std::int64_t>(s.hysteresis - 1, 0);
        if (s.hysteresis == 0) s.value = std::max(1.0, s.value / 2);
        return;
    }
    if (++s.good < 1000) return;
    s.good = 0;
    s.hysteresis = 2;
    s.value = std::min(16777216.0, s.value * 2);
}

std::string to_text(const LossScale& s) {
    std::ostringstream out;
    out << std::ilogb(s.value) << ' ' << s.good << ' ' << s.hysteresis << ' ' << s.dynamic;
    return out.str();
}

LossScale loss_scale_from_text(const std::string& text) {
    std::istringstream in(text);
    LossScale s;
    int exponent = 0;
    if (!(in >> exponent >> s.good >> s.hysteresis >> s.dynamic))
        throw CheckpointError({.what = "not a loss scale", .actual = text});
    s.value = std::ldexp(1.0, exponent);
    return s;
}

}  // namespace stoa
