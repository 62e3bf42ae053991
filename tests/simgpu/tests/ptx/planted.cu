// Kernels with one mistake each, and without it: what tests/device/planted.rs expects to be found, and not to
// be found. Every kernel takes `struct Args` by value; a mistake is a value of the template parameter BUG.

struct Args {
    const void *x, *y;
    float *out;
    unsigned *counter;
    unsigned count;
};

typedef unsigned short u16;
typedef unsigned int u32;

enum Bug {
    NONE,
    NO_BARRIER,        // __syncthreads left out
    NO_REUSE_BARRIER,  // a stage is overwritten while others still read it
    NO_WAIT,           // cp.async is not waited for
    SHARED_BOUNDS,     // a row past the end of shared memory
    GLOBAL_BOUNDS,     // an element past the end of device memory
    NO_FENCE,          // no __threadfence before the counter
    NO_COUNTER,        // blocks read each other's results at once
    NOT_WRITTEN,       // shared memory is read before anything is there
    DIVERGENT_BARRIER, // half of the block at each of two barriers
    EARLY_EXIT,        // threads end before the barrier
    WRONG_MASK,        // a lane is not in its own mask
    ENDED_LANE,        // the mask names lanes that have ended
    WRONG_COUNT,       // a named barrier waits for threads that never come
    NO_WARP_BARRIER,   // __syncwarp left out
    MISALIGNED,        // a 16-byte load at an address of 4
    SAME_PLACE,        // two blocks write one element
};

__device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// out[block] = the sum of the block's 256 elements.
template <Bug BUG> __device__ __forceinline__ void block_sum(const Args &a)
{
    __shared__ float part[8];
    const float *x = (const float *)a.x;
    u32 i = blockIdx.x * 256 + threadIdx.x;
    float sum = i < a.count + (BUG == GLOBAL_BOUNDS) ? x[i] : 0.f;
    if (BUG == EARLY_EXIT && i >= a.count) return;
    for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0 && !(BUG == NOT_WRITTEN && threadIdx.x == 96)) part[threadIdx.x / 32] = sum;
    if (BUG == DIVERGENT_BARRIER) {
        if (threadIdx.x < 128)
            __syncthreads();
        else
            __syncthreads();
    } else if (BUG != NO_BARRIER) {
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        sum = 0.f;
        for (int w = 0; w < 8; ++w) sum += part[w];
        a.out[BUG == SAME_PLACE ? 0 : blockIdx.x] = sum;
    }
}

// out = x transposed, 32 x 32 a block of 32 x 8 threads.
template <Bug BUG> __device__ __forceinline__ void transpose(const Args &a)
{
    __shared__ float tile[32][33];
    const float *x = (const float *)a.x;
    for (u32 r = threadIdx.y; r < 32; r += 8) tile[r][threadIdx.x] = x[r * 32 + threadIdx.x];
    if (BUG == SHARED_BOUNDS && threadIdx.x == 31 && threadIdx.y == 0) tile[32][0] = 1.f;
    if (BUG != NO_BARRIER) __syncthreads();
    for (u32 r = threadIdx.y; r < 32; r += 8) a.out[r * 32 + threadIdx.x] = tile[threadIdx.x][r];
}

// Every lane writes, its neighbour reads.
template <Bug BUG> __device__ __forceinline__ void exchange(const Args &a)
{
    __shared__ float slot[32];
    const float *x = (const float *)a.x;
    slot[threadIdx.x] = x[threadIdx.x];
    if (BUG == WRONG_MASK)
        __syncwarp(threadIdx.x < 31 ? 0xffffffffu : 0x7fffffffu);
    else if (BUG == ENDED_LANE) {
        if (threadIdx.x == 31) return;
        __syncwarp();
    } else if (BUG != NO_WARP_BARRIER)
        __syncwarp();
    a.out[threadIdx.x] = slot[(threadIdx.x + 1) % 32];
}

// The blocks' sums, then the sum of these by whichever block comes last.
template <Bug BUG> __device__ __forceinline__ void last_block_sum(const Args &a)
{
    __shared__ bool last;
    const float *x = (const float *)a.x;
    volatile float *partial = a.out + 1;
    float sum = x[blockIdx.x * 32 + threadIdx.x];
    for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
        if (BUG != NO_FENCE) __threadfence();
        last = BUG == NO_COUNTER ? blockIdx.x == gridDim.x - 1 : atomicAdd(a.counter, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        sum = 0.f;
        for (u32 i = 0; i < gridDim.x; ++i) sum += partial[i];
        a.out[0] = sum;
    }
}

