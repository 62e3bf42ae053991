// similarity: of image i and text t, max over q of ⟨queries[i·Q + q], texts[t]⟩, and which q it was.
//
// All pairs: a product [images·Q, E]·[texts, E]ᵀ on the tensor cores, of which only the maxima leave the registers. A
// block has 4 images by 128 texts and takes 32 queries of each image at a time. Grid [images / 4, texts / 128]. Bytes
// moved: each block reads its queries and its texts once for each 32 queries; written are the maxima.
// Matched pairs: a warp a pair. Bytes moved: queries and texts once.
//
// A NaN counts as larger than any number; of equals the first query wins. Saved: the winner, to which alone the gradient
// goes. Backward: a warp for a row of dqueries, then one for a row of dtexts, each written once: sums in the order of the
// texts and of the images, without atomics.
#include "common.cuh"

// Twin of `Pairing::number` in src/ops/similarity/cuda.rs.
enum class Pairing : u32 { All = 0, Matched = 1 };

struct SimilarityForwardArgs {
    In<bf16> queries;      // [images·Q, E]
    In<bf16> texts;        // [texts, E]
    Out<bf16> similarity;  // [images, texts] or [images, 1]
    Out<u32> winner;       // as similarity; may be absent
    u32 images, query_count, text_count, width, vector, unused;
};
static_assert(sizeof(SimilarityForwardArgs) == 88);

struct SimilarityBackwardQueriesArgs {
    In<bf16> texts;        // [texts, E]
    In<u32> winner;        // [images, columns]
    In<bf16> dsimilarity;  // [images, columns]
    Out<bf16> dqueries;    // [images·Q, E]
    Pairing pairing;
    u32 images, query_count, columns, width, vector;
};
static_assert(sizeof(SimilarityBackwardQueriesArgs) == 88);

struct SimilarityBackwardTextsArgs {
    In<bf16> queries;      // [images·Q, E]
    In<u32> winner;        // [images, columns]
    In<bf16> dsimilarity;  // [images, columns]
    Out<bf16> dtexts;      // [texts, E]
    Pairing pairing;
    u32 images, query_count, text_count, width, vector;
};
static_assert(sizeof(SimilarityBackwardTextsArgs) == 88);

// A product and its query as one number, larger for who wins: products in their order, of equals the first query.
// Below all of them is 0.
__device__ u64 rank(float product, u32 query) {
    const u32 bits = __float_as_uint(product + 0.0f);  // −0 becomes 0
    constexpr u32 SIGN = 0x80000000u, INFINITE = 0x7f800000u;
    const u32 order = (bits & ~SIGN) > INFINITE ? 0xffffffffu : bits & SIGN ? ~bits : bits | SIGN;
    return static_cast<u64>(order) << 32 | ~query;
}

__device__ float product_of(u64 rank) {
    const u32 order = static_cast<u32>(rank >> 32);
    return __uint_as_float(order >> 31 ? order & 0x7fffffffu : ~order);
}

__device__ u32 query_of(u64 rank) { return ~static_cast<u32>(rank); }

// ---- Forward, all pairs

constexpr u32 QUERIES = 32;                 // of an image at a time
constexpr u32 IMAGES = 4;                   // of a block
constexpr u32 TEXTS = 128;                  // of a block
constexpr u32 DEPTH = 32;                   // columns at a time
constexpr u32 CHUNKS = DEPTH / VECTOR;      // of 16 bytes in a row
constexpr u32 STAGES = 3;                   // on their way or in use
constexpr u32 ALL_THREADS = 256;
constexpr u32 WARP_TEXTS = 64;              // of a warp, which has one image
constexpr u32 FRAGMENTS = WARP_TEXTS / 8;   // of 8 texts

static_assert(IMAGES * (TEXTS / WARP_TEXTS) * WARP == ALL_THREADS);
// Lanes of a fragment's row end up with a fragment each.
static_assert(FRAGMENTS == WARP / 4);

