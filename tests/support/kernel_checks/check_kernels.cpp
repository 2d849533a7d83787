#include "tests/support/kernel_checks/checker.h"

namespace stoa::test {

std::vector<KernelCheck> check_kernels(const Exec& exec, bool large, bool library) {
    Checker c{exec, large, {}};
    check_elementwise(c);
    check_rows(c);
    check_quantize(c);
    check_training(c);
    check_attention(c);
    check_selected_keys(c);
    check_caches(c);
    if (library) check_matmul(c);
    if (library) check_library_attention(c);
    return c.all;
}

}  // namespace stoa::test
