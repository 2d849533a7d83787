// kernels/cuda/library_gemm.h on the host: the CPU's product, and plain loops for 8-bit operands,
// whose scales come in the library's layout.
#include <vector>

#include "kernels/cpu/gemm.h"
#include "kernels/cuda/host/device_pages.h"
#include "kernels/cuda/host/recording.h"
#include "kernels/cuda/library_gemm.h"
#include "kernels/device_scratch.h"

namespace stoa::cuda {
namespace {

cpu::Operand operand_of(const LibraryGemm::Operand& o) {
    return {o.data, o.dtype, o.ld, o.transpose};
}

/// Element (r, k) of an operand that is contracted along its rows.
float value_of(const LibraryGemm::Operand& o, std::int64_t rows, std::int64_t k_blocks,
               std::int64_t r, std::int64_t k) {
    const auto bits = static_cast<std::uint8_t>(o.data[r * o.ld + k]);
    const float code = o.dtype == DType::e4m3 ? to_float(e4m3{bits}) : to_float(e5m2{bits});
    const std::int64_t block = k / kQuantBlock;
    return code * (o.blocks == QuantBlocks::row
                       ? o.scale[block * round4(rows) + r]
                       : o.scale[r / kQuantBlock * round4(k_blocks) + block]);
}

void compute(const LibraryGemm& g) {
    if (g.a.scale == nullptr) {
        cpu::gemm({.m = g.m,
                   .n = g.n,
                   .k = g.k,
                   .a = operand_of(g.a),
                   .b = operand_of(g.b),
                   .c = {g.c, g.c_dtype, g.n},
                   .accumulate = g.accumulate});
        return;
    }
    const auto unpack = [&](const LibraryGemm::Operand& o, std::int64_t rows) {
        std::vector<float> values;
        for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t k = 0; k < g.k; ++k)
                values.push_back(value_of(o, rows, g.k / kQuantBlock, r, k));
        return values;
    };
    const std::vector<float> a = unpack(g.a, g.m), b = unpack(g.b, g.n);
    cpu::gemm({.m = g.m,
               .n = g.n,
               .k = g.k,
               .a = cpu::operand(a.data(), g.k),
               .b = cpu::operand(b.data(), g.k, true),
               .c = {g.c, g.c_dtype, g.n},
               .accumulate = g.accumulate});
}

}  // namespace

bool library_gemm(const LibraryGemm& g, Stream stream) {
    const host::CountedScratch workspace(kGemmWorkspaceBytes);
    host::start(
        {.name = "library product", .blocks = 1, .threads = 1, .stream = stream}, nullptr,
        [g] { compute(g); }, g);
    return true;
}

}  // namespace stoa::cuda
