// layer_norm: s = dropout(x) + r, y = γ·(s − mean)·inverse + β with inverse = 1/√(var + ε), over each row.
//
// A warp a row. A row of whole vectors that fits into the warp's registers is read once; any other is
// formed anew in each pass, out of the caches. The variance is summed from the differences to the mean.
// Saved, if asked for: s, and mean and inverse of each row.
//
// Bytes moved: forward x, r, s and y once; backward s, dy, ds and dx once, and the partial sums, which are
// `blocks` rows however many rows there are. Sums over rows have a fixed order: each warp's rows, a block's
// warps, the blocks.
#include "random.cuh"

struct LayerNormForwardArgs {
    Dropout dropout;
    In<bf16> x;             // [rows, width]
    In<bf16> residual;      // [rows, width]
    In<bf16> weight;        // [1, width]
    In<bf16> bias;          // [1, width]
    Out<bf16> sum;          // [rows, width]
    Out<float> statistics;  // [rows, 2]
    Out<bf16> y;            // [rows, width]
    u32 rows, width, vector;
    float epsilon;
};
static_assert(sizeof(LayerNormForwardArgs) == 152);

struct LayerNormBackwardArgs {
    Dropout dropout;
    In<bf16> sum;          // [rows, width]
    In<float> statistics;  // [rows, 2]
    In<bf16> weight;       // [1, width]
    In<bf16> dy;           // [rows, width]
    Out<bf16> dsum;        // [rows, width]
    Out<bf16> dx;          // [rows, width]
    Out<float> partials;   // [blocks, 2·width]: dγ and dβ of a block's rows
    u32 rows, width, vector, unused;
};
static_assert(sizeof(LayerNormBackwardArgs) == 152);

struct LayerNormParametersArgs {
    In<float> partials;  // [blocks, 2·width]
    Out<float> dweight;  // [1, width]
    Out<float> dbias;    // [1, width]
    u32 blocks, width;
};
static_assert(sizeof(LayerNormParametersArgs) == 56);

// Vectors of a lane in rows up to 768 and up to 1536 wide: the model's are 768, 1024 and 1408.
constexpr int NARROW = 3, WIDE = 6;

__device__ constexpr u32 widest(int vectors) { return vectors * WARP * VECTOR; }

// Calls body(i, column) for a lane's i-th vector of a row, of VECTORS at most, or with 0 for all of them
// as the 0th.
template <int N, int VECTORS, class Body> __device__ void for_each_vector(u32 width, Body body) {
    if constexpr (VECTORS > 0) {
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) {
            const u32 column = (i * WARP + lane_index()) * N;
            if (column < width) body(i, column);
        }
    } else {
        for (u32 column = lane_index() * N; column < width; column += WARP * N) body(0, column);
    }
}

// ---- Forward: grid [rows / warps of a block].

constexpr u32 FORWARD_THREADS = 256;

template <int N, int VECTORS> __device__ void forward(const LayerNormForwardArgs &a, u32 row) {
    const uint2 key = a.dropout.present() ? a.dropout.load_key() : make_uint2(0, 0);
    const float scale = 1.0f / static_cast<float>(a.width);
    float s[VECTORS > 0 ? VECTORS : 1][N];
    const auto form = [&](float(&sum)[N], u32 column) {
        load(sum, a.x.row(row) + column);
        if (a.dropout.present()) {
            float factor[N];
            a.dropout.factors(factor, key, 0, row, column);
#pragma unroll
            for (int j = 0; j < N; ++j) sum[j] *= factor[j];
        }
        if (a.residual.present()) {
            float residual[N];
            load(residual, a.residual.row(row) + column);
#pragma unroll
            for (int j = 0; j < N; ++j) sum[j] += residual[j];
        }
    };

    float total = 0.0f;
    for_each_vector<N, VECTORS>(a.width, [&](int i, u32 column) {
        form(s[i], column);
        if (a.sum.present()) store(a.sum.row(row) + column, s[i]);
#pragma unroll
        for (int j = 0; j < N; ++j) total += s[i][j];
    });
    const float mean = warp_sum(total) * scale;

    float squares = 0.0f;
    for_each_vector<N, VECTORS>(a.width, [&](int i, u32 column) {
        if constexpr (VECTORS == 0) form(s[i], column);
#pragma unroll
        for (int j = 0; j < N; ++j) squares += (s[i][j] - mean) * (s[i][j] - mean);
    });
    const float inverse = 1.0f / sqrtf(warp_sum(squares) * scale + a.epsilon);

    for_each_vector<N, VECTORS>(a.width, [&](int i, u32 column) {
        if constexpr (VECTORS == 0) form(s[i], column);
        float weight[N], bias[N];
        load(weight, a.weight.data + column);
        load(bias, a.bias.data + column);
#pragma unroll
        for (int j = 0; j < N; ++j) s[i][j] = fmaf((s[i][j] - mean) * inverse, weight[j], bias[j]);
        store(a.y.row(row) + column, s[i]);
    });
    if (a.statistics.present() && lane_index() == 0) {
        a.statistics.row(row)[0] = mean;
        a.statistics.row(row)[1] = inverse;
    }
}

