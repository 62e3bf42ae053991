// activation: y = f(x), where y may be x itself; backward, in place, dx = dy·f'(x).
//
// A thread for a vector; grid [rows, blocks of columns]. Bytes moved: forward x and y once, backward x once and dy twice.
// Nothing is saved but x.
#include "activation.cuh"

struct ActivationForwardArgs {
    In<bf16> x;   // [rows, cols]
    Out<bf16> y;  // [rows, cols]
    Activation activation;
    u32 cols, vector, unused;
};
static_assert(sizeof(ActivationForwardArgs) == 48);

struct ActivationBackwardArgs {
    In<bf16> x;    // [rows, cols]
    Out<bf16> dy;  // [rows, cols], becomes dx
    Activation activation;
    u32 cols, vector, unused;
};
static_assert(sizeof(ActivationBackwardArgs) == 48);

constexpr u32 THREADS = 128;

template <int N> __device__ void forward(const ActivationForwardArgs &a) {
    const u32 row = blockIdx.x, column = (blockIdx.y * THREADS + threadIdx.x) * N;
    if (column >= a.cols) return;
    float x[N];
    load(x, a.x.row(row) + column);
    activate(a.activation, x);
    store(a.y.row(row) + column, x);
}

template <int N> __device__ void backward(const ActivationBackwardArgs &a) {
    const u32 row = blockIdx.x, column = (blockIdx.y * THREADS + threadIdx.x) * N;
    if (column >= a.cols) return;
    float x[N], dy[N];
    load(x, a.x.row(row) + column);
    load(dy, a.dy.row(row) + column);
    differentiate(a.activation, dy, x);
    store(a.dy.row(row) + column, dy);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    activation_forward(const __grid_constant__ ActivationForwardArgs a) {
    a.vector == VECTOR ? forward<VECTOR>(a) : forward<1>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    activation_backward(const __grid_constant__ ActivationBackwardArgs a) {
    a.vector == VECTOR ? backward<VECTOR>(a) : backward<1>(a);
}
