// Device memory: every allocation ends at a guard page, starts poisoned, and its addresses are never used
// again.
#pragma once
#include "race.h"
#include <atomic>
#include <string>

namespace sim {

constexpr size_t PAGE = 4096;
constexpr unsigned char POISON = 0xff; // NaN in every floating-point format, -1 as an integer

struct Allocation {
    unsigned char *start;
    size_t bytes, mapped;
    bool live;
    Cell *cells; // made at the first access
};

void *device_allocate(size_t bytes);
bool device_free(void *start);
bool in_device(const void *address);
// The allocation whose pages hold `address`, live or not; null between allocations.
Allocation *allocation_of(const void *address);
// Whether [address, address + bytes) lies inside one live allocation.
bool device_range_valid(const void *address, size_t bytes);
// Whether the address is a variable of a translated module: those lie in this library.
bool in_library(const void *address);
// How `address` lies to the allocations around it.
std::string describe_address(const void *address, size_t bytes, Access access);

// The device's side of an asynchronous copy of any size: bounds, races.
void check_global_range(const void *address, size_t bytes, Access access, const Accessor &by, Site site);

// Room for the calling thread to answer a fault on; and the handler itself.
void catch_guard_pages();

// A lock per 256 bytes of device memory (by a hash), taken while several blocks run at once.
class LineLock {
  public:
    LineLock(const void *address, bool several_cores);
    ~LineLock();
    LineLock(const LineLock &) = delete;

  private:
    std::atomic_flag *flag = nullptr;
};

} // namespace sim
