// gemm_sm90a: the products of gemm.cu on Hopper: wgmma fed by TMA.
//
// A block has three warpgroups. One thread of the first, the producer, copies boxes of both operands into a ring of
// stages; the two others, the consumers, compute 64 rows each of a tile of c [m, n] and finish them. Blocks stay: each
// takes tile after tile, so that the producer fills the ring for the next tile while the consumers finish the last one.
// Two barriers a stage say when it is full and when it is empty. Operands must start at multiples of 16 bytes, with
// pitches that are; TMA fills up with zeros what is outside of them.
// Grid: as many blocks as multiprocessors, or tiles if they are fewer; dW of few tiles is computed in parts, as in
// gemm.cu. Bytes moved: as gemm.cu.
#include "gemm.cuh"
#include "pipeline_sm90a.cuh"

constexpr u32 TILE_M = 128, CONSUMERS = 2, CONSUMER_WARPS = CONSUMERS * WARPGROUP / WARP;
constexpr u32 THREADS = (1 + CONSUMERS) * WARPGROUP;

// Places in dynamic shared memory. The swizzle wants panels to start at multiples of 1024 bytes.
template <u32 TILE_N> struct Shared {
    static constexpr u32 STAGES = TILE_N == 256 ? 4 : 6;
    static constexpr u32 A = TILE_M * DEPTH * sizeof(bf16), B = TILE_N * DEPTH * sizeof(bf16);
    static constexpr u32 ONES = 0, RING = ONES + ATOM, RESULTS = RING + STAGES * (A + B);
    static constexpr u32 RESULTS_OF_A_WARP = 16 * 64;  // of float
    static constexpr u32 FULL = RESULTS + CONSUMER_WARPS * RESULTS_OF_A_WARP * sizeof(float);
    static constexpr u32 EMPTY = FULL + STAGES * sizeof(u64), BYTES = EMPTY + STAGES * sizeof(u64);
    static_assert(RING % ATOM == 0 && A % ATOM == 0 && B % ATOM == 0 && BYTES <= 227 * 1024);
};

extern __shared__ __align__(1024) unsigned char shared[];

// The products of one tile: c [64, TILE_N] of this warpgroup, and, for SUMS, the sums of a's 64 rows in every column of
// `row_sums`.
template <Major A_MAJOR, Major B_MAJOR, u32 TILE_N, bool SUMS>
__device__ void multiply(float (&c)[TILE_N / 2], float (&row_sums)[4], Turn &turn, u32 base, u32 consumer, u32 steps) {
    using Place = Shared<TILE_N>;
    using A = Panels<A_MAJOR, TILE_M>;
    using B = Panels<B_MAJOR, TILE_N>;
    u32 to_release = 0;
    for (u32 step = 0; step < steps; ++step) {
        wait(base + Place::FULL + turn.stage * sizeof(u64), turn.phase);
        const u32 a = base + Place::RING + turn.stage * (Place::A + Place::B), b = a + Place::A;
        wgmma_fence();
#pragma unroll
        for (u32 k = 0; k < DEPTH; k += 16) {
            const u32 add = step + k > 0;
            wgmma<A::TRANSPOSE, B::TRANSPOSE>(c, A::descriptor(a, consumer * 64, k), B::descriptor(b, 0, k), add);
            if constexpr (SUMS)
                wgmma<A::TRANSPOSE, Transpose::No>(row_sums, A::descriptor(a, consumer * 64, k),
                                                   Panels<Major::K, 8>::descriptor(base + Place::ONES, 0, 0), add);
        }
        wgmma_commit_group();
        // While these products run, those of the step before are done: its stage may be filled again.
        wgmma_wait_group<1>();
        if (step > 0 && lane_index() == 0) mbarrier_arrive(base + Place::EMPTY + to_release * sizeof(u64));
        to_release = turn.stage;
        turn.template advance<Place::STAGES>();
    }
    wgmma_wait_group<0>();
    if (lane_index() == 0) mbarrier_arrive(base + Place::EMPTY + to_release * sizeof(u64));
}

