// scatter: y[ids[i]] = x[i], rows to where an index says. No index comes twice.
//
// One thread for VECTOR columns of one row; grid [count, blocks of columns]. Bytes moved: x once and as much of y.
// It belongs to inference and has no backward pass.
#include "common.cuh"

struct ScatterArgs {
    In<u32> ids;  // [1, count]
    In<bf16> x;   // [count, width]
    Out<bf16> y;  // [rows, width]
    u32 width, vector;
};
static_assert(sizeof(ScatterArgs) == 56);

constexpr u32 THREADS = 128;

template <int N> __device__ void copy(const ScatterArgs &a) {
    const u32 column = (blockIdx.y * THREADS + threadIdx.x) * N;
    if (column >= a.width) return;
    float x[N];
    load(x, a.x.row(blockIdx.x) + column);
    store(a.y.row(a.ids.data[blockIdx.x]) + column, x);
}

extern "C" __global__ void __launch_bounds__(THREADS) scatter(const __grid_constant__ ScatterArgs a) {
    a.vector == VECTOR ? copy<VECTOR>(a) : copy<1>(a);
}
