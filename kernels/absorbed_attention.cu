// absorbed_attention: out = softmax(scale·q·(x·Wₖᵀ)ᵀ)·(x·Wᵥᵀ) + bᵥ, head by head, without keys and values:
// q·(x·Wₖᵀ)ᵀ = (q·Wₖ)·xᵀ and p·(x·Wᵥᵀ) = (p·x)·Wᵥᵀ.
//
// A block has QUERIES queries of one head of one image; grid [images, heads, tiles of queries]. It holds their
// whole rows of scores, and passes twice over the image's width, COLUMNS at a time: q·Wₖ of these columns,
// and with it their part of the scores; then, after the softmax, p·x of these columns, and with it their part of
// the output. So neither q·Wₖ nor p·x [queries, width] is ever whole.
// Bytes moved: q and out once; the image's features twice and a head's rows of both weights once, for
// each tile of queries of each head, mostly from the second-level cache.
#include "attention.cuh"

// Twin of `AbsorbedAttentionArgs` in src/ops/absorbed_attention/cuda.rs.
struct AbsorbedAttentionArgs {
    In<bf16> q;             // [images·queries, heads·width]
    In<bf16> image;         // [images·tokens, image width]
    In<bf16> key_weight;    // [heads·width, image width]
    In<bf16> value_weight;  // [heads·width, image width]
    In<bf16> value_bias;    // [1, heads·width]
    Out<bf16> out;          // [images·queries, heads·width]
    HeadSize head;
    HeadSize columns;  // the image's width, and whether its rows are vectors
    u32 queries, tokens;
    float scale;
    u32 unused;
};
static_assert(sizeof(AbsorbedAttentionArgs) == 128);

constexpr u32 THREADS = 256, WARPS = THREADS / WARP;
// Queries of a block: two fragments of 16 rows.
constexpr u32 QUERIES = 32, FRAGMENTS = QUERIES / TILE;
// Columns of the image in shared memory at a time: each warp computes 8 of them.
constexpr u32 COLUMNS = WARPS * 8;
// Fragments of 8 tokens whose scores a warp holds. Twin of `TOKENS` in src/ops/absorbed_attention/mod.rs.
constexpr u32 SCORES = 5, TOKENS = SCORES * WARPS * KEYS;
static_assert(TOKENS == 320);

extern __shared__ __align__(128) unsigned char shared[];

// 32 rows of 64 columns as a of mma.
struct Middle {
    u32 a[FRAGMENTS][COLUMNS / 16][4];

    __device__ void load(const SharedRows<COLUMNS> &rows) {
#pragma unroll
        for (u32 m = 0; m < FRAGMENTS; ++m)
#pragma unroll
            for (u32 k = 0; k < COLUMNS / 16; ++k)
                ldmatrix(a[m][k], rows.at(m * TILE, lane_index() % 16, k * 2 + lane_index() / 16));
    }

    // c += this·rowsᵀ for 8 rows in shared memory.
    __device__ void add_times_rows(float (&c)[FRAGMENTS][4], const SharedRows<COLUMNS> &rows, u32 first) const {
#pragma unroll
        for (u32 pair = 0; pair < COLUMNS / 32; ++pair) {
            u32 b[4];
            rows.load_rows(b, first, pair);
#pragma unroll
            for (u32 m = 0; m < FRAGMENTS; ++m) {
                mma(c[m], a[m][2 * pair], b[0], b[1]);
                mma(c[m], a[m][2 * pair + 1], b[2], b[3]);
            }
        }
    }
};

// Stores results of mma [16, 8] each, one below the other, as a vector's columns of rows in shared memory.
__device__ static void store_fragments(const SharedRows<COLUMNS> &rows, u32 vector, const float (&c)[FRAGMENTS][4]) {
#pragma unroll
    for (u32 m = 0; m < FRAGMENTS; ++m)
#pragma unroll
        for (u32 h = 0; h < 2; ++h)
            st_shared(rows.at(m * TILE + h * 8, fragment_row(), vector) + lane_index() % 4 * 4,
                      pack(c[m][2 * h], c[m][2 * h + 1]));
}

// A value for each of the lane's rows: 16·m + 8·h + lane / 4.
struct RowValues {
    float x[FRAGMENTS][2];
};

