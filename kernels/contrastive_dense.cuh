// The backward pass of the contrastive loss on tensor cores, at BLIP-2's 32 queries of width 256.
//
//   dqueries [I·32, E] = G·texts      dtexts [T, E] = Gᵀ·queries
//
// G [I·32, T] is the gradient by the products of queries and texts: of an image's 32 elements of a column one is not
// zero, the winner's. Neither G nor the products are ever in memory. A block has 128 rows of one side in shared
// memory, 16 a warp, whose gradients are in registers; it walks over the other side, 32 rows at a time (an image's
// queries, or 32 texts), through a ring of two stages. A warp computes the products again (16×32, over E), makes of
// them its part of G, in bf16, which is already as `mma` takes it, and multiplies it with the 32 rows.
//
// Queries: a block goes over all texts and writes. Texts are fewer, so blocks share the images: each writes in f32
// what its own part of them adds up to, and `contrastive_dtexts` sums the parts in order.
//
// Bytes moved for a pair of image and text: 2·E/4 by the queries' blocks, which have 4 images, 2·E/4 by the texts'
// blocks, and 2·4·E/(images of a part) for the parts: from 16 images on 384 at most, at 1024 images and texts 288.
// The gather for other sizes moves 2·2·E = 1024. Operations: 4·2·32·E a pair, mostly of zeros.
#pragma once
#include "contrastive_gradients.cuh"

constexpr u32 DENSE_THREADS = 256;
constexpr u32 OWN_ROWS = DENSE_THREADS / WARP * WARP_ROWS;
constexpr u32 CHUNKS = WIDTH / VECTOR;  // of 16 bytes in a row
constexpr u32 COLUMNS = WIDTH / 8;      // fragments along a row

// Place of a chunk among rows in shared memory [rows, 256]: of 8 rows, one below the other, it is in different banks.
__device__ inline u32 chunk_place(u32 row, u32 chunk) { return row * WIDTH + (chunk ^ row % 8) * VECTOR; }

// Brings rows `first` .. `first` + ROWS of a matrix of `rows`, zeros beyond the last.
template <u32 ROWS> __device__ void copy_rows(bf16 *to, const In<bf16> &from, u32 first, u32 rows) {
    static_assert(ROWS * CHUNKS % DENSE_THREADS == 0);
#pragma unroll 4
    for (u32 i = threadIdx.x; i < ROWS * CHUNKS; i += DENSE_THREADS) {
        const u32 row = i / CHUNKS, chunk = i % CHUNKS;
        const bool there = first + row < rows;
        cp_async(shared_address(to + chunk_place(row, chunk)), from.row(there ? first + row : 0) + chunk * VECTOR,
                 there ? 16 : 0);
    }
}

// products = own [16, 256] · tile [32, 256]ᵀ
__device__ inline void multiply(Products &products, const bf16 *own, const bf16 *tile) {
    const u32 matrix = lane_index() / 8, row = lane_index() % 8;
#pragma unroll 4
    for (u32 chunk = 0; chunk < CHUNKS; chunk += 2) {
        u32 a[4];
        ldmatrix(a, shared_address(own + chunk_place(matrix % 2 * 8 + row, chunk + matrix / 2)));
#pragma unroll
        for (u32 n = 0; n < TILE_ROWS / 8; n += 2) {
            u32 b[4];
            ldmatrix(b, shared_address(tile + chunk_place(n * 8 + matrix / 2 * 8 + row, chunk + matrix % 2)));
            mma(products[n], a, b[0], b[1]);
            mma(products[n + 1], a, b[2], b[3]);
        }
    }
}

// gradient [16, 256] += g [16, 32] · tile [32, 256], g rounded to bf16
__device__ inline void accumulate(float (&gradient)[COLUMNS][4], const Products &g, const bf16 *tile) {
    const u32 matrix = lane_index() / 8, row = lane_index() % 8;
#pragma unroll
    for (u32 k = 0; k < TILE_ROWS / 16; ++k) {
        const float(&low)[4] = g[2 * k], (&high)[4] = g[2 * k + 1];
        const u32 a[4] = {pack(low[0], low[1]), pack(low[2], low[3]), pack(high[0], high[1]), pack(high[2], high[3])};
#pragma unroll
        for (u32 n = 0; n < COLUMNS; n += 2) {
            u32 b[4];
            ldmatrix_trans(b, shared_address(tile + chunk_place(k * 16 + matrix % 2 * 8 + row, n + matrix / 2)));
            mma(gradient[n], a, b[0], b[1]);
            mma(gradient[n + 1], a, b[2], b[3]);
        }
    }
}

