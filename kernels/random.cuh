// Random numbers by their place: twin of src/random.rs, and of `Dropout` in src/ops/dropout/mod.rs.
#pragma once
#include "common.cuh"

// Philox4x32-10 (Salmon et al., 2011): four random words for each counter.
__device__ inline uint4 philox(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u32 high0 = __umulhi(0xd2511f53u, counter.x), low0 = 0xd2511f53u * counter.x;
        const u32 high1 = __umulhi(0xcd9e8d57u, counter.z), low1 = 0xcd9e8d57u * counter.z;
        counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
        key.x += 0x9e3779b9u;
        key.y += 0xbb67ae85u;
    }
    return counter;
}

// Dropout of one place in the graph. Twin of `DropoutArgs` in src/ops/dropout/cuda.rs.
struct Dropout {
    const u32 *key;  // [2]: seed and step, which change between replays; null without dropout
    u32 site;        // which place of the graph
    u32 threshold;   // words below it drop their element
    float scale;     // of what is kept: 1/(1 − probability)
    u32 unused;

    __device__ bool present() const { return key != nullptr; }
    __device__ uint2 load_key() const { return make_uint2(key[0], key[1]); }
    // Words of the elements of this row that have this col / 4, in a matrix of this head.
    __device__ uint4 words(uint2 key, u32 head, u32 row, u32 col) const {
        return philox(make_uint4(col / 4, row, site, head), key);
    }
    // What an element is multiplied by.
    __device__ float factor(u32 word) const { return word >= threshold ? scale : 0.0f; }
    // What the N elements from (row, col) on are multiplied by; vectors start at a multiple of theirs.
    template <int N> __device__ void factors(float (&to)[N], uint2 key, u32 head, u32 row, u32 col) const {
        if constexpr (N == 1) {
            const uint4 draw = words(key, head, row, col);
            const u32 low = col % 2 == 0 ? draw.x : draw.y, high = col % 2 == 0 ? draw.z : draw.w;
            to[0] = factor(col % 4 < 2 ? low : high);
        } else {
            static_assert(N % 4 == 0);
#pragma unroll
            for (int i = 0; i < N; i += 4) {
                const uint4 draw = words(key, head, row, col + i);
                to[i] = factor(draw.x), to[i + 1] = factor(draw.y);
                to[i + 2] = factor(draw.z), to[i + 3] = factor(draw.w);
            }
        }
    }
};
static_assert(sizeof(Dropout) == 24);
