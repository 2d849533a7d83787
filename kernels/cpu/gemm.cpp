// Packed GEMM after Goto & van de Geijn 2008: operands are packed so that the micro-kernel reads
// both with unit stride, a panel of b stays in L1 while the panels of a pass by, and the packed
// rest stays in L2. Up to kWideRows rows, the threads divide the columns: packed a is shared, and
// each packs its own panels of b. Beyond, they divide the rows: packed b is shared, and each packs
// its own rows of a.
#include "kernels/cpu/gemm.h"

#include <algorithm>
#include <cstring>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/gemm_micro.h"
#include "kernels/cpu/gemm_pack.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/scratch.h"

namespace stoa::cpu {
namespace {

constexpr std::int64_t kBlockN = 1024;        // a multiple of every nr
constexpr std::int64_t kWideRows = 480;       // a multiple of every mr
constexpr std::int64_t kChunkRows = 144;      // at most so many rows of a does one thread pack
constexpr std::int64_t kFewRows = 24;         // fewer rows than this do not pay for packing b
constexpr std::int64_t kPacked = 1 << 18;     // values of the shared operand: 1 MiB, half an L2
constexpr std::int64_t kNarrowRows = 1024;    // rows of a narrow c that are held in fp32 at a time
constexpr std::int64_t kAloneWork = 1 << 19;  // fewer multiplications than this stay on one thread

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Rows [i0, i0 + m) and columns [j0, j0 + n) of c, over the steps [p0, p0 + k).
struct Block {
    const Gemm& g;
    const MicroKernels& micro;
    std::int64_t i0 = 0, m = 0, j0 = 0, n = 0, p0 = 0, k = 0;
    float* c = nullptr;  // element (i0, j0): in g.c itself, or in its fp32 stand-in
    std::int64_t ldc = 0;
    // Packed operands. Each kGemmBlockK steps lie together, panel after panel.
    float *a = nullptr, *b = nullptr;

