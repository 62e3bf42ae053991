// gate: y = f(a)·b with x = [a | b]; backward da = dy·b·f'(a), db = dy·f(a).
//
// A thread for a vector of y; grid [rows, blocks of columns]. Bytes moved: forward x and y once, backward x, dy and dx
// once. Nothing is saved but x.
#include "activation.cuh"

struct GateForwardArgs {
    In<bf16> x;   // [rows, 2·width]
    Out<bf16> y;  // [rows, width]
    Activation activation;
    u32 width, vector, unused;
};
static_assert(sizeof(GateForwardArgs) == 48);

struct GateBackwardArgs {
    In<bf16> x;    // [rows, 2·width]
    In<bf16> dy;   // [rows, width]
    Out<bf16> dx;  // [rows, 2·width]
    Activation activation;
    u32 width, vector, unused;
};
static_assert(sizeof(GateBackwardArgs) == 64);

constexpr u32 THREADS = 128;

template <int N> __device__ void forward(const GateForwardArgs &a) {
    const u32 row = blockIdx.x, column = (blockIdx.y * THREADS + threadIdx.x) * N;
    if (column >= a.width) return;
    const bf16 *x = a.x.row(row) + column;
    float y[N], factor[N];
    load(y, x);
    load(factor, x + a.width);
    activate(a.activation, y);
#pragma unroll
    for (int i = 0; i < N; ++i) y[i] *= factor[i];
    store(a.y.row(row) + column, y);
}

template <int N> __device__ void backward(const GateBackwardArgs &a) {
    const u32 row = blockIdx.x, column = (blockIdx.y * THREADS + threadIdx.x) * N;
    if (column >= a.width) return;
    const bf16 *x = a.x.row(row) + column;
    bf16 *dx = a.dx.row(row) + column;
    float gate[N], da[N], dy[N];
    load(gate, x);
    load(da, x + a.width);
    load(dy, a.dy.row(row) + column);
#pragma unroll
    for (int i = 0; i < N; ++i) da[i] *= dy[i];
    differentiate(a.activation, da, gate);
    store(dx, da);
    activate(a.activation, gate);
#pragma unroll
    for (int i = 0; i < N; ++i) dy[i] *= gate[i];
    store(dx + a.width, dy);
}

extern "C" __global__ void __launch_bounds__(THREADS) gate_forward(const __grid_constant__ GateForwardArgs a) {
    a.vector == VECTOR ? forward<VECTOR>(a) : forward<1>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS) gate_backward(const __grid_constant__ GateBackwardArgs a) {
    a.vector == VECTOR ? backward<VECTOR>(a) : backward<1>(a);
}
