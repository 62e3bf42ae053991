// Kernels of Hopper's asynchronous instructions, right and with one mistake each: the fixtures of
// tests/device/hopper.rs.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
struct alignas(64) TensorMap {
    u64 opaque[16];
};

enum Bug {
    NONE,
    NO_FULL_WAIT,    // the operands are used before they have landed
    NO_EMPTY_WAIT,   // a stage is filled again while wgmma may read it
    NO_PRODUCT_WAIT, // wgmma is not waited for before its stage is given back
    NO_PROXY_FENCE,  // what threads wrote is stored by TMA without fence.proxy.async
    NO_STORE_WAIT,   // the block ends before TMA has read what it stores
};

__device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void mbarrier_init(u32 bar, u32 count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
__device__ __forceinline__ void mbarrier_expect(u32 bar, u32 bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(u32 bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
__device__ __forceinline__ void mbarrier_wait(u32 bar, u32 parity)
{
    asm volatile("{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra "
                 "again;\n}" ::"r"(bar),
                 "r"(parity)
                 : "memory");
}
__device__ __forceinline__ void load_2d(u32 dst, const TensorMap *map, u32 bar, int c0, int c1)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%3, %4}], [%2];" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(c0), "r"(c1)
                 : "memory");
}
__device__ __forceinline__ u64 descriptor(u32 address, u32 leading, u32 stride, u64 mode)
{
    return (u64)(address >> 4 & 0x3fff) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 | mode << 62;
}
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

#define ACCUMULATORS "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
#define ALL(d)                                                                                               \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),          \
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])

template <int SIGN_A, int SIGN_B, int TRANSPOSE_A, int TRANSPOSE_B>
__device__ __forceinline__ void wgmma_64x32x16(float (&d)[16], u64 a, u64 b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 " ACCUMULATORS
                 ", %16, %17, 1, %18, %19, %20, %21;"
                 : ALL(d)
                 : "l"(a), "l"(b), "n"(SIGN_A), "n"(SIGN_B), "n"(TRANSPOSE_A), "n"(TRANSPOSE_B));
}
template <int TRANSPOSE_B>
__device__ __forceinline__ void wgmma_64x32x16(float (&d)[16], const u32 (&a)[4], u64 b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 " ACCUMULATORS
                 ", {%16,%17,%18,%19}, %20, 1, 1, 1, %21;"
                 : ALL(d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(TRANSPOSE_B));
}
__device__ __forceinline__ void put(float *out, const float (&d)[16])
{
    u32 t = threadIdx.x % 128, row = t / 32 * 16 + t % 32 / 4;
    for (u32 i = 0; i < 16; ++i) out[(row + i / 2 % 2 * 8) * 32 + i / 4 * 8 + t % 4 * 2 + i % 2] = d[i];
}

// ---- one 64 x 32 x 16 product whose operands TMA lays out; boxes follow each other along the inner
// coordinate ----
struct Operand {
    TensorMap map;
    u32 boxes, box_bytes, box_width; // width: elements along the inner coordinate
    u32 leading, stride, mode;
};
struct ProductArgs {
    Operand a, b;
    const u32 *a_pairs; // [64, 8] pairs of bf16, for products whose a lies in registers
    float *out;         // [64, 32]
};