struct Stage {
    bf16 queries[IMAGES * QUERIES * DEPTH];  // [images · queries, depth]
    bf16 texts[TEXTS * DEPTH];               // [texts, depth]
};
static_assert(STAGES * sizeof(Stage) <= 48 * 1024);

// Place of a chunk in a stage's matrix: permuted, so that 8 rows' chunks lie in different banks.
__device__ u32 place(u32 row, u32 chunk) { return row * DEPTH + (chunk ^ row / 2 % CHUNKS) * VECTOR; }

// Copies a chunk of which `left` elements are there; the others become zeros.
template <int N> __device__ void copy_chunk(bf16 *to, const bf16 *from, u32 left) {
    if constexpr (N == VECTOR) {
        cp_async(shared_address(to), from, left > 0 ? 16 : 0);
    } else {
        for (u32 j = 0; j < VECTOR; ++j) to[j] = j < left ? from[j] : bf16{0};
    }
}

// Columns from `first` on, of the queries from `first_query` on and of the texts.
template <int N> __device__ void load_stage(const SimilarityForwardArgs &a, Stage &stage, u32 first_query, u32 first) {
    static_assert(IMAGES * QUERIES == TEXTS);
    for (u32 index = threadIdx.x; index < TEXTS * CHUNKS; index += ALL_THREADS) {
        const u32 row = index / CHUNKS, chunk = index % CHUNKS, column = first + chunk * VECTOR;
        const u32 left = column < a.width ? a.width - column : 0;
        const u32 image = blockIdx.x * IMAGES + row / QUERIES, query = first_query + row % QUERIES;
        const bool has_query = left > 0 && image < a.images && query < a.query_count;
        copy_chunk<N>(stage.queries + place(row, chunk),
                      has_query ? a.queries.row(image * a.query_count + query) + column : a.queries.data,
                      has_query ? left : 0);
        const u32 text = blockIdx.y * TEXTS + row;
        const bool has_text = left > 0 && text < a.text_count;
        copy_chunk<N>(stage.texts + place(row, chunk), has_text ? a.texts.row(text) + column : a.texts.data,
                      has_text ? left : 0);
    }
}

// products [32 queries, 64 texts] += the stage's, of this warp's image and texts.
__device__ void multiply(float (&products)[2][FRAGMENTS][4], const Stage &stage, u32 image, u32 first_text) {
    // Which row and chunk this lane names to ldmatrix: of matrix `lane / 8` the row `lane % 8`.
    const u32 matrix = lane_index() / 8, row = lane_index() % 8;
#pragma unroll
    for (u32 chunk = 0; chunk < CHUNKS; chunk += 2) {
        u32 queries[2][4];
#pragma unroll
        for (u32 m = 0; m < 2; ++m)
            ldmatrix(queries[m], shared_address(stage.queries + place(image * QUERIES + m * 16 + matrix % 2 * 8 + row,
                                                                      chunk + matrix / 2)));
#pragma unroll
        for (u32 n = 0; n < FRAGMENTS; n += 2) {
            u32 texts[4];
            ldmatrix(texts, shared_address(stage.texts + place(first_text + n * 8 + matrix / 2 * 8 + row,
                                                               chunk + matrix % 2)));
#pragma unroll
            for (u32 m = 0; m < 2; ++m) {
                mma(products[m][n], queries[m], texts[0], texts[1]);
                mma(products[m][n + 1], queries[m], texts[2], texts[3]);
            }
        }
    }
}

// Of each text the best of the queries from `first_query` on; lane l keeps those of fragment l / 4, columns 2·(l % 4)
// and the next.
__device__ void keep_best(u64 (&best)[2], const float (&products)[2][FRAGMENTS][4], u32 first_query, u32 query_count) {
#pragma unroll
    for (u32 n = 0; n < FRAGMENTS; ++n)
#pragma unroll
        for (u32 e = 0; e < 2; ++e) {
            u64 winner = 0;
#pragma unroll
            for (u32 m = 0; m < 2; ++m)
#pragma unroll
                for (u32 half = 0; half < 2; ++half) {
                    const u32 query = first_query + m * 16 + half * 8 + lane_index() / 4;
                    if (query < query_count) winner = max(winner, rank(products[m][n][half * 2 + e], query));
                }
#pragma unroll
            for (u32 step = 4; step < WARP; step *= 2)
                winner = max(winner, __shfl_xor_sync(ALL_LANES, winner, step));
            if (n == lane_index() / 4) best[e] = max(best[e], winner);
        }
}

