// Winners: which of an image's queries is the most similar to a text, for a warp's image and 32 texts, a lane a text.
#pragma once
#include "contrastive_gradients.cuh"
#include "gather.cuh"

constexpr u32 IMAGES_OF_STEP = 4;
constexpr u32 THREADS = IMAGES_OF_STEP * WARP;
static_assert(THREADS == TEXTS_OF_BLOCK, "in the end a thread has a text");

// Adds the products of 16 rows, of which a lane has chunks of rows l/4 and l/4 + 8, and 8 texts, of which it has one of
// text l/4.
//
// The sum over a feature's elements is of any order, so both operands take them in the one that makes loads of 16
// bytes: of 32 elements, lane l has 8·(l % 4) .. 8·(l % 4) + 8, of which the first four go into one product and
// the others into the next.
__device__ inline void multiply_rows(float (&scores)[4], const uint4 (&rows)[2], uint4 text) {
    const uint4 top = rows[0], bottom = rows[1];
    mma(scores, {top.x, bottom.x, top.y, bottom.y}, text.x, text.y);
    mma(scores, {top.z, bottom.z, top.w, bottom.w}, text.z, text.w);
}

// The best of 32 queries of each of 32 texts, from their scores as `mma` leaves them, [half of the queries][8 texts]. Of
// the queries, from `first` on, those from `count` on are not there.
__device__ inline Best best_of(const float (&scores)[2][4][4], u32 first, u32 count) {
    const float not_there = __int_as_float(0xff800000);
    // A lane has four queries of eight texts: 8·n + 2·(lane % 4) + odd.
    Best best[8];
#pragma unroll
    for (u32 n = 0; n < 4; ++n)
#pragma unroll
        for (u32 odd = 0; odd < 2; ++odd) {
            Best of_lane;
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const u32 query = first + lane_index() / 4 + 8 * i;
                const float score = query < count ? scores[i / 2][n][odd + i % 2 * 2] : not_there;
                if (i == 0)
                    of_lane = {score, query};
                else
                    of_lane.add(score, query);
            }
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

// Scores of a warp's image with 32 texts, a lane a text, at BLIP-2's sizes: the texts in shared memory, the image's
// queries in registers.
struct KnownScores {
    static constexpr u32 STEPS = WIDTH / 32;
    // [half of the queries][step][rows l/4, l/4 + 8]
    uint4 queries[2][STEPS][2];

    // Element (text, 8·chunk) of the texts in shared memory [128, 256]. A quarter of a warp reads four chunks of two
    // rows: those of odd rows are swapped by fours, so that they lie in different banks.
    __device__ static u32 place(u32 text, u32 chunk) { return text * WIDTH + (chunk ^ (text % 2 * 4)) * VECTOR; }

    // Brings the block's texts, zeros beyond the last.
    __device__ KnownScores(const Batch &batch, bf16 *texts, u32 first_text, u32) {
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
                for (u32 half = 0; half < 2; ++half) multiply_rows(scores[half][n], queries[half][step], text);
            }
        return best_of(scores, 0, QUERIES);
    }
};

// The same at any sizes, 32 queries at a time, zeros in place of what is not there; both operands from the cache.
struct AnyScores {
    u32 image, vector;

    __device__ AnyScores(const Batch &, bf16 *, u32, u32 vector) : vector(vector) {}
    __device__ void load_image(const Batch &, u32 index) { image = index; }

    // Elements col .. col + 8 of a row.
    __device__ uint4 chunk(const In<bf16> &from, u32 row, u32 rows, u32 col, u32 cols) const {
        if (row >= rows || col >= cols) return make_uint4(0, 0, 0, 0);
        const bf16 *data = from.row(row) + col;
        return vector == VECTOR ? *reinterpret_cast<const uint4 *>(data) : gather(data, cols - col);
    }

    // Of 32 texts, of which the lane is left with `own`.
    __device__ Best best(const Batch &batch, const bf16 *, u32 own, u32) const {
        const u32 first_text = own - text_of_lane(), row = lane_index() / 4;
        const u32 first_row = image * batch.count, end_row = first_row + batch.count;
        Best best;
        for (u32 first = 0; first < batch.count; first += QUERIES) {
            float scores[2][4][4] = {};
#pragma unroll 1
            for (u32 col = lane_index() % 4 * VECTOR; col < ceil_div(batch.width, 32) * 32; col += 32) {
                uint4 queries[2][2];
#pragma unroll
                for (u32 i = 0; i < 4; ++i)
                    queries[i / 2][i % 2] =
                        chunk(batch.queries, first_row + first + i * 8 + row, end_row, col, batch.width);
#pragma unroll
                for (u32 n = 0; n < 4; ++n) {
                    const uint4 text =
                        chunk(batch.texts, first_text + n * 8 + row, batch.texts_count, col, batch.width);
                    multiply_rows(scores[0][n], queries[0], text);
                    multiply_rows(scores[1][n], queries[1], text);
                }
            }
            const Best of_group = best_of(scores, first, batch.count);
            best = first == 0 ? of_group : Best::of(best, of_group);
        }
        return best;
    }
};
