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
    // Four elements share a draw: a thread has a vector of 8, or at single elements one of 4.
    constexpr u32 STEP = N == VECTOR ? VECTOR : 4;
    for (u32 column = lane_index() * STEP; column < a.width; column += WARP * STEP) {
#pragma unroll
        for (u32 part = 0; part < STEP; part += 4) {
            const uint4 draw = a.dropout.words(key, 0, row, column + part);
            const u32 words[4] = {draw.x, draw.y, draw.z, draw.w};
            // Columns of a vector are all there.
            if constexpr (N == VECTOR) {
                const uint2 x = *reinterpret_cast<const uint2 *>(a.x.row(row) + column + part);
                float e[4];
                unpack(e[0], e[1], x.x);
                unpack(e[2], e[3], x.y);
#pragma unroll
                for (int i = 0; i < 4; ++i) e[i] *= a.dropout.factor(words[i]);
                *reinterpret_cast<uint2 *>(a.y.row(row) + column + part) =
                    make_uint2(pack(e[0], e[1]), pack(e[2], e[3]));
            } else {
#pragma unroll
                for (u32 i = 0; i < 4; ++i)
                    if (column + i < a.width)
                        a.y.row(row)[column + i] =
                            to_bf16(to_float(a.x.row(row)[column + i]) * a.dropout.factor(words[i]));
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) dropout_apply(const __grid_constant__ DropoutApplyArgs a) {
    const u32 row = blockIdx.x * (THREADS / WARP) + warp_index();
    if (row >= a.rows) return;
    a.vector == VECTOR ? apply<VECTOR>(a, row) : apply<1>(a, row);
}
