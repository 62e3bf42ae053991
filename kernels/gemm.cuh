// What both families of matrix products share: how operands lie, and what is done to the results.
#pragma once
#include "activation.cuh"

// Results of a forward pass, in bf16: y = f(product + bias) + residual. Twin of `FinishForward` in src/ops/gemm/cuda.rs.
struct FinishForward {
    In<bf16> bias;            // [1, n]; may be absent
    In<bf16> residual;        // [m, n]; may be absent, and may be y itself
    Out<bf16> pre_activation; // product + bias [m, n]; may be absent
    Out<bf16> y;              // [m, n]
    Activation activation;
    u32 vector;               // elements that are read and written at a time

    // Elements col .. col + N of a row.
    template <int N> __device__ void operator()(u32 row, u32 col, float (&x)[N]) const {
        float e[N];
        if (bias.present()) {
            load(e, bias.data + col);
#pragma unroll
            for (int i = 0; i < N; ++i) x[i] += e[i];
        }
        if (pre_activation.present()) store(pre_activation.row(row) + col, x);
        activate(activation, x);
        if (residual.present()) {
            load(e, residual.row(row) + col);
#pragma unroll
            for (int i = 0; i < N; ++i) x[i] += e[i];
        }
        store(y.row(row) + col, x);
    }
};
static_assert(sizeof(FinishForward) == 72);

// Gradients of inputs, in bf16: dx = product·f'(pre_activation) + before, where x = f(pre_activation). Twin of
// `FinishInput` in src/ops/gemm/cuda.rs.
struct FinishInput {
    In<bf16> pre_activation; // [m, n]; absent if f is the identity
    In<bf16> before;         // [m, n]; may be absent, or dx itself
    Out<bf16> dx;            // [m, n]
    Activation activation;
    u32 vector;

    template <int N> __device__ void operator()(u32 row, u32 col, float (&x)[N]) const {
        float e[N];
        if (pre_activation.present()) {
            load(e, pre_activation.row(row) + col);
            differentiate(activation, x, e);
        }
        if (before.present()) {
            load(e, before.row(row) + col);
#pragma unroll
            for (int i = 0; i < N; ++i) x[i] += e[i];
        }
        store(dx.row(row) + col, x);
    }
};
static_assert(sizeof(FinishInput) == 56);

// Results in f32, added to what is there: gradients of parameters; or a part of these, put there to be added later.
// Twin of `Accumulate` in src/ops/gemm/cuda.rs.
struct Accumulate {
    Out<float> sum; // [m, n], or [parts·m, n]
    u32 vector;
    Write write;

    // What is done to a part.
    __device__ Accumulate of_part(u32 part, u32 m) const {
        Accumulate finish = *this;
        finish.sum.data += static_cast<u64>(part) * m * sum.pitch;
        return finish;
    }

    template <int N> __device__ void operator()(u32 row, u32 col, float (&x)[N]) const {
        if (write == Write::Add) {
            float before[N];
            load(before, sum.row(row) + col);
#pragma unroll
            for (int i = 0; i < N; ++i) x[i] += before[i];
        }
        store(sum.row(row) + col, x);
    }

    // The same for a sum of a row.
    __device__ void add_sum(float *to, float x) const { *to = write == Write::Add ? *to + x : x; }
};
static_assert(sizeof(Accumulate) == 24);

// Place in shared memory of a result on its way from the tensor core's layout to whole rows. Tiles are COLS wide.
// Blocks of a vector are permuted by the row, so that the writes of a warp's 8 rows meet in as few banks as can be.
template <u32 COLS> __device__ u32 staged(u32 row, u32 col) {
    constexpr u32 TURNS = COLS / VECTOR < 4 ? COLS / VECTOR : 4;
    static_assert(COLS % (TURNS * VECTOR) == 0 && (TURNS == 2 || TURNS == 4));
    return row * COLS + (col ^ (row % TURNS * VECTOR));
}

// Puts a fragment of 16×8 results, as `mma` and `wgmma` leave it, at its place.
template <u32 COLS> __device__ void stage(float *results, u32 row, u32 col, const float *fragment) {
    const u32 g = lane_index() / 4, t = lane_index() % 4 * 2;
#pragma unroll
    for (u32 half = 0; half < 2; ++half)
        *reinterpret_cast<float2 *>(results + staged<COLS>(row + g + 8 * half, col + t)) =
            make_float2(fragment[2 * half], fragment[2 * half + 1]);
}

// One thread's turn: a vector of a row of results, the sum of PARTS of them that lie STRIDE apart in shared memory,
// taken in their order. m and n are the result's size.
template <int PARTS, u32 STRIDE, class Finishing>
__device__ void finish_vector(const Finishing &finish, const float *results, u32 row, u32 col, u32 m, u32 n) {
    if (row >= m || col >= n) return;
    if (finish.vector == VECTOR && col + VECTOR <= n) {
        float x[VECTOR];
        load(x, results);
#pragma unroll
        for (int part = 1; part < PARTS; ++part) {
            float more[VECTOR];
            load(more, results + part * STRIDE);
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) x[i] += more[i];
        }
        finish(row, col, x);
    } else {
#pragma unroll 1
        for (u32 i = 0; i < VECTOR && col + i < n; ++i) {
            float x[1] = {results[i]};
#pragma unroll
            for (int part = 1; part < PARTS; ++part) x[0] += results[part * STRIDE + i];
            finish(row, col + i, x);
        }
    }
}
