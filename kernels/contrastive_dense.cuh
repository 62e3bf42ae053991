// The backward pass of the contrastive loss by mma.sync.
//
//   dqueries [I·Q, E] = G·texts      dtexts [T, E] = Gᵀ·queries
//
// G [I·Q, T] is the gradient by the products of queries and texts: of an image's Q elements of a column one is not
// zero, the winner's. Neither G nor the products are ever in memory. A block has 128 rows of one side in shared
// memory, 16 a warp (texts, or queries of one image), whose gradients are in registers; it walks over the other side, 32
// rows at a time (queries of one image, or texts), through a ring of two stages. A warp computes the products again
// (16×32, over E), makes of them its part of G, in bf16, which is already as `mma` takes it, and multiplies it with the
// 32 rows. Where an image's queries, or a feature's elements, are fewer than that, zeros stand for the rest. Of features
// wider than 256 a block has the gradients of 256 columns; for the products, the others pass through its place.
//
// Queries: a block goes over all texts and writes. Texts are fewer, so blocks share the images: each writes in f32
// what its own part of them adds up to, and `contrastive_dtexts` sums the parts in order.
//
// Bytes moved, at BLIP-2's 32 queries of width 256, for a pair of image and text: 2·E/4 by the queries' blocks, which
// have 4 images, 2·E/4 by the texts' blocks, and 2·4·E/(images of a part) for the parts: from 16 images on 384 at most,
// at 1024 images and texts 288. Operations: 4·2·32·E a pair, mostly of zeros.
#pragma once
#include "contrastive_gradients.cuh"
#include "gather.cuh"

constexpr u32 DENSE_THREADS = 256;
constexpr u32 SLOTS = DENSE_THREADS / WARP;  // of 16 rows, one a warp
constexpr u32 OWN_ROWS = SLOTS * WARP_ROWS;
constexpr u32 CHUNKS = WIDTH / VECTOR;  // of 16 bytes in a row
constexpr u32 COLUMNS = WIDTH / 8;      // fragments along a row

// BLIP-2's sizes, known to the compiler.
struct KnownSizes {
    __device__ KnownSizes(const ContrastiveBackwardArgs &) {}
    __device__ static constexpr u32 count() { return QUERIES; }
    __device__ static constexpr u32 width() { return WIDTH; }
    __device__ static constexpr bool vectors() { return true; }
};

// Any others.
struct AnySizes {
    const ContrastiveBackwardArgs &a;

    __device__ AnySizes(const ContrastiveBackwardArgs &a) : a(a) {}
    __device__ u32 count() const { return a.batch.count; }
    __device__ u32 width() const { return a.batch.width; }
    // Whether rows are read and written 16 bytes at a time.
    __device__ bool vectors() const { return a.vector == VECTOR; }
};

// What follows from them.
template <class Sizes> struct Layout : Sizes {
    using Sizes::Sizes;
    // Of 16 queries, of 32, in an image; of 256 columns.
    __device__ constexpr u32 slots_of_image() const { return ceil_div(Sizes::count(), WARP_ROWS); }
    __device__ constexpr u32 tiles_of_image() const { return ceil_div(Sizes::count(), TILE_ROWS); }
    __device__ constexpr u32 panels() const { return ceil_div(Sizes::width(), WIDTH); }
    // Chunks of a panel that are not all zeros, an even number.
    __device__ constexpr u32 chunks(u32 panel) const {
        const u32 columns = Sizes::width() - panel * WIDTH;
        return columns >= WIDTH ? CHUNKS : ceil_div(columns, 2 * VECTOR) * 2;
    }
    // Row of the queries that an image's query has; NONE if it is not there.
    __device__ u32 row_of(const Batch &batch, u32 image, u32 query) const {
        return image < batch.images && query < Sizes::count() ? image * Sizes::count() + query : NONE;
    }
};

// Place of a chunk among rows in shared memory [rows, 256]: of 8 rows, one below the other, it is in different banks.
__device__ inline u32 chunk_place(u32 row, u32 chunk) { return row * WIDTH + (chunk ^ row % 8) * VECTOR; }

