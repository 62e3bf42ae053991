// rms_norm: y = s·γ·x·r with r = 1/√(mean(x²) + ε), over each row.
//
// A block a row, whose threads each have the same columns of every row. A row of up to VECTORS vectors a thread is read
// once; any other is read again in the second pass, out of the caches. Saved, if asked for: r of each row.
//
// Bytes moved: forward x and y once; backward x, dy and dx once (dx twice where it is added to), and the partial sums,
// which are `blocks` rows however many rows there are. Sums over rows have a fixed order: a block's rows, the blocks.
#include "common.cuh"

struct RmsNormForwardArgs {
    In<bf16> x;             // [rows, width]
    In<bf16> weight;        // [1, width]
    Out<float> statistics;  // [rows, 1]
    Out<bf16> y;            // [rows, width]
    u32 width, vector;
    float scale, epsilon;
};
static_assert(sizeof(RmsNormForwardArgs) == 80);

struct RmsNormBackwardArgs {
    In<bf16> x;            // [rows, width]
    In<float> statistics;  // [rows, 1]
    In<bf16> weight;       // [1, width]
    In<bf16> dy;           // [rows, width]
    Out<bf16> dx;          // [rows, width]
    Out<float> partials;   // [blocks, width]: dγ of a block's rows
    u32 rows, width, vector;
    float scale;
    Write write;
    u32 unused;
};
static_assert(sizeof(RmsNormBackwardArgs) == 120);

struct RmsNormParametersArgs {
    In<float> partials;  // [blocks, width]
    Out<float> dweight;  // [1, width]
    u32 blocks, width;
};
static_assert(sizeof(RmsNormParametersArgs) == 40);

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / WARP;
// Vectors of a thread in rows up to 6144 wide: language models' are 512 to 5120.
constexpr int VECTORS = 3;

__device__ constexpr u32 widest() { return VECTORS * THREADS * VECTOR; }

// Calls body(i, column) for a thread's i-th vector of a row, of COUNT at most, or with 0 for all of them as the 0th.
template <int N, int COUNT, class Body> __device__ void for_each_vector(u32 width, Body body) {
    if constexpr (COUNT > 0) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const u32 column = (i * THREADS + threadIdx.x) * N;
            if (column < width) body(i, column);
        }
    } else {
        for (u32 column = threadIdx.x * N; column < width; column += THREADS * N) body(0, column);
    }
}

// ---- Forward: grid [rows].