// Combines what each warp has of each row; `exchange` is read by all before it may be written again.
template <class Combine>
__device__ static RowValues over_warps(float (&exchange)[WARPS][QUERIES], const RowValues &own, Combine combine) {
    RowValues all = own;
    for (u32 m = 0; m < FRAGMENTS; ++m)
        for (u32 h = 0; h < 2; ++h)
            if (fragment_column() == 0) exchange[warp_index()][m * TILE + h * 8 + fragment_row()] = own.x[m][h];
    __syncthreads();
#pragma unroll
    for (u32 m = 0; m < FRAGMENTS; ++m)
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            const u32 row = m * TILE + h * 8 + fragment_row();
            all.x[m][h] = exchange[0][row];
            for (u32 warp = 1; warp < WARPS; ++warp) all.x[m][h] = combine(all.x[m][h], exchange[warp][row]);
        }
    return all;
}

template <u32 W> __device__ void absorbed(const AbsorbedAttentionArgs &a) {
    const u32 image = blockIdx.x, head = blockIdx.y * a.head.width, first_query = blockIdx.z * QUERIES;
    const u32 rows = ceil_div(a.tokens, KEYS) * KEYS, warp = warp_index();
    const SharedRows<W> q{shared_address(shared)};
    const SharedRows<COLUMNS> weight{q.address + QUERIES * q.BYTES};      // [W, COLUMNS]
    const SharedRows<COLUMNS> middle{weight.address + W * weight.BYTES};  // q·Wₖ or p·x [QUERIES, COLUMNS]
    const SharedRows<COLUMNS> x{middle.address + QUERIES * middle.BYTES};  // [rows, COLUMNS]
    // Probabilities of 64 tokens after the other [QUERIES, 64].
    const auto p = [&](u32 block) {
        return SharedRows<COLUMNS>{x.address + rows * x.BYTES + block * QUERIES * x.BYTES};
    };
    __shared__ float largest_of[WARPS][QUERIES], total_of[WARPS][QUERIES];

    // Columns first .. first + COLUMNS of the image and of a weight.
    const auto load_columns = [&](const In<bf16> &from, u32 first) {
        __syncthreads();
        const u32 width = min(COLUMNS, a.columns.width - first);
        weight.copy(W, width, a.columns.vector,
                    [&](u32 row) { return row < a.head.width ? from.row(head + row) + first : nullptr; });
        x.copy(rows, width, a.columns.vector,
               [&](u32 row) { return row < a.tokens ? a.image.row(image * a.tokens + row) + first : nullptr; });
        cp_async_commit_group();
        cp_async_wait_group<0>();
        __syncthreads();
    };

    q.copy(QUERIES, a.head.width, a.head.vector, [&](u32 row) {
        return first_query + row < a.queries ? a.q.row(image * a.queries + first_query + row) + head : nullptr;
    });

    // Scores of the tokens 8·(warp + WARPS·j) and the 7 after it.
    float scores[SCORES][FRAGMENTS][4] = {};
    for (u32 first = 0; first < a.columns.width; first += COLUMNS) {
        load_columns(a.key_weight, first);
        float absorbed[FRAGMENTS][4] = {};
#pragma unroll
        for (u32 k = 0; k < W / 16; k += 2) {
            // 32 rows of the weight, this warp's columns.
            u32 b[4];
            ldmatrix_trans(b, weight.at(k * 16, lane_index(), warp));
#pragma unroll
            for (u32 m = 0; m < FRAGMENTS; ++m)
#pragma unroll
                for (u32 half = 0; half < 2; ++half) {
                    u32 rows_of_q[4];
                    ldmatrix(rows_of_q, q.at(m * TILE, lane_index() % 16, (k + half) * 2 + lane_index() / 16));
                    mma(absorbed[m], rows_of_q, b[2 * half], b[2 * half + 1]);
                }
        }
        store_fragments(middle, warp, absorbed);
        __syncthreads();
        Middle left;
        left.load(middle);
#pragma unroll
        for (u32 j = 0; j < SCORES; ++j) {
            const u32 token = (warp + j * WARPS) * KEYS;
            if (token < rows) left.add_times_rows(scores[j], x, token);
        }
    }

    // Softmax, without the factor 1/total.
    const float scale2 = a.scale * LOG2_E;
    RowValues largest, total = {};
#pragma unroll
    for (u32 m = 0; m < FRAGMENTS; ++m)
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            float most = -__int_as_float(0x7f800000);
#pragma unroll
            for (u32 j = 0; j < SCORES; ++j)
#pragma unroll
                for (u32 i = 0; i < 2; ++i) {
                    float &score = scores[j][m][2 * h + i];
                    if ((warp + j * WARPS) * KEYS + fragment_column() + i >= a.tokens)
                        score = -__int_as_float(0x7f800000);
                    most = fmaxf(most, score);
                }
            largest.x[m][h] = row_max(most);
        }
    largest = over_warps(largest_of, largest, [](float a, float b) { return fmaxf(a, b); });
