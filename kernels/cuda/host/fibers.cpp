#include "kernels/cuda/host/fibers.h"

#include <algorithm>
#include <array>
#include <boost/context/detail/fcontext.hpp>
#include <exception>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace stoa::cuda::host {
namespace {

namespace context = boost::context::detail;  // its fibers unwind their stacks when they are dropped

constexpr std::size_t kStackBytes = std::size_t{256} << 10;
constexpr int kMany = -2;  // more than one thread

/// Ends a thread with a finding: what it would read next is anyone's guess.
struct Stop {};

/// The last accesses to one element of shared memory, with the number of barriers before them.
struct Access {
    int writer = -1, reader = -1;
    std::uint64_t write_epoch = 0, read_epoch = 0;
};

/// Threads that meet: the last to arrive lets the others go by counting `met` up. Values lie in two
/// sets, so that a fast thread's next call does not touch what a slow one still reads.
struct Meeting {
    int arrived = 0;
    std::uint64_t met = 0;
    std::array<std::array<std::uint64_t, kWarp>, 2> values{};
};

struct Fiber {
    context::fcontext_t context = nullptr;                           // while it does not run
    std::unique_ptr<std::byte[]> stack{new std::byte[kStackBytes]};  // not touched before use
    int thread = 0;
    int barriers = 0;                          // that its thread has called
    const std::uint64_t* waits_for = nullptr;  // to differ from `seen`; null: it has no thread
    std::uint64_t seen = 0;
};

struct Machine {
    // one launch
    const Launch* launch = nullptr;
    const std::function<void()>* body = nullptr;
    std::string finding;
    std::exception_ptr thrown;
    // one block
    Position position;
    int next_thread = 0, alive = 0;
    Meeting block;
    std::vector<Meeting> halves, warps;
    std::vector<std::byte> shared;
    std::vector<Access> accesses;
    // always
    Mutation mutation;
    Counts counts;
    context::fcontext_t scheduler = nullptr;  // while a fiber runs
    bool from_scheduler = false;              // the jump that has just been made
    const void* scheduler_stack = nullptr;
    std::size_t scheduler_bytes = 0;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Fiber*> free;  // without a thread
    std::size_t turn = 0;      // of the fibers, who is asked next whether it waits still
    Fiber* running = nullptr;
};

Machine& machine() {
    thread_local Machine m;
    return m;
}

// AddressSanitizer wants to know which stack is in use.
void leave(void** fake, const void* stack, std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(fake, stack, bytes);
#else
    (void)fake, (void)stack, (void)bytes;
#endif
}
void arrive(Machine& m, void* fake) {
    const void* stack = nullptr;
    std::size_t bytes = 0;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, &stack, &bytes);
#else
    (void)fake;
#endif
    if (m.from_scheduler) m.scheduler_stack = stack, m.scheduler_bytes = bytes;
    m.from_scheduler = false;
}

/// Runs what stopped at `to`, until something jumps back to `mine`.
void jump(context::fcontext_t& mine, context::fcontext_t to) {
    const context::transfer_t from = context::jump_fcontext(to, &mine);
    *static_cast<context::fcontext_t*>(from.data) = from.fctx;
}

/// Who can go on: a fiber that takes a new thread, or one whose threads have met. Null: nobody.
Fiber* next_fiber(Machine& m);

void enter(Machine& m, Fiber& fiber) {
    m.running = &fiber;
    m.position.thread = fiber.thread;
}

/// From the scheduler. Comes back when no fiber can go on.
void resume(Machine& m, Fiber& fiber) {
    enter(m, fiber);
    void* fake = nullptr;
    m.from_scheduler = true;
    leave(&fake, fiber.stack.get(), kStackBytes);
    jump(m.scheduler, fiber.context);
    arrive(m, fake);
    m.running = nullptr;
}

/// From a fiber to the next one, or to the scheduler. Comes back when it is this fiber's turn.
void pass_on(Machine& m, Fiber& fiber) {
    Fiber* const next = next_fiber(m);
    if (next == &fiber) return;
    void* fake = nullptr;
    if (next != nullptr) {
        enter(m, *next);
        leave(&fake, next->stack.get(), kStackBytes);
        jump(fiber.context, next->context);
    } else {
        leave(&fake, m.scheduler_stack, m.scheduler_bytes);
        jump(fiber.context, m.scheduler);
    }
    arrive(m, fake);
}

