// What a translated kernel sees of the device. One C++ function per PTX entry, `void kernel(void **params)`,
// is run by every thread of the grid as a fiber; all it does beyond arithmetic goes through the functions
// declared here.
//
// Addresses: a shared-memory address is an offset into the block's window (`tls.smem` + offset is its generic
// address); a global address is a host pointer into the device's own range; generic addresses are host
// pointers of either kind, of the thread's stack (local memory) or of the parameters. `PC`, the last argument
// wherever an error can be found, is the source line: the translator writes `#line` directives.
#pragma once
#include <cstddef>
#include <cstdint>

#define PC (sim::Site{__FILE__, __LINE__})

namespace sim {

struct Site {
    const char *file;
    uint32_t line;
};

struct Index {
    uint32_t x, y, z;
};

struct Fiber;
struct Block;

// The thread that runs on this core.
struct ThreadLocal {
    Index tid, bid, bdim, gdim;
    uint32_t lane;
    unsigned char *smem;
    Fiber *fiber;
    Block *block;
};
extern thread_local ThreadLocal tls __attribute__((tls_model("initial-exec")));

// A kernel registers itself when the library is loaded.
struct KernelLimits {
    uint32_t max_threads;   // .maxntid, 1024 without it
    uint32_t static_shared; // bytes of all .shared variables
    const char *target;     // .target: "sm_80", "sm_90a"
};
struct Kernel {
    const char *name;
    void (*run)(void **params);
    int param_count;
    const uint32_t *param_sizes;
    KernelLimits limits;
    Kernel *next;
};
void register_kernel(Kernel *kernel);

// An error the kernel itself finds: it ends the launch.
[[noreturn]] void trap(const char *message, Site site = {__builtin_FILE(), __builtin_LINE()});

// ---- memory: each returns where the bytes lie, after the checks; an access must be aligned to its size ----
enum class Access : bool { read, write };
unsigned char *shared_access(uint32_t address, uint32_t bytes, Access access, Site site);
unsigned char *global_access(uint64_t address, uint32_t bytes, Access access, Site site);
unsigned char *generic_access(uint64_t address, uint32_t bytes, Access access, Site site);
// atom, red, and loads and stores that are relaxed or stronger. The caller performs the operation atomically,
// while this lives: blocks run on several cores. An acquire or release order makes the accesses of other
// blocks visible, as does a fence: published before the operation, observed after it, so that whoever comes
// later at this place knows of whoever came earlier.
enum class Order { relaxed, acquire, release, acquire_release };
class AtomicAccess {
  public:
    AtomicAccess(uint64_t generic_address, uint32_t bytes, Order order, Site site);
    ~AtomicAccess();
    AtomicAccess(const AtomicAccess &) = delete;
    operator unsigned char *() const { return at; }

  private:
    unsigned char *at;
    bool observes;
};
unsigned char *shared_atomic_access(uint32_t address, uint32_t bytes, Site site);

// Shared variables, each at its own place between red zones, and the dynamic part.
void *static_smem(const void *tag, size_t bytes, size_t alignment);
unsigned char *dyn_smem();
uint32_t smem_offset(const void *generic);

enum class Fence { cta, cluster, gpu, sys, proxy_async, mbarrier_init };
void fence(Fence kind);

// ---- barriers; `threads` < 0 means the whole block ----
void block_barrier(uint32_t id, int threads, Site site);
void block_barrier_arrive(uint32_t id, int threads, Site site);
enum class Reduction { popc, all, any };
int block_barrier_red(uint32_t id, int threads, Reduction reduction, int predicate, Site site);

// ---- warp collectives: the last lane of `mask` to arrive calls `run(args, mask, context)`; args[lane] is
// each lane's `arg`. Lanes must agree in `operation`, a number of the translator's below 1000. `__syncwarp`
// is sync_warp. ----
using Collective = void (*)(void *const *args, uint32_t mask, void *context);
void warp_collective(uint32_t mask, int operation, void *arg, Collective run, void *context, Site site);
void sync_warp(uint32_t mask, Site site);

// ---- tensor-core instructions of a whole warp ----
enum class Half { bf16, f16 };
void ldmatrix(uint32_t *out, int count, bool transpose, uint32_t address, Site site);
void stmatrix(const uint32_t *in, int count, bool transpose, uint32_t address, Site site);
uint32_t movmatrix(uint32_t a, Site site);
// m16n8k16 (a[4], b[2]) or m16n8k8 (a[2], b[1]); `d` holds c on entry.
void mma(float *d, const uint32_t *a, const uint32_t *b, int k, Half type, Site site);

// ---- asynchronous copies ----
void cp_async(uint32_t dst, const void *src, uint32_t bytes, uint32_t src_bytes, Site site);
void cp_async_commit();
void cp_async_wait(int pending);
void cp_async_mbar_arrive(uint32_t bar, bool noinc, Site site);

void mbar_init(uint32_t bar, uint32_t count, Site site);
void mbar_inval(uint32_t bar, Site site);
uint64_t mbar_arrive(uint32_t bar, uint32_t count, uint32_t expect_bytes, bool drop, Site site);
void mbar_expect_tx(uint32_t bar, uint32_t bytes, Site site);
bool mbar_test_parity(uint32_t bar, uint32_t parity, Site site);
bool mbar_test_state(uint32_t bar, uint64_t state, Site site);
// May suspend the thread, and may fail, as on a device, when only this thread can make progress.
bool mbar_try_parity(uint32_t bar, uint32_t parity, Site site);
bool mbar_try_state(uint32_t bar, uint64_t state, Site site);

struct TensorMap;
void bulk_load(uint32_t dst, const void *src, uint32_t bytes, uint32_t bar, Site site);
void bulk_store(void *dst, uint32_t src, uint32_t bytes, Site site);
void tma_load(int rank, uint32_t dst, const TensorMap *map, const int32_t *coords, uint32_t bar, Site site);
void tma_store(int rank, const TensorMap *map, const int32_t *coords, uint32_t src, Site site);
void bulk_commit();
void bulk_wait(int pending, bool read);

// ---- wgmma: d (f32) holds NaN from issue until wg_wait, which needs it to stay where it is until the thread
// ends ----
struct WgmmaShape {
    int n;
    bool f16; // else bf16
    bool negate_a, negate_b, transpose_a, transpose_b;
};
void wg_fence(Site site);
void wg_commit();
void wg_wait(int pending);
void wgmma(float *d, const WgmmaShape &shape, uint64_t a_desc, const uint32_t *a_regs, uint64_t b_desc,
           bool scale_d, Site site);

} // namespace sim
