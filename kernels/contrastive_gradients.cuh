// What the backward passes of the contrastive loss share, by mma.sync and by wgmma: of the products of
// 16 rows of one side with 32 of the other they make the gradients by these products, in place; and scratch memory.
#pragma once
#include "contrastive.cuh"

// BLIP-2's sizes, and of other images and features what is multiplied at a time.
constexpr u32 QUERIES = 32, WIDTH = 256;

constexpr u32 WARP_ROWS = 16;
constexpr u32 TILE_ROWS = 32;
static_assert(TILE_ROWS == QUERIES && QUERIES == 2 * WARP_ROWS);

// Of the 32 texts of a tile, the one that a lane has.
__device__ inline u32 text_of_lane() {
    return lane_index() / 8 * 8 + lane_index() % 4 * 2 + lane_index() / 4 % 2;
}

// A warp's 16 rows by the 32 of a tile, as `mma` and `wgmma` leave them: of each fragment of 8 columns the lane has, with
// g = lane/4 and t = 2·(lane%4), [g][t], [g][t + 1], [g + 8][t], [g + 8][t + 1].
using Products = float[TILE_ROWS / 8][4];

// Makes of the products of 16 queries of an image, from `first_query` on, and 32 texts their gradients; adds
// Σ gradient·logit to `sum`. Those of what is beyond the last image and text are 0.
__device__ inline void differentiate_queries(const ContrastiveBackwardArgs &a, Products &products, u32 image,
                                             u32 first_query, u32 first_text, float inverse, float &sum) {
    const u32 text = first_text + text_of_lane();
    // The winner's row among the warp's, if it is below 16. A lane a text.
    u32 own = NONE;
    if (text < a.batch.texts_count && image < a.batch.images) own = a.winner.row(image)[text] - first_query;
    // The same of the lane's eight columns, and of their winners' products those that the lane has.
    u32 rows[8];
    float scores[8];
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
        rows[i] = __shfl_sync(ALL_LANES, own, i * 4 + lane_index() % 4);
        const u32 n = i / 2, odd = i % 2;
        scores[i] = rows[i] == lane_index() / 4       ? products[n][odd]
                    : rows[i] == lane_index() / 4 + 8 ? products[n][odd + 2]
                                                      : 0.0f;
    }
    // As in `best_of`: the lane is left with its own text's.
#pragma unroll
    for (u32 left = 4; left > 0; left /= 2) {
        const bool upper = lane_index() & left * 4;
#pragma unroll
        for (u32 i = 0; i < left; ++i) {
            const float keep = upper ? scores[i + left] : scores[i], give = upper ? scores[i] : scores[i + left];
            scores[i] = keep + __shfl_xor_sync(ALL_LANES, give, left * 4);
        }
    }
    float gradient = 0.0f;
    if (own < WARP_ROWS) {
        const float logit = scores[0] * inverse;
        const float2 both = a.dlogit(image, text, logit);
        sum += (both.x + both.y) * logit;
        gradient = a.of_side<Side::Queries>(both) * inverse;
    }
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
        const float of_column = __shfl_sync(ALL_LANES, gradient, i * 4 + lane_index() % 4);
        products[i / 2][i % 2] = rows[i] == lane_index() / 4 ? of_column : 0.0f;
        products[i / 2][i % 2 + 2] = rows[i] == lane_index() / 4 + 8 ? of_column : 0.0f;
    }
}

// Makes of the products of 16 texts and 32 queries of an image, from `first_query` on, their gradients: 0 from the image
// `end` on.
__device__ inline void differentiate_texts(const ContrastiveBackwardArgs &a, Products &products, u32 first_text,
                                           u32 image, u32 first_query, u32 end, float inverse) {
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const u32 text = first_text + half * 8 + lane_index() / 4;
        const bool there = text < a.batch.texts_count && image < end;
        const u32 winner = there ? a.winner.row(image)[text] - first_query : NONE;
        // One lane of the four that share the row has it.
        float score = 0.0f;
#pragma unroll
        for (u32 i = 0; i < 8; ++i)
            if (winner == i / 2 * 8 + lane_index() % 4 * 2 + i % 2) score = products[i / 2][half * 2 + i % 2];
        score += __shfl_xor_sync(ALL_LANES, score, 1);
        score += __shfl_xor_sync(ALL_LANES, score, 2);
        float gradient = 0.0f;
        if (there) gradient = a.of_side<Side::Texts>(a.dlogit(image, text, score * inverse)) * inverse;
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            const bool won = winner == i / 2 * 8 + lane_index() % 4 * 2 + i % 2;
            products[i / 2][half * 2 + i % 2] = won ? gradient : 0.0f;
        }
    }
}

// Scratch of the backward pass: twin of `backward_words` in src/ops/contrastive/mod.rs.
struct BackwardWorkspace {
    float *products;  // [images·⌈Q/16⌉]: Σ gradient·logit, of 16 queries of an image
    float *parts;     // [parts, texts, pitch]: what the images of a part add to dtexts
    u32 pitch;        // the width, filled up to a multiple of 4

    __device__ BackwardWorkspace(u32 *words, const Batch &batch) {
        products = reinterpret_cast<float *>(words);
        parts = products + ceil_div(batch.images * ceil_div(batch.count, WARP_ROWS), QUAD) * QUAD;
        pitch = ceil_div(batch.width, QUAD) * QUAD;
    }

    // The texts' gradients of a part.
    __device__ float *part(u32 index, const Batch &batch) const {
        return parts + static_cast<u64>(index) * batch.texts_count * pitch;
    }
};
