// What kernels with rings of stages that TMA fills and wgmma empties share: where operands lie in shared memory, and
// whose turn it is.
#pragma once
#include "common.cuh"
#include "ptx_sm90a.cuh"

constexpr u32 WARPGROUP = 128;
// Of a stage along k.
constexpr u32 DEPTH = 64;
// Bytes of a row in shared memory, which is what the swizzle permutes within; and of eight rows, after which it
// repeats.
constexpr u32 ROW = 128, ATOM = 8 * ROW;
static_assert(DEPTH * sizeof(bf16) == ROW);

// A stage's part of an operand: OUTER along m or n by DEPTH along k, in panels with rows of 128 bytes: one panel of
// rows along k, or panels of 64 along m or n whose rows are the k's.
template <Major MAJOR, u32 OUTER> struct Panels {
    static constexpr u32 BYTES = OUTER * DEPTH * sizeof(bf16);
    static constexpr u32 WIDTH = 64;                   // of a panel along m or n
    static constexpr u32 PANEL = DEPTH * ROW;
    static constexpr Transpose TRANSPOSE = MAJOR == Major::K ? Transpose::No : Transpose::Yes;

    static __device__ void fill(u32 panels, const TensorMap &from, u32 barrier, u32 outer, u32 k) {
        if constexpr (MAJOR == Major::K) {
            tma_load(panels, &from, barrier, k, outer);
        } else {
#pragma unroll
            for (u32 i = 0; i < OUTER / WIDTH; ++i) tma_load(panels + i * PANEL, &from, barrier, outer + i * WIDTH, k);
        }
    }

    // What wgmma is to read from `outer` (a multiple of 64) and `k` (of 16) on: address, the distance of panels, that
    // of eights of rows, all in units of 16 bytes, and the swizzle of 128 bytes.
    static __device__ u64 descriptor(u32 panels, u32 outer, u32 k) {
        const u32 start = MAJOR == Major::K ? panels + outer * ROW + k * sizeof(bf16)
                                            : panels + outer / WIDTH * PANEL + k * ROW;
        constexpr u64 LEADING = MAJOR == Major::K ? 1 : PANEL / 16, STRIDE = ATOM / 16, SWIZZLE_128 = 1;
        return start / 16 % (1 << 14) | LEADING << 16 | STRIDE << 32 | SWIZZLE_128 << 62;
    }
};

// A place in the ring, and how often it came round: the phase of the barriers.
struct Turn {
    u32 stage = 0, phase = 0;

    template <u32 STAGES> __device__ void advance() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
};

__device__ inline void wait(u32 barrier, u32 phase) {
    while (!mbarrier_try_wait_parity(barrier, phase)) {}
}