    std::int64_t panels_a() const { return ceil_div(m, micro.mr); }
    std::int64_t panels_b() const { return ceil_div(n, micro.nr); }
    std::int64_t steps(std::int64_t p) const { return std::min(kGemmBlockK, p0 + k - p); }
    bool narrow() const { return g.c.dtype != DType::fp32; }
    /// Pieces of work for one thread at a time, out of `count`.
    std::int64_t grain(std::int64_t count, std::int64_t range) const {
        return m * n * k < kAloneWork ? count : range;
    }
};

/// b over one block of k: nr values per step, `stride` apart.
struct Panel {
    const float* data = nullptr;
    std::int64_t stride = 0;
};

/// Rows of a over one block of k: packed, or where they lie, `ld` apart (0: packed).
struct Rows {
    const float* data = nullptr;
    std::int64_t ld = 0;
};

/// All row panels of a (m rows) against one panel of b: c columns [0, width).
void multiply_panel(const MicroKernels& micro, std::int64_t m, std::int64_t k, const Rows& a,
                    const Panel& b, std::int64_t width, float* c, std::int64_t ldc, Into into) {
    for (std::int64_t r = 0; r < m; r += micro.mr, c += micro.mr * ldc) {
        const std::int64_t rows = std::min<std::int64_t>(micro.mr, m - r);
        const auto kernel = [&](float* to, std::int64_t ld_to, Into how) {
            if (a.ld != 0)
                micro.in_place[rows - 1](k, a.data + r * a.ld, a.ld, b.data, b.stride, to, ld_to,
                                         how);
            else
                micro.for_rows[rows - 1](k, a.data + r * k, b.data, b.stride, to, ld_to, how);
        };
        if (width == micro.nr) {
            kernel(c, ldc, into);
            continue;
        }
        float tile[kMaxMr * kMaxNr] = {};
        if (into == Into::chain)
            for (std::int64_t i = 0; i < rows; ++i)
                std::copy_n(c + i * ldc, width, tile + i * micro.nr);
        kernel(tile, micro.nr, into == Into::add ? Into::write : into);
        for (std::int64_t i = 0; i < rows; ++i)
            for (std::int64_t j = 0; j < width; ++j) {
                const float x = tile[i * micro.nr + j];
                c[i * ldc + j] = into == Into::add ? c[i * ldc + j] + x : x;
            }
    }
}

/// Before the first steps: what a narrow c holds, in fp32.
template <class T>
void load_narrow(const Block& s, std::int64_t i, std::int64_t m, std::int64_t j, std::int64_t n) {
    const Result& c = s.g.c;
    const T* const from = reinterpret_cast<const T*>(c.data) + (s.i0 + i) * c.ld + s.j0 + j;
    vectorised([&] {
        for (std::int64_t r = 0; r < m; ++r)
            for (std::int64_t e = 0; e < n; ++e)
                s.c[(i + r) * s.ldc + j + e] = widen(from[r * c.ld + e]);
    });
}
/// After the last steps: the sums, rounded once.
template <class T>
void store_narrow(const Block& s, std::int64_t i, std::int64_t m, std::int64_t j, std::int64_t n) {
    const Result& c = s.g.c;
    T* const to = reinterpret_cast<T*>(c.data) + (s.i0 + i) * c.ld + s.j0 + j;
    vectorised([&] {
        for (std::int64_t r = 0; r < m; ++r)
            for (std::int64_t e = 0; e < n; ++e)
                to[r * c.ld + e] = narrow_to<T>(s.c[(i + r) * s.ldc + j + e]);
    });
}

/// The same into a bf16 c that is added to: up or down at random.
void store_at_random(const Block& s, std::int64_t i, std::int64_t m, std::int64_t j,
                     std::int64_t n) {
    const Result& c = s.g.c;
    bf16* const to = reinterpret_cast<bf16*>(c.data) + (s.i0 + i) * c.ld + s.j0 + j;
    vectorised([&] {
        std::uint32_t random[kRandomRun];
        for (std::int64_t r = 0; r < m; ++r)
            for (std::int64_t begin = 0; begin < n; begin += kRandomRun) {
                const std::int64_t run = std::min(kRandomRun, n - begin);
                const float* const from = s.c + (i + r) * s.ldc + j + begin;
                random_halves(random, s.g.rounding,
                              s.g.rounding.element(s.i0 + i + r, s.j0 + j + begin), run);
                for (std::int64_t e = 0; e < run; ++e)
                    to[r * c.ld + begin + e] = to_bf16_stochastic(from[e], random[e]);
            }
    });
}
void store_rounded(const Block& s, std::int64_t i, std::int64_t m, std::int64_t j, std::int64_t n) {
    if (s.g.c.dtype == DType::fp16) return store_narrow<fp16>(s, i, m, j, n);
    if (s.g.accumulate && s.g.rounding.enabled()) return store_at_random(s, i, m, j, n);
    store_narrow<bf16>(s, i, m, j, n);
}

/// Runs `multiply` on the region of c that this thread owns, between its load and its store.
template <class Multiply>
void own_region(const Block& s, std::int64_t i, std::int64_t m, std::int64_t j, std::int64_t n,
                const Multiply& multiply) {
    const std::int64_t first = s.g.k_begin;
    if (s.narrow() && s.g.accumulate && s.p0 == first)
        s.g.c.dtype == DType::bf16 ? load_narrow<bf16>(s, i, m, j, n)
                                   : load_narrow<fp16>(s, i, m, j, n);
    for (std::int64_t p = s.p0; p < s.p0 + s.k; p += kGemmBlockK)
        multiply(p, s.steps(p),
                 !s.g.accumulate && p == first ? Into::write
                 : s.g.chain                   ? Into::chain
                                               : Into::add);
    if (s.narrow() && s.p0 + s.k == first + s.g.k) store_rounded(s, i, m, j, n);
}

/// Packs op(a)'s rows, or op(b)'s columns, [first, first + count) over all steps of the block.
void pack_shared(const Block& s, float* packed, std::int64_t width, const Operand& x, bool along_k,
                 std::int64_t first, std::int64_t count) {
    const std::int64_t panels = ceil_div(count, width);
    // Stored along k: one panel is a piece of work. Across: some steps of all panels, since whole
    // stored rows are read fastest.
    constexpr std::int64_t kSteps = 32;
    const std::int64_t pieces = along_k ? panels : kGemmBlockK / kSteps;
    const std::int64_t blocks = ceil_div(s.k, kGemmBlockK);
    parallel_for(blocks * pieces, s.grain(blocks * pieces, 1), [&](auto begin, auto end) {
        for (; begin < end; ++begin) {
            const std::int64_t p = s.p0 + begin / pieces * kGemmBlockK, piece = begin % pieces;
            const std::int64_t k = s.steps(p);
            float* const block = packed + (p - s.p0) * panels * width;
            if (along_k) {
                const std::int64_t i = piece * width, n = std::min(width, count - i);
                pack_panels(block + i * k, width, k, x, along_k, first + i, n, p, k);
            } else if (const std::int64_t step = piece * kSteps; step < k) {
                pack_panels(block + step * width, width, k, x, along_k, first, count, p + step,
                            std::min(kSteps, k - step));
            }
        }
    });
}

/// Column panel `index` over the steps of p: in place where few rows use it, else packed just now.
Panel own_panel(const Block& s, std::int64_t index, std::int64_t p, std::int64_t k) {
    const std::int64_t nr = s.micro.nr, j = index * nr;
    const Operand& b = s.g.b;
    if (s.m <= kFewRows && b.dtype == DType::fp32 && !b.transpose && j + nr <= s.n)
        return {reinterpret_cast<const float*>(b.data) + p * b.ld + s.j0 + j, b.ld};
    struct OwnPanel;
    float* const panel = scratch<OwnPanel, float>(kGemmBlockK * nr);
    pack_panels(panel, nr, k, b, b.transpose, s.j0 + j, std::min(nr, s.n - j), p, k);
    return {panel, nr};
}

/// The threads divide the column panels; all rows of a are packed.
void multiply_wide(const Block& s) {
    const std::int64_t nr = s.micro.nr, panels = s.panels_b();
    const std::int64_t range = std::max<std::int64_t>(1, panels / cpu_threads() / 4);
    pack_shared(s, s.a, s.micro.mr, s.g.a, !s.g.a.transpose, s.i0, s.m);
    parallel_for(panels, s.grain(panels, range), [&](auto begin, auto end) {
        for (; begin < end; ++begin) {
            const std::int64_t j = begin * nr, n = std::min(nr, s.n - j);
            own_region(s, 0, s.m, j, n, [&](std::int64_t p, std::int64_t k, Into into) {
                const float* const a = s.a + (p - s.p0) * s.panels_a() * s.micro.mr;
                multiply_panel(s.micro, s.m, k, {a}, own_panel(s, begin, p, k), n, s.c + j, s.ldc,
                               into);
            });
        }
    });
}

/// Whether rows of a are read in place: an fp32 a stored along k, unless its rows meet in few sets
/// of L1, where they would drive out each other and the panel of b.
bool reads_rows_in_place(const Block& s) {
    constexpr std::int64_t kSetSpan = 4096 / 2;  // bytes after which every second set comes again
    const Operand& a = s.g.a;
    return !s.micro.packing_pays && a.dtype == DType::fp32 && !a.transpose &&
           a.ld * 4 % kSetSpan != 0;
}
/// Rows [i, i + m) over the steps of p: in place, or packed into the thread's own memory.
Rows own_rows(const Block& s, std::int64_t i, std::int64_t m, std::int64_t p, std::int64_t k) {
    const Operand& a = s.g.a;
    if (reads_rows_in_place(s))
        return {reinterpret_cast<const float*>(a.data) + (s.i0 + i) * a.ld + p, a.ld};
    struct OwnRows;
    float* const packed =
        scratch<OwnRows, float>(ceil_div(m, s.micro.mr) * s.micro.mr * kGemmBlockK);
    pack_panels(packed, s.micro.mr, k, a, !a.transpose, s.i0 + i, m, p, k);
    return {packed};
}

/// The threads divide the rows; all columns of b are packed.
void multiply_tall(const Block& s) {
    // Equal chunks of whole panels, as many for each thread as for the others.
    const std::int64_t mr = s.micro.mr, nr = s.micro.nr, threads = cpu_threads();
    const std::int64_t share = ceil_div(s.panels_a(), threads);
    const std::int64_t chunks = threads * ceil_div(share * mr, kChunkRows);
    const std::int64_t rows = ceil_div(s.panels_a(), chunks) * mr;
    pack_shared(s, s.b, nr, s.g.b, s.g.b.transpose, s.j0, s.n);
    parallel_for(ceil_div(s.m, rows), 1, [&](auto begin, auto end) {
        for (; begin < end; ++begin) {
            const std::int64_t i = begin * rows, m = std::min(rows, s.m - i);
            own_region(s, i, m, 0, s.n, [&](std::int64_t p, std::int64_t k, Into into) {
                const Rows a = own_rows(s, i, m, p, k);
                const float* const b = s.b + (p - s.p0) * s.panels_b() * nr;
                for (std::int64_t j = 0; j < s.n; j += nr)
                    multiply_panel(s.micro, m, k, a, {b + j * k, nr}, std::min(nr, s.n - j),
                                   s.c + i * s.ldc + j, s.ldc, into);
            });
        }
    });
}

/// Columns [j0, j0 + n) of rows [i0, i0 + m), over all of k in groups whose packed operand fits in
/// L2 beside the rest.
void multiply_columns(Block s) {
    struct PackedA;
    struct PackedB;
    const bool wide = s.m <= (s.g.b.transpose ? kWideRows : kFewRows);
    const std::int64_t group = kPacked / (wide ? s.m : s.n) / kGemmBlockK;
    const std::int64_t depth = std::min(s.g.k, std::max<std::int64_t>(1, group) * kGemmBlockK);
    if (wide)
        s.a = scratch<PackedA, float>(s.panels_a() * s.micro.mr * depth);
    else
        s.b = scratch<PackedB, float>(s.panels_b() * s.micro.nr * depth);
    const std::int64_t end = s.g.k_begin + s.g.k;
    for (s.p0 = s.g.k_begin; s.p0 < end; s.p0 += depth) {
        s.k = std::min(depth, end - s.p0);
        wide ? multiply_wide(s) : multiply_tall(s);
    }
}

}  // namespace

void gemm(const Gemm& g) {
    if (g.c.dtype == DType::fp64) return gemm_fp64(g);
    if (g.k == 0) {
        if (!g.accumulate)
            for (std::int64_t i = 0; i < g.m; ++i)
                std::memset(g.c.data + i * g.c.ld * size_of(g.c.dtype), 0,
                            static_cast<std::size_t>(g.n * size_of(g.c.dtype)));
        return;
    }
    struct WideC;
    Block s{g, micro_kernels(current_isa())};
    const std::int64_t rows = s.narrow() ? kNarrowRows : g.m;
    for (s.i0 = 0; s.i0 < g.m; s.i0 += rows)
        for (s.j0 = 0; s.j0 < g.n; s.j0 += kBlockN) {
            s.m = std::min(rows, g.m - s.i0);
            s.n = std::min(kBlockN, g.n - s.j0);
            s.ldc = s.narrow() ? s.n : g.c.ld;
            s.c = s.narrow() ? scratch<WideC, float>(s.m * s.n)
                             : reinterpret_cast<float*>(g.c.data) + s.i0 * s.ldc + s.j0;
            multiply_columns(s);
        }
}

}  // namespace stoa::cpu
