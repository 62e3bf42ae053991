// cross_entropy: the mean over rows of lse − (1 − ε)·x_y − ε/V·Σ x, lse = ln Σ exp x, over a row x of V logits
// with label y; and its gradient w/rows·(exp(x − lse) − (1 − ε)·[y] − ε/V), in place. Rows whose label is IGNORED
// have no loss and no gradient, and the others alone are counted.
//
// cross_entropy_forward: a block a row, which it reads once, with a running maximum. Bytes moved: x once.
// Saves lse, the row's loss and where its largest logit stands.
// cross_entropy_mean: one block, sums in an order that depends on the number of rows alone.
// cross_entropy_backward: a block a row. Bytes moved: x once and dx once.
//
// V is the model's vocabulary, 30523, no multiple of a vector: a row is cut at multiples of 16 bytes.
#include "common.cuh"

struct CrossEntropyForwardArgs {
    In<bf16> logits;       // [rows, width]
    In<u32> labels;        // [1, rows]
    Out<float> lse;        // [1, rows]
    Out<float> row_losses; // [1, rows]
    Out<u32> predictions;  // [1, rows]
    u32 width;
    float at_label;         // 1 − ε
    float at_all;           // ε/V
    u32 unused;
};
static_assert(sizeof(CrossEntropyForwardArgs) == 96);

struct CrossEntropyMeanArgs {
    In<float> row_losses;  // [1, rows]
    In<u32> predictions;   // [1, rows]
    In<u32> labels;        // [1, rows]
    Out<float> loss;       // [1, 1]
    Out<u32> correct;      // [1, 1]
    u32 rows;
    u32 unused;
};
static_assert(sizeof(CrossEntropyMeanArgs) == 88);

struct CrossEntropyBackwardArgs {
    In<u32> labels;    // [1, rows]
    In<float> lse;     // [1, rows]
    Out<bf16> logits;  // [rows, width]
    u32 rows, width;
    float weight;       // w
    float at_label;     // 1 − ε
    float at_all;       // ε/V
    u32 unused;
};
static_assert(sizeof(CrossEntropyBackwardArgs) == 72);

// Twin of `IGNORED` in src/ops/cross_entropy/mod.rs.
constexpr u32 IGNORED = 0xffffffffu;

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / WARP;
constexpr u32 MEAN_THREADS = 1024;
constexpr float LOG2_E = 1.4426950408889634f;
// Below any logit, and a number even in units of ln 2.
constexpr float LOWEST = -1e38f;

// A row's vectors at multiples of 16 bytes. Fewer than a vector of elements stand before them and after.
struct Cut {
    u32 head;     // elements before the first vector
    u32 vectors;  // whole vectors
    u32 singles;  // elements before and after

    __device__ Cut(const bf16 *row, u32 width) {
        const u32 past = static_cast<u32>(reinterpret_cast<u64>(row) / sizeof(bf16) % VECTOR);
        head = min((VECTOR - past) % VECTOR, width);
        vectors = (width - head) / VECTOR;
        singles = width - vectors * VECTOR;
    }
    // First column of a vector.
    __device__ u32 column(u32 vector) const { return head + vector * VECTOR; }
    // Column of a single element.
    __device__ u32 single(u32 index) const { return index < head ? index : index + vectors * VECTOR; }
};

// What has been seen of a row.
struct Seen {
    float largest;  // of the logits
    u32 where;      // its column, the first of equals
    float sum;      // Σ exp(x − largest)
    float total;    // Σ x

    __device__ static Seen nothing() { return {LOWEST, 0xffffffffu, 0.0f, 0.0f}; }
    __device__ static Seen one(float x, u32 column) { return {x, column, 1.0f, x}; }

