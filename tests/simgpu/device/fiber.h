// Threads as fibers: a block's threads take turns on one core, and change only where they wait.
#pragma once
#include "async.h"
#include "memory.h"
#include "settings.h"
#include <csetjmp>
#include <memory>
#include <optional>

namespace sim {

enum class Waiting : uint8_t { no, barrier, warp, mbarrier };

struct Warp;

struct Fiber {
    void *stack_pointer = nullptr;
    unsigned char *stack = nullptr;
    Index tid{};
    uint32_t index = 0, lane = 0;
    Warp *warp = nullptr;
    bool done = false;
    Waiting waiting = Waiting::no;
    uint32_t waits_for = 0; // the barrier's number or the mbarrier's address
    int reduced = 0;
    CopyQueue copies;  // cp.async
    StoreQueue stores; // bulk stores
    int wgmma_groups = 0;
    std::optional<Clock> fenced; // what this thread's last gpu-wide fence covers
};

// Lanes that wait for the rest of their mask.
struct Gathering {
    uint32_t mask = 0, arrived = 0;
    int operation = 0;
    Site site{};
    void *args[32];
};

struct Warp {
    uint32_t index = 0;
    uint32_t alive = 0, members = 0;
    std::vector<Gathering> gatherings; // one for every mask that lanes wait for, the rest free
    Clock clock;
    Clock proxy;            // what of it the asynchronous proxy sees
    uint32_t synced = 0;    // before this time, lanes see each other's writes
    uint32_t converged = 0; // before this time, lanes have done their reads
    uint32_t acquired = 0;  // up to this time, copies and arrivals of this warp itself were waited for

    uint32_t now() const { return clock.time[index]; }
    void tick() { ++clock.time[index]; }
    void begin(uint32_t index, uint32_t lanes);
};

struct Barrier {
    int expected = 0;
    int accumulated = 0;
    Site site{};
    std::vector<uint32_t> arrived; // fibers; those that do not wait have `ARRIVED_ONLY` set
};
constexpr uint32_t ARRIVED_ONLY = 1u << 31;

struct StaticVariable {
    const void *tag;
    uint32_t offset, bytes;
};

struct Launch {
    const Kernel *kernel;
    Index grid, block;
    uint32_t dynamic_shared;
    void **params;
    bool several_cores;
    uint32_t first_run; // the run of block 0
};

// One block at work on one core; kept and used again for the next.
struct Block {
    ~Block();

    const Launch *launch = nullptr;
    uint32_t number = 0, run = 0;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    uint32_t threads = 0, live = 0;
    uint64_t ready[16]{};
    uint64_t random_state = 1;
    void *main_stack_pointer = nullptr;
    bool aborted = false;
    int fruitless_polls = 0;
    sigjmp_buf escape;

    unsigned char *stacks = nullptr;
    size_t stack_count = 0;

    // Shared memory: the window, and for every granule a state (0 is: inside a variable, nothing in flight)
    // and a cell.
    unsigned char *arena = nullptr;
    size_t arena_bytes = 0;
    uint32_t dynamic_offset = 0, static_end = 0;
    std::vector<StaticVariable> variables;
    std::vector<uint8_t> state;
    std::vector<Cell> cells;
    ReaderSets readers;

    std::array<Barrier, 16> barriers;
    std::vector<Mbarrier> mbarriers;
    std::vector<BulkLoad> loads;
    std::vector<Warpgroup> warpgroups;
    Published seen;

    // The running thread.
    Accessor accessor(Kind kind);
    uint64_t random();
    void prepare_shared_memory();
    void make_ready(uint32_t fiber) { ready[fiber / 64] |= 1ull << fiber % 64; }
    void unready(uint32_t fiber) { ready[fiber / 64] &= ~(1ull << fiber % 64); }
};

// Granule states of shared memory.
constexpr uint8_t OUTSIDE = 0x80, IN_FLIGHT = 0x40, READING = 0x3f;

constexpr size_t STACK_BYTES = 64 * 1024;    // of a thread, its local memory included
constexpr uint32_t SHARED_BASE = 1024;       // the driver keeps the first KiB of the window, as on sm_90
constexpr uint32_t STATIC_BYTES = 64 * 1024; // room for static variables and their red zones
constexpr uint32_t RED_ZONE = 64;

// Shared memory from `address` on, checked (bounds, nothing in flight, races) but without a trace of the
// access; for asynchronous operations.
unsigned char *shared_range(uint32_t address, uint32_t bytes, Access access, Site site);
void check_shared_range(uint32_t address, uint32_t bytes, Access access, const Accessor &by, Site site);

// Gives the core to another thread until somebody makes this one ready again.
void wait(Block &block, Waiting reason, uint32_t waits_for);
// Gives others the chance to run first, under the schedules that want it.
void after_release(Block &block);
// Leaves the block for good, from any thread of it.
[[noreturn]] void leave_block(Block &block);
// Runs one block; false if it was ended by an error.
bool run_block(Block &block, const Launch &launch, uint32_t number);
// Runs the grid on all cores.
Fault run_grid(Launch launch);

const Kernel *first_kernel();

} // namespace sim
