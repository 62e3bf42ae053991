// pool: y[g] = mean of x[g·size .. (g + 1)·size], the mean over each group of consecutive rows.
//
// Forward and backward: one thread for VECTOR columns of one group; grid [groups, blocks of columns].
// Bytes moved: x once and y once. Nothing is saved: the gradient needs neither.
#include "common.cuh"

struct PoolForwardArgs {
    In<bf16> x;   // [groups·size, width]
    Out<bf16> y;  // [groups, width]
    u32 size, width, vector;
};
static_assert(sizeof(PoolForwardArgs) == 48);

struct PoolBackwardArgs {
    In<bf16> dy;   // [groups, width]
    Out<bf16> dx;  // [groups·size, width]
    u32 size, width, vector;
};
static_assert(sizeof(PoolBackwardArgs) == 48);

constexpr u32 THREADS = 128;

template <int N> __device__ void forward(const PoolForwardArgs &a) {
    const u32 group = blockIdx.x, column = (blockIdx.y * THREADS + threadIdx.x) * N;
    if (column >= a.width) return;
    float sum[N] = {};
    for (u32 i = 0; i < a.size; ++i) {
        float x[N];
        load(x, a.x.row(group * a.size + i) + column);
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] += x[j];
    }
#pragma unroll
    for (int j = 0; j < N; ++j) sum[j] /= static_cast<float>(a.size);
    store(a.y.row(group) + column, sum);
}

template <int N> __device__ void backward(const PoolBackwardArgs &a) {
    const u32 group = blockIdx.x, column = (blockIdx.y * THREADS + threadIdx.x) * N;
    if (column >= a.width) return;
    float dx[N];
    load(dx, a.dy.row(group) + column);
#pragma unroll
    for (int j = 0; j < N; ++j) dx[j] /= static_cast<float>(a.size);
    for (u32 i = 0; i < a.size; ++i) store(a.dx.row(group * a.size + i) + column, dx);
}

extern "C" __global__ void __launch_bounds__(THREADS) pool_forward(const __grid_constant__ PoolForwardArgs a) {
    a.vector == VECTOR ? forward<VECTOR>(a) : forward<1>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS) pool_backward(const __grid_constant__ PoolBackwardArgs a) {
    a.vector == VECTOR ? backward<VECTOR>(a) : backward<1>(a);
}
