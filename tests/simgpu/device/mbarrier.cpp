// mbarriers: phases that end when all have arrived and all expected bytes have landed.
#include "fiber.h"

namespace sim {

Mbarrier &find_mbarrier(uint32_t address, Site site)
{
    Block &block = *tls.block;
    for (Mbarrier &m : block.mbarriers)
        if (m.address == address) {
            // The initialisation itself must be visible to whoever uses the barrier.
            shared_range(address, 8, Access::read, site);
            return m;
        }
    stop(Fault::launch_failed, "mbarrier", site,
         "shared address " + std::to_string(address) + " is used as an mbarrier before mbarrier.init");
}

void end_phase_if_complete(Mbarrier &m)
{
    Block &block = *tls.block;
    if (m.pending || m.bytes) return;
    ++m.phase;
    m.pending = m.count;
    block.fruitless_polls = 0;
    for (uint32_t i = 0; i < block.threads; ++i) {
        Fiber &fiber = block.fibers[i];
        if (fiber.done || fiber.waiting != Waiting::mbarrier || fiber.waits_for != m.address) continue;
        fiber.waiting = Waiting::no;
        block.make_ready(i);
    }
}

void mbar_init(uint32_t address, uint32_t count, Site site)
{
    Block &block = *tls.block;
    shared_access(address, 8, Access::write, site);
    mbar_inval(address, site);
    block.mbarriers.push_back({address, count, count, 0, 0, {}, {}});
}

void mbar_inval(uint32_t address, Site)
{
    auto &all = tls.block->mbarriers;
    std::erase_if(all, [&](const Mbarrier &m) { return m.address == address; });
}

void expect_arrival(uint32_t bar, uint32_t count, Site site) { find_mbarrier(bar, site).pending += count; }

uint64_t mbar_arrive(uint32_t bar, uint32_t count, uint32_t expect_bytes, bool drop, Site site)
{
    Mbarrier &m = find_mbarrier(bar, site);
    Warp &warp = *tls.fiber->warp;
    if (m.pending < count)
        stop(Fault::launch_failed, "mbarrier", site, "more arrivals than the barrier's count in one phase");
    uint64_t state = m.phase;
    m.clock.join(warp.clock);
    m.proxy.join(warp.proxy);
    warp.tick();
    m.bytes += expect_bytes;
    m.pending -= count;
    if (drop) m.count -= count;
    end_phase_if_complete(m);
    return state;
}

void mbar_expect_tx(uint32_t bar, uint32_t bytes, Site site) { find_mbarrier(bar, site).bytes += bytes; }

namespace {

bool completed(uint32_t bar, uint64_t phase, Site site)
{
    Mbarrier &m = find_mbarrier(bar, site);
    if (m.phase <= phase) return false;
    Warp &warp = *tls.fiber->warp;
    warp.clock.join(m.clock);
    warp.proxy.join(m.proxy);
    // Of its own warp the thread has waited for what the clock of the barrier says.
    warp.acquired = std::max(warp.acquired, m.clock.time[warp.index]);
    return true;
}

bool test(uint32_t bar, uint64_t phase, Site site)
{
    if (completed(bar, phase, site)) return true;
    // Copies land no sooner than somebody asks for them.
    while (land_load_of(*tls.block, bar))
        if (completed(bar, phase, site)) return true;
    wait(*tls.block, Waiting::mbarrier, bar);
    return completed(bar, phase, site);
}

// The latest phase of this parity that a waiting thread can mean: the present one, or the one before.
uint64_t phase_of(uint32_t bar, uint32_t parity, Site site)
{
    uint64_t phase = find_mbarrier(bar, site).phase;
    return phase % 2 == parity % 2 ? phase : phase - 1;
}

} // namespace

bool mbar_test_parity(uint32_t bar, uint32_t parity, Site site) { return mbar_try_parity(bar, parity, site); }
bool mbar_test_state(uint32_t bar, uint64_t state, Site site) { return test(bar, state, site); }
bool mbar_try_state(uint32_t bar, uint64_t state, Site site) { return test(bar, state, site); }

bool mbar_try_parity(uint32_t bar, uint32_t parity, Site site)
{
    uint64_t phase = phase_of(bar, parity, site);
    // Before any phase has ended, the one "before" counts as complete.
    if (phase == ~0ull) return true;
    return test(bar, phase, site);
}

} // namespace sim