template <int N> __device__ void forward_all(const SimilarityForwardArgs &a, Stage (&stages)[STAGES]) {
    const u32 image = warp_index() % IMAGES, first_text = warp_index() / IMAGES * WARP_TEXTS;
    const u32 steps = ceil_div(a.width, DEPTH);
    u64 best[2] = {};
    for (u32 first_query = 0; first_query < a.query_count; first_query += QUERIES) {
        float products[2][FRAGMENTS][4] = {};
#pragma unroll
        for (u32 step = 0; step < STAGES - 1; ++step) {
            if (step < steps) load_stage<N>(a, stages[step], first_query, step * DEPTH);
            cp_async_commit_group();
        }
        for (u32 step = 0; step < steps; ++step) {
            cp_async_wait_group<STAGES - 2>();
            // The stage is there for all, and all are done with the one before, which is filled again.
            __syncthreads();
            const u32 next = step + STAGES - 1;
            if (next < steps) load_stage<N>(a, stages[next % STAGES], first_query, next * DEPTH);
            cp_async_commit_group();
            multiply(products, stages[step % STAGES], image, first_text);
        }
        keep_best(best, products, first_query, a.query_count);
        __syncthreads();
    }
    const u32 row = blockIdx.x * IMAGES + image;
    if (row >= a.images) return;
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 text = blockIdx.y * TEXTS + first_text + lane_index() * 2 + e;
        if (text >= a.text_count) continue;
        a.similarity.row(row)[text] = to_bf16(product_of(best[e]));
        if (a.winner.present()) a.winner.row(row)[text] = query_of(best[e]);
    }
}

extern "C" __global__ void __launch_bounds__(ALL_THREADS, 2)
    similarity_all_forward(const __grid_constant__ SimilarityForwardArgs a) {
    __shared__ __align__(128) Stage stages[STAGES];
    a.vector == VECTOR ? forward_all<VECTOR>(a, stages) : forward_all<1>(a, stages);
}

// ---- Forward, matched pairs

constexpr u32 THREADS = 256;
// Queries whose products are summed together.
constexpr u32 TOGETHER = 4;

__device__ u32 row_of_warp() { return blockIdx.x * (THREADS / WARP) + warp_index(); }

