// normalize: y = x/max(‖x‖, 1e-12) over each row; dx = (dy − x·⟨x, dy⟩/‖x‖²)/‖x‖, or dy/1e-12 below 1e-12.
//
// A warp a row; later passes over a row read it out of the cache. Bytes moved: forward x and y once, backward x, dy and
// dx once. Nothing is saved: the backward pass finds the length again.
#include "common.cuh"

struct NormalizeForwardArgs {
    In<bf16> x;   // [rows, width]
    Out<bf16> y;  // [rows, width]
    u32 rows, width, vector, unused;
};
static_assert(sizeof(NormalizeForwardArgs) == 48);

struct NormalizeBackwardArgs {
    In<bf16> x;    // [rows, width]
    In<bf16> dy;   // [rows, width]
    Out<bf16> dx;  // [rows, width]
    u32 rows, width, vector, unused;
};
static_assert(sizeof(NormalizeBackwardArgs) == 64);

constexpr u32 THREADS = 128;
// Twin of SMALLEST_LENGTH in src/ops/normalize/mod.rs.
constexpr float SMALLEST_LENGTH = 1e-12f;

// A comparison, not fmaxf, which would turn a NaN into a number.
__device__ float length_of(float squares) {
    const float length = sqrtf(warp_sum(squares));
    return length < SMALLEST_LENGTH ? SMALLEST_LENGTH : length;
}

template <int N> __device__ void forward(const NormalizeForwardArgs &a, u32 row) {
    float x[N], squares = 0.0f;
    for (u32 column = lane_index() * N; column < a.width; column += WARP * N) {
        load(x, a.x.row(row) + column);
#pragma unroll
        for (int j = 0; j < N; ++j) squares += x[j] * x[j];
    }
    const float inverse = 1.0f / length_of(squares);
    for (u32 column = lane_index() * N; column < a.width; column += WARP * N) {
        load(x, a.x.row(row) + column);
#pragma unroll
        for (int j = 0; j < N; ++j) x[j] *= inverse;
        store(a.y.row(row) + column, x);
    }
}

template <int N> __device__ void backward(const NormalizeBackwardArgs &a, u32 row) {
    float x[N], dy[N], squares = 0.0f, products = 0.0f;
    for (u32 column = lane_index() * N; column < a.width; column += WARP * N) {
        load(x, a.x.row(row) + column);
        load(dy, a.dy.row(row) + column);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            squares += x[j] * x[j];
            products += x[j] * dy[j];
        }
    }
    const float length = length_of(squares), inverse = 1.0f / length;
    // A length that counts as the smallest does not change with x.
    const float along = length == SMALLEST_LENGTH ? 0.0f : warp_sum(products) * inverse * inverse;
    for (u32 column = lane_index() * N; column < a.width; column += WARP * N) {
        load(x, a.x.row(row) + column);
        load(dy, a.dy.row(row) + column);
#pragma unroll
        for (int j = 0; j < N; ++j) dy[j] = (dy[j] - x[j] * along) * inverse;
        store(a.dx.row(row) + column, dy);
    }
}

__device__ u32 row_of_warp() { return blockIdx.x * (THREADS / WARP) + warp_index(); }

extern "C" __global__ void __launch_bounds__(THREADS)
    normalize_forward(const __grid_constant__ NormalizeForwardArgs a) {
    const u32 row = row_of_warp();
    if (row >= a.rows) return;
    a.vector == VECTOR ? forward<VECTOR>(a, row) : forward<1>(a, row);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    normalize_backward(const __grid_constant__ NormalizeBackwardArgs a) {
    const u32 row = row_of_warp();
    if (row >= a.rows) return;
    a.vector == VECTOR ? backward<VECTOR>(a, row) : backward<1>(a, row);
}
