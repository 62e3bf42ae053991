// cp.async: 4 to 16 bytes a thread, from device to shared memory.
#include "fiber.h"
#include <cstring>

namespace sim {

namespace {

void set_flight(Block &block, uint32_t address, uint32_t bytes, bool flying)
{
    for (uint32_t i = address / GRANULE; i < (address + bytes) / GRANULE; ++i)
        block.state[i] = flying ? IN_FLIGHT : 0;
}

void transfer(Block &block, const Copy &copy)
{
    unsigned char *to = block.arena + copy.dst;
    if (copy.src_bytes) memcpy(to, copy.src, copy.src_bytes);
    memset(to + copy.src_bytes, 0, copy.bytes - copy.src_bytes);
}

// The copy is there for the thread that waited for it.
void land(Block &block, const Copy &copy)
{
    set_flight(block, copy.dst, copy.bytes, false);
    transfer(block, copy);
    if (settings.checks)
        check_shared_range(copy.dst, copy.bytes, Access::write, block.accessor(Kind::plain), copy.site);
}

} // namespace

void cp_async(uint32_t dst, const void *src, uint32_t bytes, uint32_t src_bytes, Site site)
{
    Block &block = *tls.block;
    Fiber &fiber = *tls.fiber;
    if (dst % bytes || uintptr_t(src) % bytes)
        stop(Fault::misaligned_address, "misaligned address", site,
             "cp.async needs both addresses aligned to its size");
    if (src_bytes > bytes)
        stop(Fault::launch_failed, "cp.async", site, "more source bytes than bytes to write");
    shared_range(dst, bytes, Access::write, site);
    if (src_bytes) check_global_range(src, src_bytes, Access::read, block.accessor(Kind::plain), site);
    Copy copy{dst, src, bytes, src_bytes, fiber.copies.group, site};
    if (settings.async == Async::eager) transfer(block, copy);
    set_flight(block, dst, bytes, true);
    fiber.copies.copies.push_back(copy);
}

void cp_async_commit() { ++tls.fiber->copies.group; }

void cp_async_wait(int pending)
{
    Block &block = *tls.block;
    CopyQueue &queue = tls.fiber->copies;
    size_t done = 0;
    while (done < queue.copies.size() && queue.copies[done].group < queue.group - pending)
        land(block, queue.copies[done++]);
    queue.copies.erase(queue.copies.begin(), queue.copies.begin() + long(done));
}

// ---- arrivals at an mbarrier once the thread's copies so far are done ----

void cp_async_mbar_arrive(uint32_t bar, bool noinc, Site site)
{
    // The copies land now: a later moment could be seen only by a wait that names another barrier.
    Block &block = *tls.block;
    CopyQueue &queue = tls.fiber->copies;
    Warp &warp = *tls.fiber->warp;
    warp.tick();
    for (const Copy &copy : queue.copies) {
        set_flight(block, copy.dst, copy.bytes, false);
        transfer(block, copy);
        stamp_copy(block.cells.data() + copy.dst / GRANULE, copy.bytes / GRANULE, block.run, warp.index,
                   warp.now());
    }
    queue.copies.clear();
    expect_arrival(bar, noinc ? 0 : 1, site);
    mbar_arrive(bar, 1, 0, false, site);
}

void check_nothing_in_flight(Fiber &fiber)
{
    auto left = [](Site site, const char *what) {
        stop(Fault::launch_failed, "asynchronous operation", site,
             std::string("the thread ends without waiting for ") + what);
    };
    if (!fiber.copies.copies.empty()) left(fiber.copies.copies.front().site, "its cp.async");
    if (!fiber.stores.stores.empty())
        left(fiber.stores.stores.front().site, "its bulk store to read shared memory");
    for (const Warpgroup::Product &product :
         tls.block->warpgroups[fiber.index / Warpgroup::THREADS].in_flight)
        left(product.site, "its warpgroup's wgmma");
}

} // namespace sim