    // A vector, whose columns come after all that were seen. NaN is no maximum, but makes the sum NaN.
    __device__ void add(const float (&x)[VECTOR], u32 column) {
        float peak = x[0];
#pragma unroll
        for (int i = 1; i < VECTOR; ++i) peak = fmaxf(peak, x[i]);
        if (peak > largest) {
            sum *= ex2((largest - peak) * LOG2_E);
            largest = peak;
#pragma unroll
            for (int i = VECTOR - 1; i >= 0; --i)
                if (x[i] == peak) where = column + i;
        }
        const float shift = largest * LOG2_E;
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            sum += ex2(x[i] * LOG2_E - shift);
            total += x[i];
        }
    }

    __device__ void merge(const Seen &other) {
        const float peak = fmaxf(largest, other.largest);
        sum = sum * ex2((largest - peak) * LOG2_E) + other.sum * ex2((other.largest - peak) * LOG2_E);
        total += other.total;
        if (other.largest > largest || (other.largest == largest && other.where < where)) where = other.where;
        largest = peak;
    }

    // What lane `lane_index() + step` has seen.
    __device__ Seen down(u32 step) const {
        return {__shfl_down_sync(ALL_LANES, largest, step), __shfl_down_sync(ALL_LANES, where, step),
                __shfl_down_sync(ALL_LANES, sum, step), __shfl_down_sync(ALL_LANES, total, step)};
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_forward(const __grid_constant__ CrossEntropyForwardArgs a) {
    const bf16 *row = a.logits.row(blockIdx.x);  // [width]
    const Cut cut(row, a.width);
    Seen seen = Seen::nothing();
#pragma unroll 4
    for (u32 vector = threadIdx.x; vector < cut.vectors; vector += THREADS) {
        float x[VECTOR];
        load(x, row + cut.column(vector));
        seen.add(x, cut.column(vector));
    }
    if (threadIdx.x < cut.singles) {
        const u32 column = cut.single(threadIdx.x);
        seen.merge(Seen::one(to_float(row[column]), column));
    }
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) seen.merge(seen.down(step));
    __shared__ Seen warps[WARPS];
    if (lane_index() == 0) warps[warp_index()] = seen;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (u32 warp = 1; warp < WARPS; ++warp) seen.merge(warps[warp]);
    const float lse = seen.largest + logf(seen.sum);
    const u32 label = a.labels.data[blockIdx.x];
    float loss = 0.0f;
    if (label != IGNORED) loss = lse - a.at_label * to_float(row[label]) - a.at_all * seen.total;
    a.lse.data[blockIdx.x] = lse;
    a.row_losses.data[blockIdx.x] = loss;
    a.predictions.data[blockIdx.x] = seen.where;
}

extern "C" __global__ void __launch_bounds__(MEAN_THREADS)
    cross_entropy_mean(const __grid_constant__ CrossEntropyMeanArgs a) {
    float loss = 0.0f;
    u32 correct = 0, counted = 0;
    for (u32 row = threadIdx.x; row < a.rows; row += MEAN_THREADS) {
        const u32 label = a.labels.data[row];
        if (label == IGNORED) continue;
        loss += a.row_losses.data[row];
        correct += a.predictions.data[row] == label;
        ++counted;
    }
    __shared__ float losses[MEAN_THREADS / WARP], right[MEAN_THREADS / WARP], counts[MEAN_THREADS / WARP];
    loss = block_sum(loss, losses);
    // Whole numbers below 2²⁴ are exact in float.
    const float sum = block_sum(static_cast<float>(correct), right);
    const float count = block_sum(static_cast<float>(counted), counts);
    if (threadIdx.x != 0) return;
    *a.loss.data = loss / count;
    *a.correct.data = static_cast<u32>(sum);
}

// What turns the logits of a row into their gradients.
struct Gradient {
    u32 label;
    float shift;                     // of the exponents, in powers of two
    float weight, at_label, at_all;  // of this row's loss; zeros if it does not count

    // Those from `column` on.
    template <int N> __device__ void of(float (&x)[N], u32 column) const {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            x[i] = weight * ex2(x[i] * LOG2_E - shift) - at_all;
            if (column + i == label) x[i] -= at_label;
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_backward(const __grid_constant__ CrossEntropyBackwardArgs a) {
    bf16 *row = a.logits.row(blockIdx.x);  // [width]
    const Cut cut(row, a.width);
    u32 counted = 0;
    for (u32 i = threadIdx.x; i < a.rows; i += THREADS) counted += a.labels.data[i] != IGNORED;
    __shared__ float counts[WARPS];
    // Whole numbers below 2²⁴ are exact in float; every warp adds up the same ones.
    const float count = block_sum(static_cast<float>(counted), counts);
    const u32 label = a.labels.data[blockIdx.x];
    const float weight = label == IGNORED ? 0.0f : a.weight / count;
    const float shift = a.lse.data[blockIdx.x] * LOG2_E;
    const Gradient gradient{label, shift, weight, weight * a.at_label, weight * a.at_all};
    // Vectors that a thread reads before it writes: enough to hide the memory's latency.
    constexpr u32 BATCH = 4;
    for (u32 first = threadIdx.x; first < cut.vectors; first += BATCH * THREADS) {
        float x[BATCH][VECTOR];
#pragma unroll
        for (u32 i = 0; i < BATCH; ++i)
            if (first + i * THREADS < cut.vectors) load(x[i], row + cut.column(first + i * THREADS));
#pragma unroll
        for (u32 i = 0; i < BATCH; ++i) {
            const u32 vector = first + i * THREADS;
            if (vector >= cut.vectors) break;
            gradient.of(x[i], cut.column(vector));
            store(row + cut.column(vector), x[i]);
        }
    }
    if (threadIdx.x < cut.singles) {
        const u32 column = cut.single(threadIdx.x);
        float x[1] = {to_float(row[column])};
        gradient.of(x, column);
        store(row + column, x);
    }
}
