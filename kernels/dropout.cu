// dropout: y = x·m/(1 − p), for the forward and the backward pass alike.
//
// A warp a row. Bytes moved: x once and y once; the mask is drawn, never stored.
#include "random.cuh"

struct DropoutApplyArgs {
    Dropout dropout;
    In<bf16> x;   // [rows, width]
    Out<bf16> y;  // [rows, width]
    u32 rows, width, vector;
};
static_assert(sizeof(DropoutApplyArgs) == 72);

constexpr u32 THREADS = 256;

template <int N> __device__ void apply(const DropoutApplyArgs &a, u32 row) {
    const uint2 key = a.dropout.load_key();
    for (u32 column = lane_index() * N; column < a.width; column += WARP * N) {
        float x[N], factor[N];
        load(x, a.x.row(row) + column);
        a.dropout.factors(factor, key, 0, row, column);
#pragma unroll
        for (int j = 0; j < N; ++j) x[j] *= factor[j];
        store(a.y.row(row) + column, x);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) dropout_apply(const __grid_constant__ DropoutApplyArgs a) {
    const u32 row = blockIdx.x * (THREADS / WARP) + warp_index();
    if (row >= a.rows) return;
    a.vector == VECTOR ? apply<VECTOR>(a, row) : apply<1>(a, row);
}