template <int N> __device__ void forward_matched(const SimilarityForwardArgs &a, u32 image) {
    u64 best = 0;
    for (u32 query = 0; query < a.query_count; query += TOGETHER) {
        float products[TOGETHER] = {};
        for (u32 column = lane_index() * N; column < a.width; column += WARP * N) {
            float text[N];
            load(text, a.texts.row(image) + column);
#pragma unroll
            for (u32 i = 0; i < TOGETHER; ++i) {
                if (query + i >= a.query_count) break;
                float x[N];
                load(x, a.queries.row(image * a.query_count + query + i) + column);
#pragma unroll
                for (int j = 0; j < N; ++j) products[i] += x[j] * text[j];
            }
        }
#pragma unroll
        for (u32 i = 0; i < TOGETHER; ++i) {
            const float product = warp_sum(products[i]);
            if (query + i < a.query_count) best = max(best, rank(product, query + i));
        }
    }
    if (lane_index() > 0) return;
    *a.similarity.row(image) = to_bf16(product_of(best));
    if (a.winner.present()) *a.winner.row(image) = query_of(best);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    similarity_matched_forward(const __grid_constant__ SimilarityForwardArgs a) {
    const u32 image = row_of_warp();
    if (image >= a.images) return;
    a.vector == VECTOR ? forward_matched<VECTOR>(a, image) : forward_matched<1>(a, image);
}

// ---- Backward

// dqueries[i, q] = Σ over t that q won of dsimilarity[i, t]·texts[t]
template <int N> __device__ void backward_queries(const SimilarityBackwardQueriesArgs &a, u32 row) {
    const u32 image = row / a.query_count, query = row % a.query_count;
    const u32 *winner = a.winner.row(image);
    const bf16 *dsimilarity = a.dsimilarity.row(image);
    for (u32 first = 0; first < a.width; first += WARP * N) {
        const u32 column = first + lane_index() * N;
        float sum[N] = {};
        for (u32 begin = 0; begin < a.columns; begin += WARP) {
            const u32 mine = begin + lane_index();
            const bool won = mine < a.columns && winner[mine] == query;
            const float d = won ? to_float(dsimilarity[mine]) : 0.0f;
            // Some texts at a time, so that their rows are on their way together.
            for (u32 bits = __ballot_sync(ALL_LANES, won); bits != 0;) {
                float factor[TOGETHER], text[TOGETHER][N];
                bool there[TOGETHER];
                u32 at = 0;
#pragma unroll
                for (u32 i = 0; i < TOGETHER; ++i) {
                    there[i] = bits != 0;
                    if (there[i]) at = __ffs(bits) - 1;
                    bits &= bits - 1;
                    factor[i] = __shfl_sync(ALL_LANES, d, at);
                    const u32 index = a.pairing == Pairing::All ? begin + at : image;
                    if (there[i] && column < a.width) load(text[i], a.texts.row(index) + column);
                }
#pragma unroll
                for (u32 i = 0; i < TOGETHER; ++i)
                    if (there[i] && column < a.width) {
#pragma unroll
                        for (int j = 0; j < N; ++j) sum[j] += factor[i] * text[i][j];
                    }
            }
        }
        if (column < a.width) store(a.dqueries.row(row) + column, sum);
    }
}

// dtexts[t] = Σ over i of dsimilarity[i, t]·queries[i, winner[i, t]]
template <int N> __device__ void backward_texts(const SimilarityBackwardTextsArgs &a, u32 text) {
    const bool all = a.pairing == Pairing::All;
    const u32 first_image = all ? 0 : text, end = all ? a.images : text + 1, pair = all ? text : 0;
    for (u32 first = 0; first < a.width; first += WARP * N) {
        const u32 column = first + lane_index() * N;
        float sum[N] = {};
        for (u32 begin = first_image; begin < end; begin += WARP) {
            const u32 mine = begin + lane_index();
            const u32 query = mine < end ? mine * a.query_count + a.winner.row(mine)[pair] : 0;
            const float d = mine < end ? to_float(a.dsimilarity.row(mine)[pair]) : 0.0f;
            const u32 count = min(WARP, end - begin);
#pragma unroll 4
            for (u32 at = 0; at < count; ++at) {
                const float factor = __shfl_sync(ALL_LANES, d, at);
                const u32 row = __shfl_sync(ALL_LANES, query, at);
                if (column < a.width) {
                    float x[N];
                    load(x, a.queries.row(row) + column);
#pragma unroll
                    for (int j = 0; j < N; ++j) sum[j] += factor * x[j];
                }
            }
        }
        if (column < a.width) store(a.dtexts.row(text) + column, sum);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    similarity_backward_queries(const __grid_constant__ SimilarityBackwardQueriesArgs a) {
    const u32 row = row_of_warp();
    if (row >= a.images * a.query_count) return;
    a.vector == VECTOR ? backward_queries<VECTOR>(a, row) : backward_queries<1>(a, row);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    similarity_backward_texts(const __grid_constant__ SimilarityBackwardTextsArgs a) {
    const u32 text = row_of_warp();
    if (text >= a.text_count) return;
    a.vector == VECTOR ? backward_texts<VECTOR>(a, text) : backward_texts<1>(a, text);
}
