#include "fiber.h"
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <sched.h>
#include <sys/mman.h>

extern "C" const char __ehdr_start __attribute__((visibility("hidden")));
extern "C" const char _end __attribute__((visibility("hidden")));

namespace sim {

namespace {

constexpr size_t RESERVED = size_t(1) << 38; // addresses of all allocations ever made

unsigned char *reserved, *unused;
std::deque<Allocation> allocations; // its elements stay where they are
uint32_t *page_owner;               // allocation + 1, per page
std::mutex memory_mutex;

void *map(size_t bytes, int protection)
{
    void *mapped = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return mapped == MAP_FAILED ? nullptr : mapped;
}

unsigned char *first_page(const Allocation &a) { return a.start - size_t(a.start - reserved) % PAGE; }

Cell *cells_of(Allocation &a)
{
    Cell *cells = __atomic_load_n(&a.cells, __ATOMIC_ACQUIRE);
    if (cells) return cells;
    std::lock_guard lock(memory_mutex);
    if (!a.cells) {
        void *mapped = map((a.bytes / GRANULE + 1) * sizeof(Cell), PROT_READ | PROT_WRITE);
        if (!mapped) abort();
        __atomic_store_n(&a.cells, static_cast<Cell *>(mapped), __ATOMIC_RELEASE);
    }
    return a.cells;
}

struct sigaction previous_handler;

void on_fault(int signal, siginfo_t *info, void *context)
{
    Block *block = tls.block;
    if (block) {
        auto *address = static_cast<unsigned char *>(info->si_addr);
        if (address >= block->stacks && address < block->stacks + block->stack_count * STACK_BYTES)
            report(Fault::launch_failed, "local memory", {},
                   "a thread's local memory is too large for its stack");
        else
            report(Fault::illegal_address, "illegal address", {}, describe_address(address, 1, Access::read));
        block->aborted = true;
        siglongjmp(block->escape, 1);
    }
    if (previous_handler.sa_flags & SA_SIGINFO) {
        previous_handler.sa_sigaction(signal, info, context);
    } else {
        sigaction(SIGSEGV, &previous_handler, nullptr);
        raise(signal);
    }
}

} // namespace

void catch_guard_pages()
{
    static thread_local bool done = false;
    if (done) return;
    done = true;
    stack_t old{};
    if (!sigaltstack(nullptr, &old) && old.ss_flags & SS_DISABLE) {
        stack_t alternative{};
        alternative.ss_size = 64 * 1024;
        alternative.ss_sp = malloc(alternative.ss_size); // for as long as the thread lives
        sigaltstack(&alternative, nullptr);
    }
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(SIGSEGV, &action, &previous_handler);
    });
}

bool in_device(const void *address)
{
    return reserved && address >= reserved && address < reserved + RESERVED;
}

Allocation *allocation_of(const void *address)
{
    uint32_t owner = page_owner[size_t(static_cast<const unsigned char *>(address) - reserved) / PAGE];
    return owner ? &allocations[owner - 1] : nullptr;
}

void *device_allocate(size_t bytes)
{
    std::lock_guard lock(memory_mutex);
    if (!reserved) {
        reserved = unused = static_cast<unsigned char *>(map(RESERVED, PROT_NONE));
        page_owner = static_cast<uint32_t *>(map(RESERVED / PAGE * sizeof(uint32_t), PROT_READ | PROT_WRITE));
        if (!reserved || !page_owner) abort();
    }
    size_t mapped = (bytes + PAGE - 1) / PAGE * PAGE;
    if (mapped + PAGE > size_t(reserved + RESERVED - unused)) return nullptr;
    unsigned char *pages = unused;
    if (mprotect(pages, mapped, PROT_READ | PROT_WRITE)) return nullptr;
    unused += mapped + PAGE;
    // The end lies at the guard page, as far as the alignment that callers may count on allows.
    constexpr size_t ALIGNMENT = 256;
    unsigned char *start = pages + (mapped - bytes) / ALIGNMENT * ALIGNMENT;
    memset(pages, POISON, mapped);
    allocations.push_back({start, bytes, mapped, true, nullptr});
    for (size_t i = 0; i < mapped / PAGE; ++i)
        page_owner[size_t(pages - reserved) / PAGE + i] = uint32_t(allocations.size());
    return start;
}

bool device_free(void *start)
{
    std::lock_guard lock(memory_mutex);
    if (!in_device(start)) return false;
    Allocation *a = allocation_of(start);
    if (!a || a->start != start || !a->live) return false;
    a->live = false;
    madvise(first_page(*a), a->mapped, MADV_DONTNEED);
    mprotect(first_page(*a), a->mapped, PROT_NONE);
    if (a->cells) munmap(a->cells, (a->bytes / GRANULE + 1) * sizeof(Cell));
    a->cells = nullptr;
    return true;
}