extern "C" __global__ void __launch_bounds__(FORWARD_THREADS, 2)
    layer_norm_forward(const __grid_constant__ LayerNormForwardArgs a) {
    const u32 row = blockIdx.x * (FORWARD_THREADS / WARP) + warp_index();
    if (row >= a.rows) return;
    if (a.vector != VECTOR) {
        forward<1, 0>(a, row);
    } else if (a.width <= widest(NARROW)) {
        forward<VECTOR, NARROW>(a, row);
    } else if (a.width <= widest(WIDE)) {
        forward<VECTOR, WIDE>(a, row);
    } else {
        forward<VECTOR, 0>(a, row);
    }
}

// ---- Backward: grid [blocks], each with an equal share of the rows. With x̂ = (s − mean)·inverse and
// g = γ·dy: ds = (g − mean(g) − x̂·mean(g·x̂))·inverse, dγ = Σ dy·x̂, dβ = Σ dy.

constexpr u32 BACKWARD_THREADS = 128;
constexpr u32 BACKWARD_WARPS = BACKWARD_THREADS / WARP;

// A block's rows.
struct Share {
    u32 first, end;

    __device__ explicit Share(u32 rows) {
        const u32 most = ceil_div(rows, gridDim.x);
        first = min(blockIdx.x * most, rows);
        end = min(first + most, rows);
    }
};

// A row's mean and inverse.
struct Statistics {
    float mean, inverse;

    __device__ Statistics(const LayerNormBackwardArgs &a, u32 row)
        : mean(a.statistics.row(row)[0]), inverse(a.statistics.row(row)[1]) {}
    __device__ float normalized(float s) const { return (s - mean) * inverse; }
};

// ds, and dx if there was dropout, in the place of g.
template <int N>
__device__ void store_gradients(const LayerNormBackwardArgs &a, uint2 key, u32 row, u32 column, float (&ds)[N]) {
    store(a.dsum.row(row) + column, ds);
    if (!a.dropout.present()) return;
    float factor[N];
    a.dropout.factors(factor, key, 0, row, column);
#pragma unroll
    for (int j = 0; j < N; ++j) ds[j] *= factor[j];
    store(a.dx.row(row) + column, ds);
}

// Rows of up to widest(VECTORS): s and dy are read once, and each lane sums dγ and dβ of its columns.
template <int VECTORS> __device__ void backward_in_registers(const LayerNormBackwardArgs &a) {
    __shared__ __align__(16) float block_sums[2 * widest(VECTORS)];
    const uint2 key = a.dropout.present() ? a.dropout.load_key() : make_uint2(0, 0);
    const float scale = 1.0f / static_cast<float>(a.width);
    float dweight[VECTORS][VECTOR] = {}, dbias[VECTORS][VECTOR] = {};
    const Share share(a.rows);
    for (u32 row = share.first + warp_index(); row < share.end; row += BACKWARD_WARPS) {
        // Kept as they are stored, which takes half the registers.
        uint4 s_words[VECTORS], dy_words[VECTORS];
        for_each_vector<VECTOR, VECTORS>(a.width, [&](int i, u32 column) {
            s_words[i] = *reinterpret_cast<const uint4 *>(a.sum.row(row) + column);
            dy_words[i] = *reinterpret_cast<const uint4 *>(a.dy.row(row) + column);
        });
        const Statistics statistics(a, row);
        float sum_g = 0.0f, sum_gx = 0.0f;
        for_each_vector<VECTOR, VECTORS>(a.width, [&](int i, u32 column) {
            float s[VECTOR], dy[VECTOR], weight[VECTOR];
            unpack(s, s_words[i]);
            unpack(dy, dy_words[i]);
            load(weight, a.weight.data + column);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                const float normalized = statistics.normalized(s[j]), g = weight[j] * dy[j];
                sum_g += g;
                sum_gx += g * normalized;
                dweight[i][j] += dy[j] * normalized;
                dbias[i][j] += dy[j];
            }
        });
        const float mean_g = warp_sum(sum_g) * scale, mean_gx = warp_sum(sum_gx) * scale;
        for_each_vector<VECTOR, VECTORS>(a.width, [&](int i, u32 column) {
            float s[VECTOR], dy[VECTOR], weight[VECTOR];
            unpack(s, s_words[i]);
            unpack(dy, dy_words[i]);
            load(weight, a.weight.data + column);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                const float normalized = statistics.normalized(s[j]);
                dy[j] = (weight[j] * dy[j] - mean_g - normalized * mean_gx) * statistics.inverse;
            }
            store_gradients(a, key, row, column, dy);
        });
    }
    // γ and β are frozen.
    if (!a.partials.present()) return;
    // The warps add theirs one after the other.
    for (u32 warp = 0; warp < BACKWARD_WARPS; ++warp) {
        if (warp == warp_index()) {
            for_each_vector<VECTOR, VECTORS>(a.width, [&](int i, u32 column) {
                float *weight_sums = block_sums + column, *bias_sums = block_sums + widest(VECTORS) + column;
                if (warp > 0) {
                    float before[VECTOR];
                    load(before, weight_sums);
#pragma unroll
                    for (int j = 0; j < VECTOR; ++j) dweight[i][j] += before[j];
                    load(before, bias_sums);
#pragma unroll
                    for (int j = 0; j < VECTOR; ++j) dbias[i][j] += before[j];
                }
                store(weight_sums, dweight[i]);
                store(bias_sums, dbias[i]);
            });
        }
        __syncthreads();
    }
    float *to = a.partials.row(blockIdx.x);
    for (u32 column = threadIdx.x; column < a.width; column += BACKWARD_THREADS) {
        to[column] = block_sums[column];
        to[a.width + column] = block_sums[widest(VECTORS) + column];
    }
}