// Two halves of a block meet at a named barrier.
template <Bug BUG> __device__ __forceinline__ void named_barrier(const Args &a)
{
    __shared__ float slot[64];
    const float *x = (const float *)a.x;
    if (threadIdx.x < 64) {
        slot[threadIdx.x] = x[threadIdx.x];
        asm volatile("bar.arrive 1, %0;" ::"n"(BUG == WRONG_COUNT ? 160 : 128) : "memory");
    } else {
        asm volatile("bar.sync 1, %0;" ::"n"(BUG == WRONG_COUNT ? 160 : 128) : "memory");
        a.out[threadIdx.x - 64] = slot[127 - threadIdx.x];
    }
}

template <Bug BUG> __device__ __forceinline__ void vector_load(const Args &a)
{
    float4 v =
        *(const float4 *)((const float *)a.x + threadIdx.x * 4 + (BUG == MISALIGNED && threadIdx.x == 3));
    a.out[threadIdx.x] = v.x + v.y + v.z + v.w;
}

// out (16 x 16) = x (16 x count, bf16) * y (16 x count)^T: one warp fetches x, the other y, in two stages of
// cp.async; each multiplies for eight columns.
template <Bug BUG> __device__ __forceinline__ void pipeline(const Args &a)
{
    __shared__ __align__(16) u16 xs[2][16 * 16], ys[2][16 * 16];
    u32 warp = threadIdx.x / 32, t = threadIdx.x % 32, steps = a.count / 16;
    auto fetch = [&](u32 step) {
        // Each lane a piece of 16 bytes.
        u32 row = t / 2, half = t % 2 * 8;
        u32 beyond = BUG == GLOBAL_BOUNDS && step == 3 && t == 31 ? 8 : 0;
        const u16 *from = (const u16 *)(warp ? a.y : a.x) + row * a.count + step * 16 + half + beyond;
        u32 to = shared_address((warp ? ys : xs)[step % 2] + row * 16 + half);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    float d[4] = {0.f, 0.f, 0.f, 0.f};
    fetch(0);
    for (u32 step = 0; step < steps; ++step) {
        if (step + 1 < steps) {
            fetch(step + 1);
            if (BUG != NO_WAIT) asm volatile("cp.async.wait_group 1;" ::: "memory");
        } else if (BUG != NO_WAIT) {
            asm volatile("cp.async.wait_group 0;" ::: "memory");
        }
        if (BUG != NO_BARRIER) __syncthreads();
        u32 fa[4], fb[2], stage = step % 2;
        u32 row_a = t % 16 + (BUG == SHARED_BOUNDS && step == 1 ? 4096 : 0);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3])
                     : "r"(shared_address(xs[stage] + row_a * 16 + t / 16 * 8))
                     : "memory");
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                     : "=r"(fb[0]), "=r"(fb[1])
                     : "r"(shared_address(ys[stage] + (warp * 8 + t % 8) * 16 + t / 8 % 2 * 8))
                     : "memory");
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                     "{%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
        if (BUG != NO_REUSE_BARRIER) __syncthreads();
    }
    if (BUG == NO_WAIT) asm volatile("cp.async.wait_group 0;" ::: "memory");
    for (u32 i = 0; i < 4; ++i) a.out[(t / 4 + i / 2 * 8) * 16 + warp * 8 + t % 4 * 2 + i % 2] = d[i];
}

#define KERNEL(body, bug)                                                                                    \
    extern "C" __global__ void __launch_bounds__(256) body##_##bug(const __grid_constant__ Args a)           \
    {                                                                                                        \
        body<bug>(a);                                                                                        \
    }

KERNEL(block_sum, NONE)
KERNEL(block_sum, NO_BARRIER)
KERNEL(block_sum, NOT_WRITTEN)
KERNEL(block_sum, GLOBAL_BOUNDS)
KERNEL(block_sum, DIVERGENT_BARRIER)
KERNEL(block_sum, EARLY_EXIT)
KERNEL(block_sum, SAME_PLACE)
KERNEL(transpose, NONE)
KERNEL(transpose, NO_BARRIER)
KERNEL(transpose, SHARED_BOUNDS)
KERNEL(exchange, NONE)
KERNEL(exchange, NO_WARP_BARRIER)
KERNEL(exchange, WRONG_MASK)
KERNEL(exchange, ENDED_LANE)
KERNEL(last_block_sum, NONE)
KERNEL(last_block_sum, NO_FENCE)
KERNEL(last_block_sum, NO_COUNTER)
KERNEL(named_barrier, NONE)
KERNEL(named_barrier, WRONG_COUNT)
KERNEL(vector_load, NONE)
KERNEL(vector_load, MISALIGNED)
KERNEL(pipeline, NONE)
KERNEL(pipeline, NO_BARRIER)
KERNEL(pipeline, NO_REUSE_BARRIER)
KERNEL(pipeline, NO_WAIT)
KERNEL(pipeline, SHARED_BOUNDS)
KERNEL(pipeline, GLOBAL_BOUNDS)
