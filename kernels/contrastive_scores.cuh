// Winners: which of an image's queries is the most similar to a text, for a warp's image and 32 texts, a lane a text;
// on tensor cores at BLIP-2's sizes, without them at others.
#pragma once
#include "contrastive_gradients.cuh"

constexpr u32 IMAGES_OF_STEP = 4;
constexpr u32 THREADS = IMAGES_OF_STEP * WARP;
static_assert(THREADS == TEXTS_OF_BLOCK, "in the end a thread has a text");

// Scores of a warp's image with 32 texts, a lane a text, without tensor cores.
struct ScalarScores {
    u32 image;

    __device__ ScalarScores(const Batch &, const bf16 *, u32) {}
    __device__ void load_image(const Batch &, u32 index) { image = index; }
    __device__ Best best(const Batch &batch, const bf16 *, u32 text, u32) const {
        Best best = {0.0f, NONE};
        if (text >= batch.texts_count) return best;
        for (u32 q = 0; q < batch.count; ++q) {
            const bf16 *query = batch.queries.row(image * batch.count + q), *feature = batch.texts.row(text);
            float score = 0.0f;
            for (u32 e = 0; e < batch.width; ++e) score = fmaf(to_float(query[e]), to_float(feature[e]), score);
            if (q == 0)
                best = {score, 0};
            else
                best.add(score, q);
        }
        return best;
    }
};

// The same on tensor cores.
//
// The sum over a feature's elements is of any order, so both operands take them in the one that makes loads of 16
// bytes: of 32 elements, lane l has 8·(l % 4) .. 8·(l % 4) + 8, of which the first four go into one product and
// the others into the next.
struct TensorScores {
    static constexpr u32 STEPS = WIDTH / 32;
    // [half of the queries][step][rows l/4, l/4 + 8]
    uint4 queries[2][STEPS][2];

    // Element (text, 8·chunk) of the texts in shared memory [128, 256]. A quarter of a warp reads four chunks of two
    // rows: those of odd rows are swapped by fours, so that they lie in different banks.
    __device__ static u32 place(u32 text, u32 chunk) { return text * WIDTH + (chunk ^ (text % 2 * 4)) * VECTOR; }

    // Brings the block's texts, zeros beyond the last.
    __device__ TensorScores(const Batch &batch, bf16 *texts, u32 first_text) {
        for (u32 i = threadIdx.x; i < TEXTS_OF_BLOCK * (WIDTH / VECTOR); i += THREADS) {
            const u32 text = i / (WIDTH / VECTOR), chunk = i % (WIDTH / VECTOR);
            const bool there = first_text + text < batch.texts_count;
            cp_async(shared_address(texts + place(text, chunk)),
                     batch.texts.row(there ? first_text + text : first_text) + chunk * VECTOR, there ? 16 : 0);
        }
        cp_async_commit_group();
        cp_async_wait_group<0>();
        __syncthreads();
    }

    __device__ void load_image(const Batch &batch, u32 image) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
#pragma unroll
            for (u32 row = 0; row < 2; ++row) {
                const bf16 *from = batch.queries.row(image * QUERIES + half * 16 + row * 8 + lane_index() / 4);
#pragma unroll
                for (u32 step = 0; step < STEPS; ++step)
                    queries[half][step][row] =
                        *reinterpret_cast<const uint4 *>(from + step * 32 + lane_index() % 4 * VECTOR);
            }
    }

    // Of the 32 texts from `tile` of the block on.
    __device__ Best best(const Batch &, const bf16 *texts, u32, u32 tile) const {
        float scores[2][4][4] = {};
#pragma unroll
        for (u32 step = 0; step < STEPS; ++step)
#pragma unroll
            for (u32 n = 0; n < 4; ++n) {
                const u32 at = place(tile + n * 8 + lane_index() / 4, step * 4 + lane_index() % 4);
                const uint4 text = *reinterpret_cast<const uint4 *>(texts + at);
#pragma unroll
                for (u32 half = 0; half < 2; ++half) {
                    const uint4 top = queries[half][step][0], bottom = queries[half][step][1];
                    mma(scores[half][n], {top.x, bottom.x, top.y, bottom.y}, text.x, text.y);
                    mma(scores[half][n], {top.z, bottom.z, top.w, bottom.w}, text.z, text.w);
                }
            }
        // A lane has four queries of eight texts: 8·n + 2·(lane % 4) + odd.
        Best best[8];
#pragma unroll
        for (u32 n = 0; n < 4; ++n)
#pragma unroll
            for (u32 odd = 0; odd < 2; ++odd) {
                const u32 query = lane_index() / 4;
                Best of_lane = {scores[0][n][odd], query};
                of_lane.add(scores[0][n][odd + 2], query + 8);
                of_lane.add(scores[1][n][odd], query + 16);
                of_lane.add(scores[1][n][odd + 2], query + 24);
                best[n * 2 + odd] = of_lane;
            }
        // Half of what a lane has goes to the lane that has the other half of the queries, three times over; it is
        // left with all queries of one text, `text_of_lane`.
#pragma unroll
        for (u32 left = 4; left > 0; left /= 2) {
            const bool upper = lane_index() & left * 4;
#pragma unroll
            for (u32 i = 0; i < left; ++i) {
                const Best keep = upper ? best[i + left] : best[i], give = upper ? best[i] : best[i + left];
                const Best taken = {__shfl_xor_sync(ALL_LANES, give.score, left * 4),
                                    __shfl_xor_sync(ALL_LANES, give.query, left * 4)};
                best[i] = Best::of(keep, taken);
            }
        }
        return best[0];
    }
};
