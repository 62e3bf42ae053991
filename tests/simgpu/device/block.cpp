// What the threads of a block share: barriers, warp-wide operations, shared memory.
#include "fiber.h"
#include <cstring>
#include <string>
#include <sys/mman.h>

namespace sim {

namespace {

// All that arrived know what each of them knew.
void join_warps(Block &block, const std::vector<uint32_t> &arrived)
{
    Clock clock, proxy;
    uint32_t seen = 0;
    for (uint32_t i : arrived) {
        uint32_t w = (i & ~ARRIVED_ONLY) / 32;
        if (seen >> w & 1) continue;
        seen |= 1u << w;
        clock.join(block.warps[w].clock);
        proxy.join(block.warps[w].proxy);
    }
    for (Warp &warp : block.warps) {
        if (!(seen >> warp.index & 1)) continue;
        warp.clock = clock;
        warp.proxy = proxy;
        warp.tick();
        warp.synced = warp.converged = warp.now();
    }
}

void release(Block &block, Barrier &barrier)
{
    block.fruitless_polls = 0;
    join_warps(block, barrier.arrived);
    for (uint32_t i : barrier.arrived) {
        if (i & ARRIVED_ONLY) continue;
        block.fibers[i].reduced = barrier.accumulated;
        block.fibers[i].waiting = Waiting::no;
        block.make_ready(i);
    }
    barrier.arrived.clear();
}

enum class Stay { wait, pass };

int arrive(uint32_t id, int threads, Stay stay, Reduction reduction, int predicate, Site site)
{
    Block &block = *tls.block;
    Fiber &fiber = *tls.fiber;
    if (id >= block.barriers.size()) stop(Fault::launch_failed, "barrier", site, "a block has 16 barriers");
    Barrier &barrier = block.barriers[id];
    if (threads >= 0 && (threads == 0 || threads % 32))
        stop(Fault::launch_failed, "barrier", site, "the count of threads must be a multiple of 32");
    if (barrier.arrived.empty()) {
        barrier.expected = threads;
        barrier.site = site;
        barrier.accumulated = reduction == Reduction::all;
    } else if (barrier.expected != threads) {
        stop(Fault::launch_failed, "barrier divergence", site,
             "barrier " + std::to_string(id) + " is waited for with different counts of threads");
    } else if (threads < 0 && (barrier.site.line != site.line || strcmp(barrier.site.file, site.file))) {
        stop(Fault::launch_failed, "barrier divergence", site,
             "other threads of the block are at the barrier of line " + std::to_string(barrier.site.line));
    }
    if (threads < 0 && block.live < block.threads)
        stop(Fault::launch_failed, "barrier divergence", site,
             std::to_string(block.threads - block.live) + " threads of the block have ended");
    switch (reduction) {
    case Reduction::popc: barrier.accumulated += predicate != 0; break;
    case Reduction::all: barrier.accumulated &= predicate != 0; break;
    case Reduction::any: barrier.accumulated |= predicate != 0; break;
    }
    barrier.arrived.push_back(fiber.index | (stay == Stay::pass ? ARRIVED_ONLY : 0));
    // A count may be rounded up to whole warps of a block that ends in a part of one.
    uint32_t wanted = threads < 0 ? block.threads : uint32_t(threads);
    if (barrier.arrived.size() >= wanted) {
        release(block, barrier);
        after_release(block);
    } else if (stay == Stay::wait) {
        wait(block, Waiting::barrier, id);
    }
    return fiber.reduced;
}

} // namespace

void block_barrier(uint32_t id, int threads, Site site)
{
    arrive(id, threads, Stay::wait, Reduction::popc, 0, site);
}

void block_barrier_arrive(uint32_t id, int threads, Site site)
{
    arrive(id, threads, Stay::pass, Reduction::popc, 0, site);
}

int block_barrier_red(uint32_t id, int threads, Reduction reduction, int predicate, Site site)
{
    return arrive(id, threads, Stay::wait, reduction, predicate, site);
}

constexpr int SYNC_WARP = -1;

void sync_warp(uint32_t mask, Site site)
{
    warp_collective(mask, SYNC_WARP, nullptr, nullptr, nullptr, site);
}

void warp_collective(uint32_t mask, int operation, void *arg, Collective run, void *context, Site site)
{
    Block &block = *tls.block;
    Fiber &fiber = *tls.fiber;
    Warp &warp = *fiber.warp;
    uint32_t own = 1u << fiber.lane;
    if (!(mask & own))
        stop(Fault::launch_failed, "divergence", site, "the calling lane is not in its own mask");
    if (mask == ~0u) mask = warp.members; // the last warp of a block may be a part of one
    // Lanes that meet under another mask are no concern of these, even if the masks overlap.
    auto waits = [&](const Gathering &g) { return g.arrived && g.mask == mask; };
    auto gathering = std::find_if(warp.gatherings.begin(), warp.gatherings.end(), waits);
    if (gathering == warp.gatherings.end()) {
        auto free = [](const Gathering &g) { return !g.arrived; };
        gathering = std::find_if(warp.gatherings.begin(), warp.gatherings.end(), free);
        if (gathering == warp.gatherings.end()) gathering = warp.gatherings.insert(gathering, Gathering());
        gathering->mask = mask;
        gathering->operation = operation;
        gathering->site = site;
    }
    if (gathering->operation != operation)
        stop(Fault::launch_failed, "divergence", site,
             "other lanes of the warp are at another warp-wide operation, in line " +
                 std::to_string(gathering->site.line));
    gathering->args[fiber.lane] = arg;
    gathering->arrived |= own;
    if (gathering->arrived != mask) {
        if (mask & ~warp.alive)
            stop(Fault::launch_failed, "divergence", site, "a lane named in the mask has ended");
        wait(block, Waiting::warp, 0);
        return;
    }
    block.fruitless_polls = 0;
    if (run) run(gathering->args, mask, context);
    // What lanes read before they met was read; only __syncwarp makes their writes visible to each other.
    if (mask == warp.members) {
        warp.tick();
        warp.converged = warp.now();
        if (operation == SYNC_WARP) warp.synced = warp.now();
    }
    gathering->arrived = 0;
    for (uint32_t others = mask & ~own; others; others &= others - 1) {
        uint32_t i = warp.index * 32 + uint32_t(__builtin_ctz(others));
        block.fibers[i].waiting = Waiting::no;
        block.make_ready(i);
    }
}

void fence(Fence kind)
{
    Warp &warp = *tls.fiber->warp;
    if (kind == Fence::gpu || kind == Fence::sys) {
        tls.fiber->fenced = warp.clock;
        warp.tick();
    }
    if (kind == Fence::proxy_async) {
        warp.proxy.join(warp.clock);
        warp.tick();
    }
}

// ---- shared memory ----

void Block::prepare_shared_memory()
{
    uint32_t dynamic = launch->dynamic_shared;
    dynamic_offset = (SHARED_BASE + STATIC_BYTES + RED_ZONE + 1023) / 1024 * 1024;
    size_t needed = (dynamic_offset + dynamic + RED_ZONE + PAGE - 1) / PAGE * PAGE;
    if (arena_bytes < needed) {
        if (arena) munmap(arena, arena_bytes);
        void *mapped = mmap(nullptr, needed, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) abort();
        arena = static_cast<unsigned char *>(mapped);
        arena_bytes = needed;
        cells.resize(needed / GRANULE);
        state.assign(needed / GRANULE, OUTSIDE);
    }
    // Only what the block before used needs to be taken back.
    memset(state.data() + SHARED_BASE / GRANULE, OUTSIDE,
           (static_end > SHARED_BASE ? static_end - SHARED_BASE : 0) / GRANULE);
    memset(state.data() + dynamic_offset / GRANULE, OUTSIDE, state.size() - dynamic_offset / GRANULE);
    memset(state.data() + dynamic_offset / GRANULE, 0, (dynamic + 1) / GRANULE);
    memset(arena + dynamic_offset, POISON, dynamic);
    variables.clear();
    static_end = SHARED_BASE;
}

void *static_smem(const void *tag, size_t bytes, size_t alignment)
{
    Block &block = *tls.block;
    for (const StaticVariable &variable : block.variables)
        if (variable.tag == tag) return block.arena + variable.offset;
    alignment = std::max<size_t>(alignment, 16);
    uint32_t offset = uint32_t((block.static_end + RED_ZONE + alignment - 1) / alignment * alignment);
    if (offset + bytes + RED_ZONE > SHARED_BASE + STATIC_BYTES)
        stop(Fault::launch_failed, "shared memory", {}, "static variables take more than 48 KiB");
    uint32_t padded = uint32_t(bytes + 1) / GRANULE * GRANULE;
    memset(block.arena + offset, POISON, padded);
    memset(block.state.data() + offset / GRANULE, 0, padded / GRANULE);
    block.static_end = offset + padded;
    block.variables.push_back({tag, offset, uint32_t(bytes)});
    return block.arena + offset;
}

unsigned char *dyn_smem() { return tls.block->arena + tls.block->dynamic_offset; }

uint32_t smem_offset(const void *generic)
{
    const Block &block = *tls.block;
    auto *address = static_cast<const unsigned char *>(generic);
    if (address < block.arena || address > block.arena + block.arena_bytes)
        stop(Fault::illegal_address, "address", {},
             "a generic address that is not shared memory is used as one");
    return uint32_t(address - block.arena);
}

} // namespace sim
