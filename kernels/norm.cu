// norm: ‖x‖, the Euclidean length of a flat vector, in two stages of a fixed shape, so that it has the same
// bits on every GPU.
//
// norm_partial_sums: grid [PARTIAL_SUMS], each block the sum of the squares of its share. Bytes moved: x once.
// norm_total: one block, the square root of their sum.
#include "common.cuh"

// Twin of `PARTIAL_SUMS` in src/ops/norm/mod.rs.
constexpr u32 PARTIAL_SUMS = 1024;
constexpr u32 THREADS = 256;

struct NormPartialSumsArgs {
    In<float> x;              // [1, size], at a multiple of 16 bytes
    Out<float> partial_sums;  // [1, PARTIAL_SUMS]
    u32 size;
    u32 unused;
};
static_assert(sizeof(NormPartialSumsArgs) == 40);

struct NormTotalArgs {
    In<float> partial_sums;  // [1, PARTIAL_SUMS]
    Out<float> norm;         // [1, 1]
};
static_assert(sizeof(NormTotalArgs) == 32);

extern "C" __global__ void __launch_bounds__(THREADS) norm_partial_sums(const __grid_constant__ NormPartialSumsArgs a) {
    const u32 quads = a.size / QUAD;
    // A sum for each place in a quad.
    float sums[QUAD] = {};
#pragma unroll 4
    for (u32 quad = blockIdx.x * THREADS + threadIdx.x; quad < quads; quad += PARTIAL_SUMS * THREADS) {
        float x[QUAD];
        load(x, a.x.data + static_cast<u64>(quad) * QUAD);
#pragma unroll
        for (int i = 0; i < QUAD; ++i) sums[i] += x[i] * x[i];
    }
    float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    if (blockIdx.x == 0 && threadIdx.x < a.size % QUAD) {
        const float x = a.x.data[quads * QUAD + threadIdx.x];
        sum += x * x;
    }
    __shared__ float sums_of_warps[THREADS / WARP];
    sum = block_sum(sum, sums_of_warps);
    if (threadIdx.x == 0) a.partial_sums.data[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) norm_total(const __grid_constant__ NormTotalArgs a) {
    static_assert(PARTIAL_SUMS == THREADS * QUAD);
    float x[QUAD];
    load(x, a.partial_sums.data + threadIdx.x * QUAD);
    __shared__ float sums_of_warps[THREADS / WARP];
    const float sum = block_sum((x[0] + x[1]) + (x[2] + x[3]), sums_of_warps);
    if (threadIdx.x == 0) *a.norm.data = sqrtf(sum);
}