bool device_range_valid(const void *address, size_t bytes)
{
    if (!in_device(address)) return false;
    const Allocation *a = allocation_of(address);
    auto *first = static_cast<const unsigned char *>(address);
    return a && a->live && first >= a->start && first + bytes <= a->start + a->bytes;
}

bool in_library(const void *address) { return address >= &__ehdr_start && address < &_end; }

std::string describe_address(const void *address, size_t bytes, Access access)
{
    std::string text = std::to_string(bytes) + "-byte " + (access == Access::write ? "write" : "read") + " ";
    auto *at = static_cast<const unsigned char *>(address);
    Allocation *a = in_device(at) ? allocation_of(at) : nullptr;
    // Past the end is the guard page, which belongs to nobody.
    if (!a && in_device(at) && at >= reserved + PAGE) a = allocation_of(at - PAGE);
    if (!a) return text + "at address " + std::to_string(uintptr_t(at)) + ", in no allocation";
    std::string size = std::to_string(a->bytes) + " bytes";
    if (!a->live) return text + "in a freed allocation of " + size;
    if (at < a->start) return text + std::to_string(a->start - at) + " bytes before an allocation of " + size;
    return text + "at byte " + std::to_string(at - a->start) + " of an allocation of " + size;
}

LineLock::LineLock(const void *address, bool several_cores)
{
    static std::atomic_flag flags[1024];
    if (!several_cores) return;
    flag = &flags[uintptr_t(address) / 256 % 1024];
    // Its holder may have lost its core.
    for (int tries = 0; flag->test_and_set(std::memory_order_acquire);)
        if (++tries % 64)
            __builtin_ia32_pause();
        else
            sched_yield();
}

LineLock::~LineLock()
{
    if (flag) flag->clear(std::memory_order_release);
}

namespace {

void check_range(Allocation &a, const unsigned char *first, size_t bytes, Access access, const Accessor &by,
                 Site site)
{
    LineLock lock(first, by.block.launch->several_cores);
    Conflict conflict =
        check_cells(cells_of(a), Span(size_t(first - a.start), bytes), access, Space::device, by);
    if (conflict.what)
        report(Fault::launch_failed, "race in device memory", site,
               describe(conflict, by) + ", at byte " + std::to_string(conflict.index * GRANULE) +
                   " of an allocation of " + std::to_string(a.bytes) + " bytes");
}

} // namespace

void check_global_range(const void *address, size_t bytes, Access access, const Accessor &by, Site site)
{
    if (!device_range_valid(address, bytes))
        stop(Fault::illegal_address, "illegal address", site, describe_address(address, bytes, access));
    if (!settings.checks) return;
    auto *at = static_cast<const unsigned char *>(address), *end = at + bytes;
    while (at < end) {
        // A lock holds for one line of 256 bytes.
        size_t line = std::min<size_t>(256 - uintptr_t(at) % 256, size_t(end - at));
        check_range(*allocation_of(address), at, line, access, by, site);
        at += line;
    }
}

unsigned char *global_access(uint64_t address, uint32_t bytes, Access access, Site site)
{
    auto *at = reinterpret_cast<unsigned char *>(address);
    if (address % bytes)
        stop(Fault::misaligned_address, "misaligned address", site, describe_address(at, bytes, access));
    if (!device_range_valid(at, bytes)) {
        if (in_library(at)) return at;
        stop(Fault::illegal_address, "illegal address", site, describe_address(at, bytes, access));
    }
    if (settings.checks)
        check_range(*allocation_of(at), at, bytes, access, tls.block->accessor(Kind::plain), site);
    return at;
}

AtomicAccess::AtomicAccess(uint64_t address, uint32_t bytes, Order order, Site site)
    : at(reinterpret_cast<unsigned char *>(address)), observes(false)
{
    Block &block = *tls.block;
    if (at >= block.arena && at < block.arena + block.arena_bytes) {
        at = shared_atomic_access(uint32_t(at - block.arena), bytes, site);
        return;
    }
    if (address % bytes)
        stop(Fault::misaligned_address, "misaligned address", site,
             describe_address(at, bytes, Access::write));
    if (!device_range_valid(at, bytes))
        stop(Fault::illegal_address, "illegal address", site, describe_address(at, bytes, Access::write));
    if (!settings.checks) return;
    check_range(*allocation_of(at), at, bytes, Access::write, block.accessor(Kind::atomic), site);
    // What this thread fenced, or releases now, becomes visible to whoever touches the same place after it.
    Warp &warp = *tls.fiber->warp;
    if (order == Order::release || order == Order::acquire_release) {
        publish(address, block, warp.clock);
        warp.tick();
    } else if (tls.fiber->fenced) {
        publish(address, block, *tls.fiber->fenced);
    }
    observes = true;
}

AtomicAccess::~AtomicAccess()
{
    if (observes) observe(reinterpret_cast<uint64_t>(at), *tls.block);
}

} // namespace sim
