#pragma once
// Every CUDA kernel against the CPU op: the same inputs, the same bytes.
#include <string>
#include <vector>

#include "kernels/core/exec.h"

namespace stoa::test {

struct KernelCheck {
    std::string op;
    std::int64_t runs = 0, values = 0, differences = 0;
    double worst = 0.0;  // relative error where not the bits are compared
    std::string first;   // the first difference
};

/// `large`: shapes that fill a GPU; else small ones with every odd edge. `library`: also the ops
/// that call the vendor's library.
std::vector<KernelCheck> check_kernels(const Exec& exec, bool large, bool library = true);

}  // namespace stoa::test
