// A grid on all cores of the machine: each takes the next block until none is left.
#include "fiber.h"
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <thread>

namespace sim {

namespace {

Kernel *kernels;
uint32_t next_run = 1;

// The blocks of one launch, in the order of the schedule.
class Grid {
  public:
    explicit Grid(const Launch &launch)
        : launch(launch), blocks(launch.grid.x * launch.grid.y * launch.grid.z)
    {
        if (settings.schedule != Schedule::random) return;
        // A step without a common divisor visits every block once.
        offset = uint32_t(settings.seed * 0x9E3779B9u) % blocks;
        step = uint32_t(settings.seed * 0x85EBCA6Bu) % blocks | 1;
        while (std::gcd(step, blocks) != 1) step += 2;
    }

    void work()
    {
        // Behind a pointer: a library that is loaded late has little room for thread-local variables.
        static thread_local std::unique_ptr<Block> kept = std::make_unique<Block>();
        Block &block = *kept;
        catch_guard_pages();
        for (uint32_t i; (i = next.fetch_add(1)) < blocks && !failed;)
            if (!run_block(block, launch, order(i))) failed = true;
    }

  private:
    uint32_t order(uint32_t i) const
    {
        switch (settings.schedule) {
        case Schedule::reverse:
        case Schedule::behind: return blocks - 1 - i;
        case Schedule::random: return uint32_t((offset + uint64_t(step) * i) % blocks);
        default: return i;
        }
    }

    const Launch &launch;
    const uint32_t blocks;
    uint32_t offset = 0, step = 1;
    std::atomic<uint32_t> next{0};
    std::atomic<bool> failed{false};
};

// Threads that help the launching one; they live as long as the process.
class Helpers {
  public:
    Helpers()
    {
        for (uint32_t i = 1; i < std::thread::hardware_concurrency(); ++i)
            std::thread([this] { serve(); }).detach();
    }

    void run(Grid &grid)
    {
        {
            std::lock_guard lock(mutex);
            current = &grid;
            ++sequence;
        }
        wake.notify_all();
        grid.work();
        std::unique_lock lock(mutex);
        current = nullptr;
        idle.wait(lock, [this] { return busy == 0; });
    }

  private:
    [[noreturn]] void serve()
    {
        std::unique_lock lock(mutex);
        for (uint64_t served = 0;;) {
            wake.wait(lock, [&] { return current && sequence != served; });
            served = sequence;
            Grid *grid = current;
            ++busy;
            lock.unlock();
            grid->work();
            lock.lock();
            if (--busy == 0) idle.notify_all();
        }
    }

    std::mutex mutex;
    std::condition_variable wake, idle;
    Grid *current = nullptr;
    uint64_t sequence = 0;
    int busy = 0;
};

} // namespace

void register_kernel(Kernel *kernel)
{
    kernel->next = kernels;
    kernels = kernel;
}

const Kernel *first_kernel() { return kernels; }

Fault run_grid(Launch launch)
{
    // Never taken down: a detached thread may still wait on it when the process ends.
    static Helpers &helpers = *new Helpers;
    uint32_t blocks = launch.grid.x * launch.grid.y * launch.grid.z;
    launch.first_run = next_run;
    launch.several_cores = blocks > 1 && std::thread::hardware_concurrency() > 1;
    next_run += blocks;
    forget_published();
    Grid grid(launch);
    if (launch.several_cores)
        helpers.run(grid);
    else
        grid.work();
    return first_fault();
}

} // namespace sim