void wait(Machine& m, const std::uint64_t& met) {
    Fiber& fiber = *m.running;
    fiber.waits_for = &met;
    fiber.seen = met;
    pass_on(m, fiber);
}

void release_block(Machine& m) {
    if (m.block.arrived == 0 || m.block.arrived < m.alive) return;
    m.block.arrived = 0;
    ++m.block.met;
}

/// Takes one thread after the other, as long as there are any; a thread that waits keeps its fiber.
void fiber_main(context::transfer_t from) {
    *static_cast<context::fcontext_t*>(from.data) = from.fctx;
    Machine& m = machine();
    arrive(m, nullptr);
    Fiber& fiber = *m.running;
    for (;;) {
        while (m.next_thread < m.position.threads) {
            fiber.thread = m.position.thread = m.next_thread++;
            fiber.barriers = 0;
            try {
                (*m.body)();
            } catch (const Stop&) {
            } catch (...) {
                m.thrown = std::current_exception();
            }
            m.counts.most_barriers = std::max(m.counts.most_barriers, fiber.barriers);
            --m.alive;
            release_block(m);
        }
        fiber.waits_for = nullptr;
        m.free.push_back(&fiber);
        pass_on(m, fiber);
    }
}

Fiber& free_fiber(Machine& m) {
    if (!m.free.empty()) {
        Fiber& fiber = *m.free.back();
        m.free.pop_back();
        return fiber;
    }
    m.fibers.push_back(std::make_unique<Fiber>());
    Fiber& fiber = *m.fibers.back();
    // From near the stack's upper end down, elsewhere in each: all at one distance would share a
    // few lines of the cache. fiber_main does not return.
    const std::size_t apart = m.fibers.size() * 832 % (std::size_t{16} << 10);
    fiber.context = context::make_fcontext(fiber.stack.get() + kStackBytes - apart,
                                           kStackBytes - apart, fiber_main);
    return fiber;
}

Fiber* next_fiber(Machine& m) {
    if (m.next_thread < m.position.threads) return &free_fiber(m);
    for (std::size_t i = 0; i < m.fibers.size(); ++i) {
        Fiber& fiber = *m.fibers[m.turn];
        m.turn = m.turn + 1 < m.fibers.size() ? m.turn + 1 : 0;
        if (fiber.waits_for != nullptr && *fiber.waits_for != fiber.seen) return &fiber;
    }
    return nullptr;
}

void find(Machine& m, const std::string& what) {
    if (!m.finding.empty()) return;
    m.finding = what + " (block " + std::to_string(m.position.block) + ", thread " +
                std::to_string(m.position.thread) + ")";
}

bool run_block(Machine& m, std::int64_t block) {
    const int threads = m.launch->threads;
    m.position = {0, threads, block, m.launch->blocks};
    m.next_thread = 0;
    m.alive = threads;
    m.block = {};
    m.halves.assign(static_cast<std::size_t>(threads / 16), {});
    m.warps.assign(static_cast<std::size_t>(threads / kWarp), {});
    m.shared.assign(static_cast<std::size_t>(m.launch->shared_bytes), std::byte{0xff});
    m.accesses.assign(m.shared.size(), {});
    m.turn = 0;
    while (m.alive > 0) {
        Fiber* const fiber = next_fiber(m);
        if (fiber == nullptr) return false;
        resume(m, *fiber);
    }
    return true;
}

}  // namespace

MutationScope::MutationScope(Mutation mutation) { machine().mutation = mutation; }
MutationScope::~MutationScope() { machine().mutation = {}; }

Counts counts() { return machine().counts; }
void reset_counts() { machine().counts = {}; }