// One block: 128 rows of a side and the tiles of the other from `first` on.
template <Side SIDE>
__device__ void backward_dense(const ContrastiveBackwardArgs &a, bf16 *own, u32 block_row, u32 first, u32 end,
                               float *part) {
    constexpr bool OF_QUERIES = SIDE == Side::Queries;
    const Batch &batch = a.batch;
    const In<bf16> &from = OF_QUERIES ? batch.queries : batch.texts, &other = OF_QUERIES ? batch.texts : batch.queries;
    const u32 query_rows = batch.images * QUERIES;
    const u32 rows = OF_QUERIES ? query_rows : batch.texts_count;
    const u32 other_rows = OF_QUERIES ? batch.texts_count : query_rows;
    const u32 first_row = block_row + warp_index() * WARP_ROWS;
    const float inverse = 1.0f / *batch.temperature.data;
    bf16 *ring = own + OWN_ROWS * WIDTH;                 // [2, 32, 256]
    bf16 *own_rows = own + warp_index() * WARP_ROWS * WIDTH;  // [16, 256]

    float gradient[COLUMNS][4] = {};
    float sum = 0.0f;
    copy_rows<OWN_ROWS>(own, from, block_row, rows);
    copy_rows<TILE_ROWS>(ring, other, first * TILE_ROWS, other_rows);
    cp_async_commit_group();
    for (u32 tile = first; tile < end; ++tile) {
        const bf16 *stage = ring + (tile - first) % 2 * (TILE_ROWS * WIDTH);
        if (tile + 1 < end)
            copy_rows<TILE_ROWS>(ring + (tile + 1 - first) % 2 * (TILE_ROWS * WIDTH), other, (tile + 1) * TILE_ROWS,
                                 other_rows);
        cp_async_commit_group();
        cp_async_wait_group<1>();
        __syncthreads();
        if (first_row < rows) {
            Products products = {};
            multiply(products, own_rows, stage);
            if constexpr (OF_QUERIES)
                differentiate_queries(a, products, first_row, tile * TILE_ROWS, inverse, sum);
            else
                differentiate_texts(a, products, first_row, tile, end, inverse);
            accumulate(gradient, products, stage);
        }
        // The next but one goes where this one is.
        __syncthreads();
    }
    if (first_row >= rows) return;

    const u32 row = lane_index() / 4, column = lane_index() % 4 * 2;
    if constexpr (OF_QUERIES) {
        sum = warp_sum(sum);
        if (lane_index() == 0) BackwardWorkspace(a.workspace.data, batch).products[first_row / WARP_ROWS] = sum;
        // Through the warp's own rows, to become whole ones.
#pragma unroll
        for (u32 n = 0; n < COLUMNS; ++n)
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
                *reinterpret_cast<u32 *>(own_rows + chunk_place(row + half * 8, n) + column) =
                    pack(gradient[n][half * 2], gradient[n][half * 2 + 1]);
        __syncwarp();
        static_assert(CHUNKS == WARP);
#pragma unroll 4
        for (u32 r = 0; r < WARP_ROWS; ++r)
            *reinterpret_cast<uint4 *>(a.dqueries.row(first_row + r) + lane_index() * VECTOR) =
                *reinterpret_cast<const uint4 *>(own_rows + chunk_place(r, lane_index()));
    } else {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 text = first_row + half * 8 + row;
            if (text >= rows) continue;
#pragma unroll
            for (u32 n = 0; n < COLUMNS; ++n)
                *reinterpret_cast<float2 *>(part + static_cast<u64>(text) * WIDTH + n * 8 + column) =
                    make_float2(gradient[n][half * 2], gradient[n][half * 2 + 1]);
        }
    }
}