// Rows of any width: first ds by rows, then dγ and dβ by columns, out of the caches.
template <int N> __device__ void backward_in_loops(const LayerNormBackwardArgs &a) {
    const uint2 key = a.dropout.present() ? a.dropout.load_key() : make_uint2(0, 0);
    const float scale = 1.0f / static_cast<float>(a.width);
    const Share share(a.rows);
    for (u32 row = share.first + warp_index(); row < share.end; row += BACKWARD_WARPS) {
        const Statistics statistics(a, row);
        float sum_g = 0.0f, sum_gx = 0.0f, s[N], g[N], weight[N];
        const auto load_vector = [&](u32 column) {
            load(s, a.sum.row(row) + column);
            load(g, a.dy.row(row) + column);
            load(weight, a.weight.data + column);
#pragma unroll
            for (int j = 0; j < N; ++j) g[j] *= weight[j];
        };
        for_each_vector<N, 0>(a.width, [&](int, u32 column) {
            load_vector(column);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                sum_g += g[j];
                sum_gx += g[j] * statistics.normalized(s[j]);
            }
        });
        const float mean_g = warp_sum(sum_g) * scale, mean_gx = warp_sum(sum_gx) * scale;
        for_each_vector<N, 0>(a.width, [&](int, u32 column) {
            load_vector(column);
#pragma unroll
            for (int j = 0; j < N; ++j)
                g[j] = (g[j] - mean_g - statistics.normalized(s[j]) * mean_gx) * statistics.inverse;
            store_gradients(a, key, row, column, g);
        });
    }
    // γ and β are frozen.
    if (!a.partials.present()) return;
    float *to = a.partials.row(blockIdx.x);
    for (u32 column = threadIdx.x; column < a.width; column += BACKWARD_THREADS) {
        float dweight = 0.0f, dbias = 0.0f;
        for (u32 row = share.first; row < share.end; ++row) {
            const float dy = to_float(a.dy.row(row)[column]);
            dweight += dy * Statistics(a, row).normalized(to_float(a.sum.row(row)[column]));
            dbias += dy;
        }
        to[column] = dweight;
        to[a.width + column] = dbias;
    }
}

extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS)
    layer_norm_backward(const __grid_constant__ LayerNormBackwardArgs a) {
    if (a.vector != VECTOR) {
        backward_in_loops<1>(a);
    } else if (a.width <= widest(NARROW)) {
        backward_in_registers<NARROW>(a);
    } else {
        backward_in_loops<VECTOR>(a);
    }
}

// Rows from widest(NARROW) to widest(WIDE), apart because it takes twice the registers.
extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS)
    layer_norm_backward_wide(const __grid_constant__ LayerNormBackwardArgs a) {
    backward_in_registers<WIDE>(a);
}

// ---- dγ and dβ from the partial sums: a block for 32 of the 2·width columns, whose warps share the rows.

constexpr u32 PARAMETERS_WARPS = 8;

extern "C" __global__ void __launch_bounds__(PARAMETERS_WARPS *WARP)
    layer_norm_parameters(const __grid_constant__ LayerNormParametersArgs a) {
    __shared__ float sums[PARAMETERS_WARPS][WARP];
    const u32 column = blockIdx.x * WARP + lane_index();
    float sum = 0.0f;
    if (column < 2 * a.width) {
#pragma unroll 4
        for (u32 row = warp_index(); row < a.blocks; row += PARAMETERS_WARPS) sum += a.partials.row(row)[column];
    }
    sums[warp_index()][lane_index()] = sum;
    __syncthreads();
    if (warp_index() > 0 || column >= 2 * a.width) return;
    for (u32 warp = 1; warp < PARAMETERS_WARPS; ++warp) sum += sums[warp][lane_index()];
    float *to = column < a.width ? a.dweight.data + column : a.dbias.data + (column - a.width);
    *to += sum;
}
