// fold: a layer norm's scale γ and shift β folded into the linear layer that reads it, W' = W∘γ and
// b' = b + W·β, and the gradients of all four from those of W' and b'.
//
// Forward, and the rows' part of the backward pass (dW = dW'∘γ + db'⊗β, db = db'): a warp a row. The
// columns' part (dγ = Σ over rows of W∘dW', dβ = Wᵀ·db'): a block has 4 vectors of columns and 64 threads
// a vector, each summing every 64th row; their sums are added in the order of the threads.
// Bytes moved: W and W' once forward; W and dW' twice and dW to and fro backward. Nothing is saved.
#include "common.cuh"

struct FoldForwardArgs {
    In<bf16> weight;         // [out, in]
    In<bf16> bias;           // [1, out]
    In<bf16> norm_weight;    // [1, in]
    In<bf16> norm_bias;      // [1, in]
    Out<bf16> folded_weight; // [out, in]
    Out<bf16> folded_bias;   // [1, out]
    u32 rows, width, vector, unused;
};
static_assert(sizeof(FoldForwardArgs) == 112);

struct FoldBackwardArgs {
    In<bf16> weight;          // [out, in]
    In<bf16> norm_weight;     // [1, in]
    In<bf16> norm_bias;       // [1, in]
    In<float> dfolded_weight; // [out, in]
    In<float> dfolded_bias;   // [1, out]
    Out<float> dweight;       // [out, in]
    Out<float> dbias;         // [1, out]
    Out<float> dnorm_weight;  // [1, in]
    Out<float> dnorm_bias;    // [1, in]
    u32 rows, width, vector, unused;
};
static_assert(sizeof(FoldBackwardArgs) == 160);

constexpr u32 THREADS = 256;
// Vectors of columns of a block, and threads of a vector.
constexpr u32 VECTORS = 4, GROUPS = THREADS / VECTORS;

template <int N> __device__ void forward(const FoldForwardArgs &a, u32 row) {
    float shift = 0.0f;
    for (u32 column = lane_index() * N; column < a.width; column += WARP * N) {
        float w[N], gamma[N], beta[N];
        load(w, a.weight.row(row) + column);
        load(gamma, a.norm_weight.data + column);
        load(beta, a.norm_bias.data + column);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            shift += w[i] * beta[i];
            w[i] *= gamma[i];
        }
        store(a.folded_weight.row(row) + column, w);
    }
    shift = warp_sum(shift);
    if (lane_index() == 0) a.folded_bias.data[row] = to_bf16(to_float(a.bias.data[row]) + shift);
}

template <int N> __device__ void backward_rows(const FoldBackwardArgs &a, u32 row) {
    const float db = a.dfolded_bias.data[row];
    for (u32 column = lane_index() * N; column < a.width; column += WARP * N) {
        float d[N], folded[N], gamma[N], beta[N];
        load(d, a.dweight.row(row) + column);
        load(folded, a.dfolded_weight.row(row) + column);
        load(gamma, a.norm_weight.data + column);
        load(beta, a.norm_bias.data + column);
#pragma unroll
        for (int i = 0; i < N; ++i) d[i] += folded[i] * gamma[i] + db * beta[i];
        store(a.dweight.row(row) + column, d);
    }
    if (lane_index() == 0) a.dbias.data[row] += db;
}

template <int N> __device__ void backward_columns(const FoldBackwardArgs &a) {
    __shared__ float sums[2][GROUPS][VECTORS * VECTOR]; // of γ and β
    const u32 vector = threadIdx.x % VECTORS, group = threadIdx.x / VECTORS;
    const u32 first = blockIdx.x * VECTORS * N, column = first + vector * N;
    float gamma[N] = {}, beta[N] = {};
    if (column < a.width) {
        for (u32 row = group; row < a.rows; row += GROUPS) {
            float w[N], folded[N];
            load(w, a.weight.row(row) + column);
            load(folded, a.dfolded_weight.row(row) + column);
            const float db = a.dfolded_bias.data[row];
#pragma unroll
            for (int i = 0; i < N; ++i) {
                gamma[i] += w[i] * folded[i];
                beta[i] += w[i] * db;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        sums[0][group][vector * N + i] = gamma[i];
        sums[1][group][vector * N + i] = beta[i];
    }
    __syncthreads();
    // A thread for each of the two sums of a column.
    constexpr u32 COLUMNS = VECTORS * N;
    const u32 which = threadIdx.x / COLUMNS, offset = threadIdx.x % COLUMNS;
    if (which >= 2 || first + offset >= a.width) return;
    float sum = 0.0f;
    for (u32 i = 0; i < GROUPS; ++i) sum += sums[which][i][offset];
    (which == 0 ? a.dnorm_weight : a.dnorm_bias).data[first + offset] += sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) fold_forward(const __grid_constant__ FoldForwardArgs a) {
    const u32 row = blockIdx.x * (THREADS / WARP) + warp_index();
    if (row >= a.rows) return;
    a.vector == VECTOR ? forward<VECTOR>(a, row) : forward<1>(a, row);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    fold_backward_rows(const __grid_constant__ FoldBackwardArgs a) {
    const u32 row = blockIdx.x * (THREADS / WARP) + warp_index();
    if (row >= a.rows) return;
    a.vector == VECTOR ? backward_rows<VECTOR>(a, row) : backward_rows<1>(a, row);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    fold_backward_columns(const __grid_constant__ FoldBackwardArgs a) {
    a.vector == VECTOR ? backward_columns<VECTOR>(a) : backward_columns<1>(a);
}
