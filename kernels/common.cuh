// What all kernels share: number types, views, vectors of 16 bytes, and reductions over a warp.
#pragma once
#include "ptx.cuh"

// ---- Views: a matrix in device memory. Twins of `In` and `Out` in src/device/cuda/kernel.rs.

template <class T> struct In {
    const T *data;  // row after row; null if absent
    u32 pitch;      // elements from one row to the next
    u32 unused;

    __device__ bool present() const { return data != nullptr; }
    __device__ const T *row(u32 index) const { return data + static_cast<u64>(index) * pitch; }
};

template <class T> struct Out {
    T *data;
    u32 pitch;
    u32 unused;

    __device__ bool present() const { return data != nullptr; }
    __device__ T *row(u32 index) const { return data + static_cast<u64>(index) * pitch; }
};

static_assert(sizeof(In<bf16>) == 16 && sizeof(Out<float>) == 16);

// Whether a result replaces what stands in its place or is added to it: twin of `device::Write`.
enum class Write : u32 { Replace = 0, Add = 1 };

// Along what the rows of a product's operand in memory run: along k, over which is summed, or along m or n.
enum class Major { K, MN };

// ---- Vectors. Kernels that stream memory move 16 bytes at a time where the host found all addresses,
// pitches and widths fit for it (`vector_width` in kernel.rs), and single elements where not. N says which.

// Elements in 16 bytes.
constexpr int VECTOR = 8;
// Elements in 16 bytes of float.
constexpr int QUAD = 4;

__device__ inline void unpack(float (&to)[VECTOR], uint4 words) {
    unpack(to[0], to[1], words.x);
    unpack(to[2], to[3], words.y);
    unpack(to[4], to[5], words.z);
    unpack(to[6], to[7], words.w);
}

template <int N> __device__ void load(float (&to)[N], const bf16 *from) {
    if constexpr (N == 1) {
        to[0] = to_float(*from);
    } else {
        static_assert(N == VECTOR);
        unpack(to, *reinterpret_cast<const uint4 *>(from));
    }
}

template <int N> __device__ void store(bf16 *to, const float (&from)[N]) {
    if constexpr (N == 1) {
        *to = to_bf16(from[0]);
    } else if constexpr (N == QUAD) {
        *reinterpret_cast<uint2 *>(to) = make_uint2(pack(from[0], from[1]), pack(from[2], from[3]));
    } else {
        static_assert(N == VECTOR);
        *reinterpret_cast<uint4 *>(to) = make_uint4(pack(from[0], from[1]), pack(from[2], from[3]),
                                                    pack(from[4], from[5]), pack(from[6], from[7]));
    }
}

template <int N> __device__ void load(float (&to)[N], const float *from) {
    if constexpr (N == 1) {
        to[0] = *from;
    } else {
        static_assert(N % QUAD == 0);
#pragma unroll
        for (int i = 0; i < N; i += QUAD) {
            const float4 quad = *reinterpret_cast<const float4 *>(from + i);
            to[i] = quad.x, to[i + 1] = quad.y, to[i + 2] = quad.z, to[i + 3] = quad.w;
        }
    }
}

template <int N> __device__ void store(float *to, const float (&from)[N]) {
    if constexpr (N == 1) {
        *to = from[0];
    } else {
        static_assert(N % QUAD == 0);
#pragma unroll
        for (int i = 0; i < N; i += QUAD)
            *reinterpret_cast<float4 *>(to + i) = make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
    }
}

// ---- Warps

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

__device__ inline u32 lane_index() { return threadIdx.x % WARP; }
__device__ inline u32 warp_index() { return threadIdx.x / WARP; }

// The sum over the warp's lanes, the same bits in each.
__device__ inline float warp_sum(float x) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

// The largest over the warp's lanes.
__device__ inline float warp_max(float x) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

// ---- Blocks

// The sum over a block of so many warps, in an order that depends on nothing else; whole in its first warp.
template <u32 WARPS> __device__ float block_sum(float x, float (&sums)[WARPS]) {
    static_assert(WARPS <= WARP);
    x = warp_sum(x);
    if (lane_index() == 0) sums[warp_index()] = x;
    __syncthreads();
    return warp_sum(lane_index() < WARPS ? sums[lane_index()] : 0.0f);
}

__device__ constexpr u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }
