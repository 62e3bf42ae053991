// Accesses to shared memory, and generic ones.
#include "fiber.h"
#include <cstring>

namespace sim {

namespace {

// The state of a granule of the access that forbids it, or 0.
uint8_t obstacle(const Block &block, uint32_t address, uint32_t bytes, Access access)
{
    uint8_t seen = 0;
    for (uint32_t i = address / GRANULE; i <= (address + bytes - 1) / GRANULE; ++i) seen |= block.state[i];
    if (access == Access::read) seen &= uint8_t(~READING);
    return seen;
}

[[noreturn]] void refuse(uint8_t state, uint32_t address, uint32_t bytes, Access access, Site site)
{
    std::string text = std::to_string(bytes) + "-byte " + (access == Access::write ? "write" : "read") +
                       " at shared offset " + std::to_string(int(address) - int(tls.block->dynamic_offset)) +
                       " of the dynamic part";
    if (state & OUTSIDE) stop(Fault::illegal_address, "access outside shared variables", site, text);
    if (state & IN_FLIGHT)
        stop(Fault::launch_failed, "race in shared memory", site,
             text + ", into which a copy is still under way");
    stop(Fault::launch_failed, "race in shared memory", site,
         text + ", which an asynchronous operation still reads");
}

unsigned char *checked(uint32_t address, uint32_t bytes, Access access, Kind kind, Site site)
{
    Block &block = *tls.block;
    if (address % bytes)
        stop(Fault::misaligned_address, "misaligned address", site,
             std::to_string(bytes) + "-byte access at shared address " + std::to_string(address));
    if (uint64_t(address) + bytes > block.arena_bytes) refuse(OUTSIDE, address, bytes, access, site);
    if (uint8_t state = obstacle(block, address, bytes, access)) refuse(state, address, bytes, access, site);
    if (settings.checks) check_shared_range(address, bytes, access, block.accessor(kind), site);
    return block.arena + address;
}

} // namespace

void check_shared_range(uint32_t address, uint32_t bytes, Access access, const Accessor &by, Site site)
{
    uint32_t end = address + bytes, cell = address / GRANULE, cells = (end + GRANULE - 1) / GRANULE - cell;
    uint8_t first = uint8_t(address % GRANULE ? 2
                            : bytes == 1      ? 1
                                              : 3),
            last = uint8_t(end % GRANULE ? 1 : 3);
    Conflict conflict =
        check_cells(by.block.cells.data() + cell, cells, first, last, access, Space::shared, by);
    if (!conflict.what) return;
    std::string place =
        "at shared offset " +
        std::to_string(int((cell + conflict.index) * GRANULE) - int(by.block.dynamic_offset)) +
        " of the dynamic part";
    if (!strncmp(conflict.what, "read of", 7))
        report(Fault::launch_failed, "uninitialised shared memory", site,
               std::string(conflict.what) + ", " + place);
    else
        report(Fault::launch_failed, "race in shared memory", site, describe(conflict, by) + ", " + place);
}

unsigned char *shared_access(uint32_t address, uint32_t bytes, Access access, Site site)
{
    return checked(address, bytes, access, Kind::plain, site);
}

unsigned char *shared_atomic_access(uint32_t address, uint32_t bytes, Site site)
{
    return checked(address, bytes, Access::write, Kind::atomic, site);
}

unsigned char *shared_range(uint32_t address, uint32_t bytes, Access access, Site site)
{
    Block &block = *tls.block;
    if (uint64_t(address) + bytes > block.arena_bytes) refuse(OUTSIDE, address, bytes, access, site);
    if (uint8_t state = obstacle(block, address, bytes, access)) refuse(state, address, bytes, access, site);
    if (settings.checks) check_shared_range(address, bytes, access, block.accessor(Kind::observe), site);
    return block.arena + address;
}

unsigned char *generic_access(uint64_t address, uint32_t bytes, Access access, Site site)
{
    auto *at = reinterpret_cast<unsigned char *>(address);
    if (in_device(at)) return global_access(address, bytes, access, site);
    Block &block = *tls.block;
    if (at >= block.arena && at < block.arena + block.arena_bytes)
        return shared_access(uint32_t(at - block.arena), bytes, access, site);
    if (address % bytes)
        stop(Fault::misaligned_address, "misaligned address", site,
             std::to_string(bytes) + "-byte access at generic address " + std::to_string(address));
    const unsigned char *stack = tls.fiber->stack;
    if (at >= stack && at + bytes <= stack + STACK_BYTES) return at;
    const Kernel &kernel = *block.launch->kernel;
    for (int i = 0; access == Access::read && i < kernel.param_count; ++i) {
        auto *param = static_cast<unsigned char *>(block.launch->params[i]);
        if (at >= param && at + bytes <= param + kernel.param_sizes[i]) return at;
    }
    if (in_library(at)) return at;
    stop(Fault::illegal_address, "illegal address", site,
         describe_address(at, bytes, access) + ": a host pointer?");
}

} // namespace sim