template <int N, int COUNT> __device__ void forward(const RmsNormForwardArgs &a) {
    __shared__ float sums[WARPS];
    const bf16 *row = a.x.row(blockIdx.x);
    float x[COUNT > 0 ? COUNT : 1][N], squares = 0.0f;
    for_each_vector<N, COUNT>(a.width, [&](int i, u32 column) {
        load(x[i], row + column);
#pragma unroll
        for (int j = 0; j < N; ++j) squares += x[i][j] * x[i][j];
    });
    const float mean = block_sum(squares, sums) * (1.0f / static_cast<float>(a.width));
    const float inverse = 1.0f / sqrtf(mean + a.epsilon), factor = a.scale * inverse;
    for_each_vector<N, COUNT>(a.width, [&](int i, u32 column) {
        if constexpr (COUNT == 0) load(x[i], row + column);
        float weight[N];
        load(weight, a.weight.data + column);
#pragma unroll
        for (int j = 0; j < N; ++j) x[i][j] *= factor * weight[j];
        store(a.y.row(blockIdx.x) + column, x[i]);
    });
    if (a.statistics.present() && threadIdx.x == 0) *a.statistics.row(blockIdx.x) = inverse;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm_forward(const __grid_constant__ RmsNormForwardArgs a) {
    if (a.vector != VECTOR) {
        forward<1, 0>(a);
    } else if (a.width <= widest()) {
        forward<VECTOR, VECTORS>(a);
    } else {
        forward<VECTOR, 0>(a);
    }
}

// ---- Backward: grid [blocks], no more than rows. With x̂ = r·x and g = s·γ·dy: dx = r·(g − x̂·mean(g·x̂)), dγ = Σ s·dy·x̂.

template <int N, int COUNT> __device__ void backward(const RmsNormBackwardArgs &a) {
    // One row's sums are read while the next one's are written.
    __shared__ float sums[2][WARPS];
    constexpr int KEPT = COUNT > 0 ? COUNT : 1;
    float x[KEPT][N], dy[KEPT][N], dweight[KEPT][N] = {};
    const float share = 1.0f / static_cast<float>(a.width);
    const bool trained = a.partials.present();
    u32 turn = 0;
    for (u32 row = blockIdx.x; row < a.rows; row += gridDim.x, turn ^= 1) {
        const auto load_vector = [&](int i, u32 column) {
            load(x[i], a.x.row(row) + column);
            load(dy[i], a.dy.row(row) + column);
        };
        float products = 0.0f;
        for_each_vector<N, COUNT>(a.width, [&](int i, u32 column) {
            load_vector(i, column);
            float weight[N];
            load(weight, a.weight.data + column);
#pragma unroll
            for (int j = 0; j < N; ++j) products += weight[j] * dy[i][j] * x[i][j];
        });
        const float inverse = *a.statistics.row(row), factor = a.scale * inverse;
        const float along = block_sum(products, sums[turn]) * share * factor * inverse * inverse;
        for_each_vector<N, COUNT>(a.width, [&](int i, u32 column) {
            if constexpr (COUNT == 0) load_vector(i, column);
            bf16 *to = a.dx.row(row) + column;
            float weight[N], dx[N] = {};
            load(weight, a.weight.data + column);
            if (a.write == Write::Add) load(dx, to);
#pragma unroll
            for (int j = 0; j < N; ++j) dx[j] += weight[j] * dy[i][j] * factor - x[i][j] * along;
            store(to, dx);
            if constexpr (COUNT == 0) {
                // Too many columns for registers: the thread's own ones of the partial sums.
                if (!trained) return;
                float *sum = a.partials.row(blockIdx.x) + column;
                if (row == blockIdx.x) {
#pragma unroll
                    for (int j = 0; j < N; ++j) dweight[i][j] = 0.0f;
                } else {
                    load(dweight[i], sum);
                }
#pragma unroll
                for (int j = 0; j < N; ++j) dweight[i][j] += dy[i][j] * (x[i][j] * factor);
                store(sum, dweight[i]);
            } else {
#pragma unroll
                for (int j = 0; j < N; ++j) dweight[i][j] += dy[i][j] * (x[i][j] * factor);
            }
        });
    }
    if constexpr (COUNT > 0) {
        if (!trained) return;
        for_each_vector<N, COUNT>(
            a.width, [&](int i, u32 column) { store(a.partials.row(blockIdx.x) + column, dweight[i]); });
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm_backward(const __grid_constant__ RmsNormBackwardArgs a) {
    if (a.vector != VECTOR) {
        backward<1, 0>(a);
    } else if (a.width <= widest()) {
        backward<VECTOR, VECTORS>(a);
    } else {
        backward<VECTOR, 0>(a);
    }
}

// ---- dγ from the partial sums: a block for 32 columns, whose warps share the rows.

extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm_parameters(const __grid_constant__ RmsNormParametersArgs a) {
    __shared__ float sums[WARPS][WARP];
    const u32 column = blockIdx.x * WARP + lane_index();
    float sum = 0.0f;
    if (column < a.width) {
#pragma unroll 4
        for (u32 row = warp_index(); row < a.blocks; row += WARPS) sum += a.partials.row(row)[column];
    }
    sums[warp_index()][lane_index()] = sum;
    __syncthreads();
    if (warp_index() > 0 || column >= a.width) return;
    for (u32 warp = 1; warp < WARPS; ++warp) sum += sums[warp][lane_index()];
    a.dweight.data[column] += sum;
}
