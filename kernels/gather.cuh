// Rows that do not start at multiples of 16 bytes, or are not whole vectors long.
#pragma once
#include "common.cuh"

// Elements from memory as 16 bytes; those beyond `count` are zeros.
__device__ inline uint4 gather(const bf16 *from, u32 count) {
    u32 words[VECTOR / 2];
#pragma unroll
    for (u32 i = 0; i < VECTOR / 2; ++i) {
        const u32 low = 2 * i < count ? from[2 * i].bits : 0, high = 2 * i + 1 < count ? from[2 * i + 1].bits : 0;
        words[i] = low | high << 16;
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}