// Brings a panel of ROWS rows, `row_of` each, zeros beyond it and for NONE.
template <u32 ROWS, class Sizes, class RowOf>
__device__ void copy_rows(bf16 *to, const In<bf16> &from, const Layout<Sizes> &sizes, u32 panel, const RowOf &row_of) {
    static_assert(ROWS * CHUNKS % DENSE_THREADS == 0);
    const u32 chunks = sizes.chunks(panel);
#pragma unroll 4
    for (u32 i = threadIdx.x; i < ROWS * CHUNKS; i += DENSE_THREADS) {
        const u32 index = i / CHUNKS, chunk = i % CHUNKS;
        if (chunk >= chunks) continue;
        const u32 row = row_of(index), column = panel * WIDTH + chunk * VECTOR;
        const bool there = row != NONE && column < sizes.width();
        const bf16 *source = there ? from.row(row) + column : from.data;
        bf16 *place = to + chunk_place(index, chunk);
        if (sizes.vectors())
            cp_async(shared_address(place), source, there ? 16 : 0);
        else
            *reinterpret_cast<uint4 *>(place) = gather(source, there ? sizes.width() - column : 0);
    }
}

// products += own [16, 256] · tile [32, 256]ᵀ, of so many chunks
__device__ inline void multiply(Products &products, const bf16 *own, const bf16 *tile, u32 chunks) {
    const u32 matrix = lane_index() / 8, row = lane_index() % 8;
#pragma unroll 4
    for (u32 chunk = 0; chunk < chunks; chunk += 2) {
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

// gradient [16, 256] += g [16, 32] · tile [32, 256], of so many chunks, g rounded to bf16
__device__ inline void accumulate(float (&gradient)[COLUMNS][4], const Products &g, const bf16 *tile, u32 chunks) {
    const u32 matrix = lane_index() / 8, row = lane_index() % 8;
#pragma unroll
    for (u32 k = 0; k < TILE_ROWS / 16; ++k) {
        const float(&low)[4] = g[2 * k], (&high)[4] = g[2 * k + 1];
        const u32 a[4] = {pack(low[0], low[1]), pack(low[2], low[3]), pack(high[0], high[1]), pack(high[2], high[3])};
#pragma unroll
        for (u32 n = 0; n < COLUMNS; n += 2) {
            if (n >= chunks) continue;
            u32 b[4];
            ldmatrix_trans(b, shared_address(tile + chunk_place(k * 16 + matrix % 2 * 8 + row, n + matrix / 2)));
            mma(gradient[n], a, b[0], b[1]);
            mma(gradient[n + 1], a, b[2], b[3]);
        }
    }
}

// One block: eight slots of 16 rows of a side and the tiles of the other from `first` to `end`; its part of the texts'
// gradients goes to `part`.
template <Side SIDE, class Sizes>
__device__ void backward_dense(const ContrastiveBackwardArgs &a, const Layout<Sizes> &sizes, bf16 *own, u32 block,
                               u32 first, u32 end, const BackwardWorkspace &workspace, float *part) {
    constexpr bool OF_QUERIES = SIDE == Side::Queries;
    const Batch &batch = a.batch;
    const In<bf16> &from = OF_QUERIES ? batch.queries : batch.texts, &other = OF_QUERIES ? batch.texts : batch.queries;
    const float inverse = 1.0f / *batch.temperature.data;
    const u32 panels = sizes.panels(), own_panel = panels == 1 ? 0 : blockIdx.y;
    bf16 *ring = own + OWN_ROWS * WIDTH;                      // [2, 32, 256]
    bf16 *own_rows = own + warp_index() * WARP_ROWS * WIDTH;  // [16, 256]

    const auto text_of = [&](u32 text) { return text < batch.texts_count ? text : NONE; };
    const auto own_row = [&](u32 index) {
        const u32 slot = block * SLOTS + index / WARP_ROWS, row = index % WARP_ROWS;
        if constexpr (!OF_QUERIES) return text_of(slot * WARP_ROWS + row);
        return sizes.row_of(batch, slot / sizes.slots_of_image(), slot % sizes.slots_of_image() * WARP_ROWS + row);
    };
    // A warp's panels end with the one whose gradients it has.
    const auto panel_of = [&](u32 step) { return panels == 1 ? 0 : (own_panel + 1 + step) % panels; };
    const auto copy_own = [&](u32 panel) { copy_rows<OWN_ROWS>(own, from, sizes, panel, own_row); };
    const auto copy_tile = [&](u32 step) {
        const u32 tile = first + step / panels;
        copy_rows<TILE_ROWS>(ring + step % 2 * (TILE_ROWS * WIDTH), other, sizes, panel_of(step), [&](u32 index) {
            if constexpr (OF_QUERIES) return text_of(tile * TILE_ROWS + index);
            return sizes.row_of(batch, tile / sizes.tiles_of_image(), tile % sizes.tiles_of_image() * TILE_ROWS + index);
        });
    };

    const u32 slot = block * SLOTS + warp_index(), slots_of_image = sizes.slots_of_image();
    const u32 slots = OF_QUERIES ? batch.images * slots_of_image : ceil_div(batch.texts_count, WARP_ROWS);
    const u32 steps = (end - first) * panels;
    float gradient[COLUMNS][4] = {};
    float sum = 0.0f;
    Products products;
    if (panels == 1) copy_own(0);
    copy_tile(0);
    cp_async_commit_group();
    for (u32 step = 0; step < steps; ++step) {
        const bf16 *stage = ring + step % 2 * (TILE_ROWS * WIDTH);
        const u32 panel = panel_of(step), tile = first + step / panels;
        if (panels > 1) {
            copy_own(panel);
            cp_async_commit_group();
        }
        if (step + 1 < steps) copy_tile(step + 1);
        cp_async_commit_group();
        cp_async_wait_group<1>();
        __syncthreads();
        // Of a slot that is not there, everything is zero.
        if (step % panels == 0)
#pragma unroll
            for (u32 i = 0; i < TILE_ROWS / 2; ++i) products[i / 4][i % 4] = 0.0f;
        multiply(products, own_rows, stage, sizes.chunks(panel));
        if (panel == own_panel) {
            if constexpr (OF_QUERIES)
                differentiate_queries(a, products, slot / slots_of_image, slot % slots_of_image * WARP_ROWS,
                                      tile * TILE_ROWS, inverse, sum);
            else
                differentiate_texts(a, products, slot * WARP_ROWS, tile / sizes.tiles_of_image(),
                                    tile % sizes.tiles_of_image() * TILE_ROWS, batch.images, inverse);
            accumulate(gradient, products, stage, sizes.chunks(panel));
        }
        // The next but one goes where this one is.
        __syncthreads();
    }
    if (slot >= slots) return;

    const u32 row = lane_index() / 4, column = lane_index() % 4 * 2;
    if constexpr (OF_QUERIES) {
        sum = warp_sum(sum);
        if (lane_index() == 0 && own_panel == 0) workspace.products[slot] = sum;
        // Through the warp's own rows, to become whole ones.
#pragma unroll
        for (u32 n = 0; n < COLUMNS; ++n)
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
                *reinterpret_cast<u32 *>(own_rows + chunk_place(row + half * 8, n) + column) =
                    pack(gradient[n][half * 2], gradient[n][half * 2 + 1]);
        __syncwarp();
        static_assert(CHUNKS == WARP);
        const u32 first_column = own_panel * WIDTH + lane_index() * VECTOR;
#pragma unroll 4
        for (u32 r = 0; r < WARP_ROWS; ++r) {
            const u32 to = own_row(warp_index() * WARP_ROWS + r);
            if (to == NONE || first_column >= sizes.width()) continue;
            const bf16 *chunk = own_rows + chunk_place(r, lane_index());
            bf16 *place = a.dqueries.row(to) + first_column;
            if (sizes.vectors())
                *reinterpret_cast<uint4 *>(place) = *reinterpret_cast<const uint4 *>(chunk);
            else
                for (u32 i = 0; i < min(u32(VECTOR), sizes.width() - first_column); ++i) place[i] = chunk[i];
        }
    } else {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 text = slot * WARP_ROWS + half * 8 + row;
            if (text >= batch.texts_count) continue;
#pragma unroll
            for (u32 n = 0; n < COLUMNS; ++n) {
                const u32 to = own_panel * WIDTH + n * 8 + column;
                if (to < sizes.width())
                    *reinterpret_cast<float2 *>(part + static_cast<u64>(text) * workspace.pitch + to) =
                        make_float2(gradient[n][half * 2], gradient[n][half * 2 + 1]);
            }
        }
    }
}

// A block's turn. Grid: blocks of queries, then of texts for each part of the images; panels of columns.
template <class Sizes> __device__ void backward_dense(const ContrastiveBackwardArgs &a, bf16 *shared) {
    const Batch &batch = a.batch;
    const Layout<Sizes> sizes(a);
    const BackwardWorkspace workspace(a.workspace.data, batch);
    const u32 query_blocks = ceil_div(batch.images * sizes.slots_of_image(), SLOTS);
    if (blockIdx.x < query_blocks) {
        const u32 tiles = ceil_div(batch.texts_count, TILE_ROWS);
        backward_dense<Side::Queries>(a, sizes, shared, blockIdx.x, 0, tiles, workspace, nullptr);
    } else {
        const u32 text_blocks = ceil_div(batch.texts_count, OWN_ROWS), index = blockIdx.x - query_blocks;
        const u32 part = index / text_blocks, first_image = part * a.images_of_part;
        const u32 end_image = min(first_image + a.images_of_part, batch.images), tiles = sizes.tiles_of_image();
        backward_dense<Side::Texts>(a, sizes, shared, index % text_blocks, first_image * tiles, end_image * tiles,
                                    workspace, workspace.part(part, batch));
    }
}
