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

std::string place(const Block &block, uint32_t address)
{
    for (const StaticVariable &variable : block.variables)
        if (address >= variable.offset && address < variable.offset + variable.bytes + RED_ZONE)
            return "byte " + std::to_string(address - variable.offset) + " of a __shared__ variable of " +
                   std::to_string(variable.bytes) + " bytes";
    return "byte " + std::to_string(int(address) - int(block.dynamic_offset)) + " of " +
           std::to_string(block.launch->dynamic_shared) + " of dynamic shared memory";
}

[[noreturn]] void refuse(uint8_t state, uint32_t address, uint32_t bytes, Access access, Site site)
{
    std::string text = std::to_string(bytes) + "-byte " + (access == Access::write ? "write" : "read") +
                       " at " + place(*tls.block, address);
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
    Conflict conflict = check_cells(by.block.cells.data(), Span(address, bytes), access, Space::shared, by);
    if (!conflict.what) return;
    std::string where = place(by.block, uint32_t(conflict.index) * GRANULE);
    if (!strncmp(conflict.what, "read of", 7))
        report(Fault::launch_failed, "uninitialised shared memory", site,
               std::string(conflict.what) + ", " + where);
    else
        report(Fault::launch_failed, "race in shared memory", site, describe(conflict, by) + ", at " + where);
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
