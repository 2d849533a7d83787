#include "kernels/core/error.h"

namespace stoa {

std::string format_error(const ErrorFields& f) {
    std::string s = f.where.empty() ? "" : f.where + ": ";
    s += f.what;
    if (!f.expected.empty()) s += ": expected " + f.expected;
    if (!f.actual.empty()) s += (f.expected.empty() ? ": got " : ", got ") + f.actual;
    if (!f.hint.empty()) s += "\n  hint: " + f.hint;
    return s;
}

}  // namespace stoa