enum Source { SHARED, REGISTERS };
enum Wait { IN_TIME, TOO_LATE };
template <Source SOURCE, int SIGN_A, int SIGN_B, int TRANSPOSE_A, int TRANSPOSE_B, Wait WAIT = IN_TIME>
__device__ __forceinline__ void product(const ProductArgs &args)
{
    extern __shared__ __align__(1024) u8 shared[];
    __shared__ u64 bar;
    u32 a = shared_address(shared), b = a + 8192;
    if (threadIdx.x == 0) {
        mbarrier_init(shared_address(&bar), 1);
        mbarrier_expect(shared_address(&bar),
                        args.a.boxes * args.a.box_bytes + args.b.boxes * args.b.box_bytes);
        for (u32 i = 0; i < args.a.boxes; ++i)
            load_2d(a + i * args.a.box_bytes, &args.a.map, shared_address(&bar), i * args.a.box_width, 0);
        for (u32 i = 0; i < args.b.boxes; ++i)
            load_2d(b + i * args.b.box_bytes, &args.b.map, shared_address(&bar), i * args.b.box_width, 0);
    }
    __syncthreads();
    mbarrier_wait(shared_address(&bar), 0);
    float d[16];
    for (u32 i = 0; i < 16; ++i) d[i] = 0.f;
    u64 a_desc = descriptor(a, args.a.leading, args.a.stride, args.a.mode);
    u64 b_desc = descriptor(b, args.b.leading, args.b.stride, args.b.mode);
    wgmma_fence();
    if constexpr (SOURCE == SHARED) {
        wgmma_64x32x16<SIGN_A, SIGN_B, TRANSPOSE_A, TRANSPOSE_B>(d, a_desc, b_desc);
    } else {
        u32 fragment[4], row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, pair = threadIdx.x % 4;
        for (u32 i = 0; i < 4; ++i) fragment[i] = args.a_pairs[(row + i % 2 * 8) * 8 + pair + i / 2 * 4];
        wgmma_64x32x16<TRANSPOSE_B>(d, fragment, b_desc);
    }
    wgmma_commit();
    if (WAIT == IN_TIME) wgmma_wait();
    put(args.out, d);
    if (WAIT == TOO_LATE) wgmma_wait();
}

#define PRODUCT(name, ...)                                                                                   \
    extern "C" __global__ void __launch_bounds__(128) name(const __grid_constant__ ProductArgs args)         \
    {                                                                                                        \
        product<__VA_ARGS__>(args);                                                                          \
    }
PRODUCT(product_k_k, SHARED, 1, 1, 0, 0)
PRODUCT(product_mn_k, SHARED, 1, 1, 1, 0)
PRODUCT(product_k_mn, SHARED, 1, 1, 0, 1)
PRODUCT(product_mn_mn, SHARED, 1, 1, 1, 1)
PRODUCT(product_minus_a, SHARED, -1, 1, 0, 0)
PRODUCT(product_minus_b, SHARED, 1, -1, 0, 0)
PRODUCT(product_registers, REGISTERS, 1, 1, 0, 0)
PRODUCT(product_too_late, SHARED, 1, 1, 0, 0, TOO_LATE)

// ---- out (64 x 32) = a (64 x count) * b (32 x count)^T: a warp that fetches, a warpgroup that multiplies,
// two stages ----
struct RingArgs {
    TensorMap a, b; // boxes of 64 columns, swizzled by 128 bytes
    float *out;
    u32 count;
};
template <Bug BUG> __device__ __forceinline__ void ring(const RingArgs &args)
{
    extern __shared__ __align__(1024) u8 shared[];
    __shared__ u64 full[2], empty[2];
    constexpr u32 A_BYTES = 64 * 128, B_BYTES = 32 * 128, STAGE = A_BYTES + B_BYTES;
    u32 base = shared_address(shared), steps = args.count / 64;
    if (threadIdx.x == 0)
        for (u32 s = 0; s < 2; ++s) {
            mbarrier_init(shared_address(full + s), 1);
            mbarrier_init(shared_address(empty + s), 1);
        }
    __syncthreads();
    if (threadIdx.x >= 128) {
        if (threadIdx.x == 128)
            for (u32 step = 0; step < steps; ++step) {
                u32 s = step % 2;
                if (step >= 2 && BUG != NO_EMPTY_WAIT)
                    mbarrier_wait(shared_address(empty + s), (step / 2 - 1) % 2);
                mbarrier_expect(shared_address(full + s), STAGE);
                load_2d(base + s * STAGE, &args.a, shared_address(full + s), step * 64, 0);
                load_2d(base + s * STAGE + A_BYTES, &args.b, shared_address(full + s), step * 64, 0);
            }
        return;
    }
    float d[16];
    for (u32 i = 0; i < 16; ++i) d[i] = 0.f;
    for (u32 step = 0; step < steps; ++step) {
        u32 s = step % 2;
        if (BUG != NO_FULL_WAIT) mbarrier_wait(shared_address(full + s), step / 2 % 2);
        wgmma_fence();
        for (u32 k = 0; k < 4; ++k)
            wgmma_64x32x16<1, 1, 0, 0>(d, descriptor(base + s * STAGE + k * 32, 16, 1024, 1),
                                       descriptor(base + s * STAGE + A_BYTES + k * 32, 16, 1024, 1));
        wgmma_commit();
        if (BUG != NO_PRODUCT_WAIT) wgmma_wait();
        if (threadIdx.x == 0) mbarrier_arrive(shared_address(empty + s));
    }
    wgmma_wait();
    put(args.out, d);
}
#define RING(bug)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256) ring_##bug(const __grid_constant__ RingArgs args)      \
    {                                                                                                        \
        ring<bug>(args);                                                                                     \
    }
