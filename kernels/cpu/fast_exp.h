#pragma once
#include "kernels/core/fast_exp.h"

namespace stoa::cpu {

using stoa::fast_exp;
using stoa::fused_exp;

}  // namespace stoa::cpu