#pragma unroll
    for (u32 j = 0; j < SCORES; ++j) {
#pragma unroll
        for (u32 m = 0; m < FRAGMENTS; ++m)
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                float &score = scores[j][m][i];
                score = ex2(score * scale2 - largest.x[m][i / 2] * scale2);
                total.x[m][i / 2] += score;
            }
        // Zeros too, up to the next multiple of 32 tokens: what p·x takes at a time.
        const u32 tile = warp + j * WARPS;
        if (tile < ceil_div(a.tokens, 32) * 4) store_fragments(p(tile / 8), tile % 8, scores[j]);
    }
#pragma unroll
    for (u32 m = 0; m < FRAGMENTS; ++m)
#pragma unroll
        for (u32 h = 0; h < 2; ++h) total.x[m][h] = row_sum(total.x[m][h]);
    total = over_warps(total_of, total, [](float a, float b) { return a + b; });

    // Columns 8·(warp + WARPS·n) of the head and the 7 after it.
    constexpr u32 OUTPUTS = ceil_div(W / 8, WARPS);
    float out[OUTPUTS][FRAGMENTS][4] = {};
    for (u32 first = 0; first < a.columns.width; first += COLUMNS) {
        load_columns(a.value_weight, first);
        float gathered[FRAGMENTS][4] = {};
        for (u32 token = 0; token < a.tokens; token += 32) {
            // 32 tokens, this warp's columns. Beyond the last ones others stand in, whose factor is zero.
            u32 b[4];
            const u32 row = token + lane_index();
            ldmatrix_trans(b, x.at(row < rows ? token : rows - 8, row < rows ? lane_index() : lane_index() % 8, warp));
#pragma unroll
            for (u32 m = 0; m < FRAGMENTS; ++m)
#pragma unroll
                for (u32 half = 0; half < 2; ++half) {
                    u32 probabilities[4];
                    const u32 vector = token % 64 / 8 + half * 2 + lane_index() / 16;
                    ldmatrix(probabilities, p(token / 64).at(m * TILE, lane_index() % 16, vector));
                    mma(gathered[m], probabilities, b[2 * half], b[2 * half + 1]);
                }
        }
        store_fragments(middle, warp, gathered);
        __syncthreads();
        Middle left;
        left.load(middle);
#pragma unroll
        for (u32 n = 0; n < OUTPUTS; ++n) {
            const u32 column = (warp + n * WARPS) * 8;
            if (column < W) left.add_times_rows(out[n], weight, column);
        }
    }

#pragma unroll
    for (u32 n = 0; n < OUTPUTS; ++n) {
        const u32 column = (warp + n * WARPS) * 8 + fragment_column();
        float bias[2];
        unpack(bias[0], bias[1], load_pair(a.value_bias.row(0) + head, column, a.head));
#pragma unroll
        for (u32 m = 0; m < FRAGMENTS; ++m)
#pragma unroll
            for (u32 h = 0; h < 2; ++h) {
                const u32 query = first_query + m * TILE + h * 8 + fragment_row();
                const float inverse = 1.0f / total.x[m][h];
                if (query < a.queries)
                    store_pair(a.out.row(image * a.queries + query) + head, column,
                               out[n][m][2 * h] * inverse + bias[0], out[n][m][2 * h + 1] * inverse + bias[1], a.head);
            }
    }
}

// By the width of a head, filled up with zeros.
#define ABSORBED_ATTENTION(W)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                     \
        absorbed_attention_##W(const __grid_constant__ AbsorbedAttentionArgs a) {                                \
        absorbed<W>(a);                                                                                          \
    }
ABSORBED_ATTENTION(32)
ABSORBED_ATTENTION(64)
ABSORBED_ATTENTION(96)
#undef ABSORBED_ATTENTION