RING(NONE)
RING(NO_FULL_WAIT)
RING(NO_EMPTY_WAIT)
RING(NO_PRODUCT_WAIT)

// ---- a box of a tensor of rank 1 to 5: loaded, copied out as it lies in shared memory, doubled, and stored
// elsewhere ----
struct BoxArgs {
    TensorMap from, to;
    int at[5];
    u32 elements; // of the box, 4 bytes each
    float *out;
};
template <int RANK> __device__ __forceinline__ void load_box(u32 dst, const BoxArgs &args, u32 bar)
{
#define LOAD(rank, coordinates)                                                                              \
    asm volatile("cp.async.bulk.tensor." rank                                                                \
                 ".shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, " coordinates         \
                 "], [%2];" ::"r"(dst),                                                                      \
                 "l"(&args.from), "r"(bar), "r"(args.at[0]), "r"(args.at[1]), "r"(args.at[2]),               \
                 "r"(args.at[3]), "r"(args.at[4])                                                            \
                 : "memory")
    if (RANK == 1) LOAD("1d", "{%3}");
    if (RANK == 2) LOAD("2d", "{%3, %4}");
    if (RANK == 3) LOAD("3d", "{%3, %4, %5}");
    if (RANK == 4) LOAD("4d", "{%3, %4, %5, %6}");
    if (RANK == 5) LOAD("5d", "{%3, %4, %5, %6, %7}");
}
template <int RANK> __device__ __forceinline__ void store_box(u32 src, const BoxArgs &args)
{
#define STORE(rank, coordinates)                                                                             \
    asm volatile("cp.async.bulk.tensor." rank ".global.shared::cta.tile.bulk_group [%0, " coordinates        \
                 "], [%1];" ::"l"(&args.to),                                                                 \
                 "r"(src), "r"(args.at[0]), "r"(args.at[1]), "r"(args.at[2]), "r"(args.at[3]),               \
                 "r"(args.at[4])                                                                             \
                 : "memory")
    if (RANK == 1) STORE("1d", "{%2}");
    if (RANK == 2) STORE("2d", "{%2, %3}");
    if (RANK == 3) STORE("3d", "{%2, %3, %4}");
    if (RANK == 4) STORE("4d", "{%2, %3, %4, %5}");
    if (RANK == 5) STORE("5d", "{%2, %3, %4, %5, %6}");
}
template <int RANK, Bug BUG> __device__ __forceinline__ void box(const BoxArgs &args)
{
    extern __shared__ __align__(1024) u8 shared[];
    __shared__ u64 bar;
    float *tile = (float *)shared;
    if (threadIdx.x == 0) {
        mbarrier_init(shared_address(&bar), 1);
        mbarrier_expect(shared_address(&bar), args.elements * 4);
        load_box<RANK>(shared_address(tile), args, shared_address(&bar));
    }
    __syncthreads();
    mbarrier_wait(shared_address(&bar), 0);
    for (u32 i = threadIdx.x; i < args.elements; i += blockDim.x) {
        args.out[i] = tile[i];
        tile[i] *= 2.f;
    }
    if (BUG != NO_PROXY_FENCE) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (threadIdx.x == 0) {
        store_box<RANK>(shared_address(tile), args);
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
        if (BUG != NO_STORE_WAIT) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
}
#define BOX(name, rank, bug)                                                                                 \
    extern "C" __global__ void __launch_bounds__(128) name(const __grid_constant__ BoxArgs args)             \
    {                                                                                                        \
        box<rank, bug>(args);                                                                                \
    }
BOX(box_1, 1, NONE)
BOX(box_2, 2, NONE)
BOX(box_3, 3, NONE)
BOX(box_4, 4, NONE)
BOX(box_5, 5, NONE)
BOX(box_NO_PROXY_FENCE, 2, NO_PROXY_FENCE)
BOX(box_NO_STORE_WAIT, 2, NO_STORE_WAIT)