void run(const Launch& launch, const std::function<void()>& body) {
    Machine& m = machine();
    const auto refuse = [&](const std::string& what) {
        throw DeviceError({.what = what, .where = launch.name});
    };
    if (launch.threads % kWarp != 0 || launch.threads < kWarp || launch.threads > 1024)
        refuse("threads of a block: " + std::to_string(launch.threads));
    if (launch.blocks < 0 || launch.blocks > 0x7fffffff || launch.shared_bytes > 48 << 10)
        refuse("the launch is larger than a GPU takes");
    m.launch = &launch;
    m.body = &body;
    m.finding.clear();
    m.thrown = nullptr;
    ++m.counts.launches;
    for (std::int64_t b = 0; b < launch.blocks && m.finding.empty() && !m.thrown; ++b) {
        ++m.counts.blocks;
        if (run_block(m, b)) continue;
        m.fibers.clear(), m.free.clear();  // those that wait never end
        find(m, "threads of a block wait for threads that do not come");
    }
    if (m.thrown) std::rethrow_exception(m.thrown);
    if (!m.finding.empty()) refuse(m.finding);
}

const Position& position() { return machine().position; }

void meet_block() {
    Machine& m = machine();
    ++m.counts.barriers;
    if (m.running->barriers++ == m.mutation.skip_barrier) return;
    if (++m.block.arrived < m.alive) return wait(m, m.block.met);
    release_block(m);
}

std::uint64_t exchange(std::uint64_t value, int from, int width) {
    Machine& m = machine();
    ++m.counts.shuffles;
    const int thread = m.position.thread;
    Meeting& group =
        (width == kWarp ? m.warps : m.halves)[static_cast<std::size_t>(thread / width)];
    auto& values = group.values[group.met % 2];
    values[static_cast<std::size_t>(thread % width)] = value;
    if (++group.arrived < width) {
        wait(m, group.met);
    } else {
        group.arrived = 0;
        ++group.met;
    }
    return values[static_cast<std::size_t>(from)];
}

std::uint32_t ballot(bool bit) {
    Machine& m = machine();
    const auto warp = static_cast<std::size_t>(m.position.thread / kWarp);
    const std::size_t set = m.warps[warp].met % 2;
    (void)exchange(bit ? 1 : 0, 0, kWarp);
    std::uint32_t bits = 0;
    for (std::size_t lane = 0; lane < kWarp; ++lane)
        bits |= static_cast<std::uint32_t>(m.warps[warp].values[set][lane]) << lane;
    return bits;
}

int shifted(int index) { return index + machine().mutation.shift_index; }
std::byte* shared_memory() { return machine().shared.data(); }

void require_shared(std::int64_t end_bytes) {
    Machine& m = machine();
    if (end_bytes > static_cast<std::int64_t>(m.shared.size()))
        find(m, "arrays of " + std::to_string(end_bytes) + " bytes in a shared memory of " +
                    std::to_string(m.shared.size()));
}

void access(std::int64_t offset_bytes, int index, int count, bool write) {
    Machine& m = machine();
    ++m.counts.shared_accesses;
    const int thread = m.position.thread;
    const std::uint64_t epoch = m.block.met;
    const auto stop = [&](const std::string& what) {
        find(m, what);
        throw Stop{};
    };
    if (index < 0 || index >= count || offset_bytes >= static_cast<std::int64_t>(m.shared.size()))
        stop("index " + std::to_string(index) + " of a shared array of " + std::to_string(count));
    Access& a = m.accesses[static_cast<std::size_t>(offset_bytes)];
    const auto unordered = [&](int other, std::uint64_t at) {
        return other != -1 && other != thread && at == epoch;
    };
    const auto element = [&](const char* does) {
        return std::string(does) + " element " + std::to_string(index) + " of shared memory that ";
    };
    if (unordered(a.writer, a.write_epoch))
        stop(element(write ? "writes" : "reads") + "thread " + std::to_string(a.writer) +
             " writes, and no barrier between");
    if (write) {
        if (unordered(a.reader, a.read_epoch))
            stop(element("writes") + "another thread reads, and no barrier between");
        a.writer = thread;
        a.write_epoch = epoch;
        return;
    }
    if (a.writer == -1) stop(element("reads") + "no thread has written");
    const bool also = a.reader != -1 && a.reader != thread && a.read_epoch == epoch;
    a.reader = also ? kMany : thread;
    a.read_epoch = epoch;
}

}  // namespace stoa::cuda::host
