// The context switch, the scheduler, and a block's life.
#include "fiber.h"
#include <bit>
#include <cstdio>
#include <cstring>
#include <string>
#include <sys/mman.h>

#if !defined(__x86_64__)
#error "simgpu's context switch is written for x86-64"
#endif

// void switch_stack(void **save, void *to): the callee-saved registers go onto the old stack and come off the
// new one.
extern "C" void simgpu_switch_stack(void **save, void *to);
asm(R"(.text
.globl simgpu_switch_stack
.hidden simgpu_switch_stack
.type simgpu_switch_stack,@function
simgpu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simgpu_switch_stack,.-simgpu_switch_stack
)");

namespace sim {

thread_local ThreadLocal tls;

namespace {

constexpr int MAX_FRUITLESS_POLLS = 64;
constexpr int NONE = -1;

// A stack whose first switch enters `entry`, aligned as after a call.
void *first_frame(unsigned char *top, void (*entry)())
{
    auto *slot = reinterpret_cast<void **>(top - 64);
    *slot = reinterpret_cast<void *>(entry);
    for (int saved = 1; saved <= 6; ++saved) slot[-saved] = nullptr;
    return slot - 6;
}

int lowest_ready(const Block &block, uint32_t from)
{
    uint32_t words = (block.threads + 63) / 64;
    if (from < block.threads) {
        uint64_t word = block.ready[from / 64] & ~0ull << from % 64;
        for (uint32_t i = from / 64;;) {
            if (word) return int(i * 64) + std::countr_zero(word);
            if (++i == words) break;
            word = block.ready[i];
        }
    }
    for (uint32_t i = 0; i < words; ++i)
        if (block.ready[i]) return int(i * 64) + std::countr_zero(block.ready[i]);
    return NONE;
}

int highest_ready(const Block &block, int from)
{
    for (int i = from; i >= 0; --i)
        if (block.ready[i / 64] >> i % 64 & 1) return i;
    for (int i = int(block.threads + 63) / 64 - 1; i >= 0; --i)
        if (block.ready[i]) return i * 64 + 63 - std::countl_zero(block.ready[i]);
    return NONE;
}

int next_ready(Block &block, uint32_t current)
{
    switch (settings.schedule) {
    case Schedule::forward: return lowest_ready(block, current + 1);
    case Schedule::reverse: return highest_ready(block, int(current) - 1);
    case Schedule::random: return lowest_ready(block, uint32_t(block.random() % block.threads));
    case Schedule::ahead: return lowest_ready(block, 0);
    case Schedule::behind: return highest_ready(block, int(block.threads) - 1);
    }
    __builtin_unreachable();
}

void enter(Fiber &fiber)
{
    tls.fiber = &fiber;
    tls.tid = fiber.tid;
    tls.lane = fiber.lane;
}

void switch_to(Fiber &to)
{
    Fiber &from = *tls.fiber;
    if (&from == &to) return;
    enter(to);
    simgpu_switch_stack(&from.stack_pointer, to.stack_pointer);
}

std::string lanes(uint32_t mask)
{
    char text[16];
    snprintf(text, sizeof text, "0x%08x", mask);
    return text;
}

[[noreturn]] void deadlock(Block &block)
{
    std::string text;
    uint32_t at_barrier[16]{}, at_mbarrier = 0;
    for (uint32_t i = 0; i < block.threads; ++i) {
        const Fiber &fiber = block.fibers[i];
        if (fiber.done) continue;
        if (fiber.waiting == Waiting::barrier) ++at_barrier[fiber.waits_for];
        if (fiber.waiting == Waiting::mbarrier) ++at_mbarrier;
    }
    Site site{};
    for (uint32_t id = 0; id < 16; ++id) {
        if (!at_barrier[id]) continue;
        site = block.barriers[id].site;
        int expected = block.barriers[id].expected;
        text += std::to_string(at_barrier[id]) + " threads wait at barrier " + std::to_string(id) + " for " +
                std::to_string(expected < 0 ? int(block.threads) : expected) + ", ";
    }
    for (const Warp &warp : block.warps)
        for (const Gathering &gathering : warp.gatherings)
            if (gathering.arrived) {
                if (!site.file) site = gathering.site;
                text += "lanes " + lanes(gathering.arrived) + " of warp " + std::to_string(warp.index) +
                        " wait for lanes " + lanes(gathering.mask & ~gathering.arrived) + ", ";
            }
    for (const Warpgroup &group : block.warpgroups)
        if (group.arrived) text += std::to_string(group.arrived) + " threads of a warpgroup are at wgmma, ";
    if (at_mbarrier) text += std::to_string(at_mbarrier) + " at an mbarrier, ";
    stop(Fault::launch_failed, "deadlock", site,
         text + std::to_string(block.threads - block.live) + " have ended");
}

// Threads that asked an mbarrier and could wait no longer are told "not yet".
bool wake_pollers(Block &block)
{
    if (++block.fruitless_polls > MAX_FRUITLESS_POLLS) return false;
    bool any = false;
    for (uint32_t i = 0; i < block.threads; ++i) {
        Fiber &fiber = block.fibers[i];
        if (fiber.done || fiber.waiting != Waiting::mbarrier) continue;
        fiber.waiting = Waiting::no;
        block.make_ready(i);
        any = true;
    }
    return any;
}

void yield(Block &block)
{
    uint32_t current = tls.fiber->index;
    int next = next_ready(block, current);
    while (next == NONE && (land_any_load(block) || wake_pollers(block))) next = next_ready(block, current);
    if (next == NONE) deadlock(block);
    switch_to(block.fibers[size_t(next)]);
}

void fiber_main()
{
    Block &block = *tls.block;
    block.launch->kernel->run(block.launch->params);
    Fiber &fiber = *tls.fiber;
    check_nothing_in_flight(fiber);
    fiber.done = true;
    block.unready(fiber.index);
    block.fruitless_polls = 0;
    --block.live;
    fiber.warp->alive &= ~(1u << fiber.lane);
    for (const Gathering &gathering : fiber.warp->gatherings)
        if (gathering.arrived && gathering.mask >> fiber.lane & 1)
            stop(Fault::launch_failed, "divergence", gathering.site,
                 "a thread ends while its warp waits for it at a warp-wide operation");
    for (const Barrier &barrier : block.barriers)
        if (!barrier.arrived.empty() && barrier.expected < 0)
            stop(Fault::launch_failed, "barrier divergence", barrier.site,
                 "a thread ends while others of its block wait for it at the barrier");
    if (block.live == 0) leave_block(block);
    yield(block);
    __builtin_unreachable();
}

void make_stacks(Block &block, size_t count)
{
    if (block.stack_count >= count) return;
    if (block.stacks) munmap(block.stacks, block.stack_count * STACK_BYTES);
    block.stack_count = std::max<size_t>(count, 256);
    void *mapped = mmap(nullptr, block.stack_count * STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) abort();
    block.stacks = static_cast<unsigned char *>(mapped);
    // A guard page below every stack.
    for (size_t i = 0; i < block.stack_count; ++i) mprotect(block.stacks + i * STACK_BYTES, PAGE, PROT_NONE);
}

Index unflatten(uint32_t i, Index size) { return {i % size.x, i / size.x % size.y, i / size.x / size.y}; }

} // namespace

void Warp::begin(uint32_t number, uint32_t lanes)
{
    index = number;
    alive = members = lanes == 32 ? ~0u : (1u << lanes) - 1;
    for (Gathering &gathering : gatherings) gathering.arrived = 0;
    clock = proxy = {};
    clock.time[index] = 1;
    synced = converged = 1;
    acquired = 0;
}

Block::~Block()
{
    if (stacks) munmap(stacks, stack_count * STACK_BYTES);
    if (arena) munmap(arena, arena_bytes);
}

uint64_t Block::random()
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

Accessor Block::accessor(Kind kind)
{
    const Fiber &fiber = *tls.fiber;
    return {*this, *fiber.warp, fiber.lane, kind};
}

void leave_block(Block &block)
{
    void *left;
    simgpu_switch_stack(&left, block.main_stack_pointer);
    __builtin_unreachable();
}

void wait(Block &block, Waiting reason, uint32_t waits_for)
{
    Fiber &fiber = *tls.fiber;
    fiber.waiting = reason;
    fiber.waits_for = waits_for;
    block.unready(fiber.index);
    yield(block);
}

void after_release(Block &block)
{
    if (settings.schedule == Schedule::forward || settings.schedule == Schedule::reverse) return;
    switch_to(block.fibers[size_t(next_ready(block, tls.fiber->index))]);
}

bool run_block(Block &block, const Launch &launch, uint32_t number)
{
    block.launch = &launch;
    block.number = number;
    block.run = launch.first_run + number;
    block.threads = block.live = launch.block.x * launch.block.y * launch.block.z;
    block.aborted = false;
    block.fruitless_polls = 0;
    block.random_state = settings.seed * 0x9E3779B97F4A7C15ull + number + 1;
    uint32_t warps = (block.threads + 31) / 32;
    make_stacks(block, block.threads);
    block.prepare_shared_memory();
    block.readers.clear();
    block.seen.clear();
    for (Barrier &barrier : block.barriers) barrier.arrived.clear();
    block.mbarriers.clear();
    block.loads.clear();
    block.warpgroups.assign((warps + 3) / 4, {});
    block.warps.resize(warps);
    for (uint32_t i = 0; i < warps; ++i) block.warps[i].begin(i, std::min(block.threads - i * 32, 32u));
    if (block.fibers.size() < block.threads) block.fibers.resize(block.threads);
    memset(block.ready, 0, sizeof block.ready);
    for (uint32_t i = 0; i < block.threads; ++i) {
        Fiber &fiber = block.fibers[i];
        fiber.index = i;
        fiber.lane = i % 32;
        fiber.warp = &block.warps[i / 32];
        fiber.tid = unflatten(i, launch.block);
        fiber.done = false;
        fiber.waiting = Waiting::no;
        fiber.copies.copies.clear();
        fiber.copies.group = 0;
        fiber.stores.stores.clear();
        fiber.stores.group = 0;
        fiber.wgmma_groups = 0;
        fiber.fenced.reset();
        fiber.stack = block.stacks + i * STACK_BYTES;
        fiber.stack_pointer = first_frame(fiber.stack + STACK_BYTES, fiber_main);
        block.make_ready(i);
    }
    tls.bid = unflatten(number, launch.grid);
    tls.bdim = launch.block;
    tls.gdim = launch.grid;
    tls.smem = block.arena;
    tls.block = &block;
    bool from_above = settings.schedule == Schedule::reverse || settings.schedule == Schedule::behind;
    Fiber &first = block.fibers[from_above ? block.threads - 1 : 0];
    enter(first);
    // A fault at a guard page comes back here from its signal handler; everything else through leave_block.
    if (sigsetjmp(block.escape, 0) == 0) simgpu_switch_stack(&block.main_stack_pointer, first.stack_pointer);
    tls.block = nullptr;
    return !block.aborted;
}

} // namespace sim