// c = a·bᵀ and what is done to it. SUMS: the sum of a's rows is added to `sums` [1, m] (null: not wanted); and both
// sums over k may be made in parts of `k_of_part`, each a tile of its own.
template <Major A_MAJOR, Major B_MAJOR, u32 TILE_N, bool SUMS, class Finishing>
__device__ void gemm(const TensorMap &a, const TensorMap &b, u32 m, u32 n, u32 k, const Finishing &whole,
                     float *sums, u32 k_of_part) {
    using Place = Shared<TILE_N>;
    const u32 base = shared_address(shared);
    const u32 tiles_n = ceil_div(n, TILE_N), tiles_of_part = ceil_div(m, TILE_M) * tiles_n;
    const u32 tiles = SUMS ? tiles_of_part * ceil_div(k, k_of_part) : tiles_of_part;
    const auto part_of = [&](u32 tile) { return SUMS ? tile / tiles_of_part : 0; };
    const auto steps_of = [&](u32 tile) {
        return ceil_div(SUMS ? min(k_of_part, k - part_of(tile) * k_of_part) : k, DEPTH);
    };
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < Place::STAGES; ++stage) {
            mbarrier_init(base + Place::FULL + stage * sizeof(u64), 1);
            mbarrier_init(base + Place::EMPTY + stage * sizeof(u64), CONSUMER_WARPS);
        }
        fence_mbarrier_init();
    }
    if constexpr (SUMS) {
        constexpr u32 TWO_ONES = 0x3f803f80;
        u32 *ones = reinterpret_cast<u32 *>(shared + Place::ONES);
        if (threadIdx.x < ATOM / sizeof(u32)) ones[threadIdx.x] = TWO_ONES;
        fence_proxy_async();
    }
    __syncthreads();

    Turn turn;
    const u32 warpgroup = threadIdx.x / WARPGROUP;
    if (warpgroup == 0) {
        setmaxnreg_dec<40>();
        if (threadIdx.x != 0) return;
        for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            const u32 part = part_of(tile), in_part = tile - part * tiles_of_part, steps = steps_of(tile);
            const u32 first_m = in_part / tiles_n * TILE_M, first_n = in_part % tiles_n * TILE_N;
            const u32 first_k = SUMS ? part * k_of_part : 0;
            for (u32 step = 0; step < steps; ++step) {
                // Before its first turn a stage counts as emptied: that is the phase before the first.
                wait(base + Place::EMPTY + turn.stage * sizeof(u64), turn.phase ^ 1);
                const u32 full = base + Place::FULL + turn.stage * sizeof(u64);
                const u32 stage = base + Place::RING + turn.stage * (Place::A + Place::B);
                mbarrier_arrive_expect_tx(full, Place::A + Place::B);
                Panels<A_MAJOR, TILE_M>::fill(stage, a, full, first_m, first_k + step * DEPTH);
                Panels<B_MAJOR, TILE_N>::fill(stage + Place::A, b, full, first_n, first_k + step * DEPTH);
                turn.template advance<Place::STAGES>();
            }
        }
        return;
    }

    setmaxnreg_inc<232>();
    const u32 consumer = warpgroup - 1, warp = warp_index() % (WARPGROUP / WARP);
    float *results = reinterpret_cast<float *>(shared + Place::RESULTS) +
                     (consumer * (WARPGROUP / WARP) + warp) * Place::RESULTS_OF_A_WARP;  // [16, 64]
    for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const u32 part = part_of(tile), in_part = tile - part * tiles_of_part, steps = steps_of(tile);
        const u32 first_m = in_part / tiles_n * TILE_M + consumer * 64 + warp * 16, first_n = in_part % tiles_n * TILE_N;
        Finishing finish = whole;
        if constexpr (SUMS) finish = whole.of_part(part, m);
        float c[TILE_N / 2], row_sums[4];
        if (SUMS && sums != nullptr && first_n == 0) {
            multiply<A_MAJOR, B_MAJOR, TILE_N, SUMS>(c, row_sums, turn, base, consumer, steps);
            if (lane_index() % 4 == 0)
#pragma unroll
                for (u32 half = 0; half < 2; ++half) {
                    const u32 row = first_m + lane_index() / 4 + 8 * half;
                    if constexpr (SUMS)
                        if (row < m) finish.add_sum(sums + part * m + row, row_sums[2 * half]);
                }
        } else {
            multiply<A_MAJOR, B_MAJOR, TILE_N, false>(c, row_sums, turn, base, consumer, steps);
        }
        // Results pass through shared memory, 64 columns of a warp's rows at a time, and become whole vectors.
#pragma unroll
        for (u32 slab = 0; slab < TILE_N; slab += 64) {
#pragma unroll
            for (u32 col = 0; col < 64; col += 8) stage<64>(results, 0, col, c + (slab + col) / 2);
            __syncwarp();
#pragma unroll 1
            for (u32 index = lane_index(); index < 16 * 64 / VECTOR; index += WARP) {
                const u32 row = index / (64 / VECTOR), col = index % (64 / VECTOR) * VECTOR;
                finish_vector<1, 0>(finish, results + staged<64>(row, col), first_m + row, first_n + slab + col, m, n);
            }
            __syncwarp();
        }
    }
}

// y [m = rows, n = out] from x [rows, k = in] and W [out, in].
struct GemmForwardSm90aArgs {
    TensorMap x, weight;
    FinishForward finish;
    u32 rows, outputs, inputs;
};
static_assert(sizeof(GemmForwardSm90aArgs) == 384);

// dx [m = rows, n = in], or that of z where x = f(z), from dy [rows, k = out] and W [out, in].
struct GemmInputSm90aArgs {
    TensorMap dy, weight;
    FinishInput finish;
    u32 rows, outputs, inputs;
};
static_assert(sizeof(GemmInputSm90aArgs) == 384);

// dW [m = out, n = in] and db [1, out] (may be absent) from dy [k = rows, out] and x [rows, in].
struct GemmWeightSm90aArgs {
    TensorMap dy, x;
    Accumulate finish;
    Out<float> dbias;
    u32 rows, outputs, inputs;
    u32 rows_of_part;  // those of all; or fewer, a multiple of 64: then parts of dW and db are put one below the other
};
static_assert(sizeof(GemmWeightSm90aArgs) == 320);

#define GEMM_KERNELS(TILE_N)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                           \
        gemm_forward_sm90a_##TILE_N(const __grid_constant__ GemmForwardSm90aArgs a) {                                  \
        gemm<Major::K, Major::K, TILE_N, false>(a.x, a.weight, a.rows, a.outputs, a.inputs, a.finish, nullptr, a.inputs);          \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                           \
        gemm_input_sm90a_##TILE_N(const __grid_constant__ GemmInputSm90aArgs a) {                                      \
        gemm<Major::K, Major::MN, TILE_N, false>(a.dy, a.weight, a.rows, a.inputs, a.outputs, a.finish, nullptr, a.outputs);       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                           \
        gemm_weight_sm90a_##TILE_N(const __grid_constant__ GemmWeightSm90aArgs a) {                                    \
        gemm<Major::MN, Major::MN, TILE_N, true>(a.dy, a.x, a.outputs, a.inputs, a.rows, a.finish, a.dbias.data,               \
                                                 a.rows_of_part);                                                      \
    }

GEMM_KERNELS(128)
GEMM_KERNELS(256)
