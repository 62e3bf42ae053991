// What the kernels of attention share: which rows belong together, rows in shared memory, fragments of
// matrices in registers, and dropout of probabilities.
#pragma once
#include "random.cuh"

// Rows of a tile of queries: those of one mma.
constexpr u32 TILE = 16;
// Keys of one mma's result.
constexpr u32 KEYS = 8;
constexpr float LOG2_E = 1.44269504f;

// Where a lane's numbers lie in the fragments of mma.
__device__ inline u32 fragment_row() { return lane_index() / 4; }
__device__ inline u32 fragment_column() { return lane_index() % 4 * 2; }

// ---- Which rows belong together

// Consecutive rows of a stream.
struct Span {
    u32 start, len;
};

// Twin of `Sequence` in src/ops/attention/sequences.rs.
struct Sequence {
    Span queries[2], keys[2];

    __device__ u32 query_count() const { return queries[0].len + queries[1].len; }
    __device__ u32 key_count() const { return keys[0].len + keys[1].len; }
    // Row of the stream of the sequence's query `index`.
    __device__ u32 query_row(u32 index) const {
        return index < queries[0].len ? queries[0].start + index : queries[1].start + index - queries[0].len;
    }
};
static_assert(sizeof(Sequence) == 32);

// Twin of `Mask` in src/ops/attention/mod.rs.
enum class Mask : u32 { None = 0, Causal = 1 };

// A head's part of a row.
struct HeadSize {
    u32 width;
    u32 vector;  // VECTOR if all heads of all rows are whole vectors, else 1
};

// What all kernels of attention get. Twin of `AttentionArgs` in src/ops/attention/cuda.rs.
struct Attention {
    const u32 *table;  // bounds of the groups, then the sequences
    u32 groups;
    Mask mask;
    HeadSize head;
    float scale;
    u32 reach;
    In<float> bias;  // [heads, 2·reach + 1]: what is added to the scores by distance; or absent
    Dropout dropout;

    __device__ const Sequence *sequence(u32 index) const {
        return reinterpret_cast<const Sequence *>(table + groups + 1) + index;
    }
    // How many of a sequence's keys its query `index` sees; they are always the first ones.
    __device__ u32 visible(const Sequence &s, u32 index) const {
        if (mask == Mask::None) return s.key_count();
        if (index < s.queries[0].len) return s.keys[0].len;
        return s.keys[0].len + (index - s.queries[0].len) + 1 + s.keys[1].len - s.queries[1].len;
    }
    // The column of the bias of a sequence's query `index` and its first key; it may lie before the first column.
    __device__ int first_bias(const Sequence &s, u32 index) const {
        return static_cast<int>(reach + s.query_count() - s.key_count() - index);
    }
    // What is added to the score of a key of a query whose first key has column `first` of the bias.
    __device__ float bias_of(int first, u32 key) const {
        const int column = min(max(first + static_cast<int>(key), 0), static_cast<int>(2 * reach));
        return bias.row(blockIdx.y)[column];
    }
};
static_assert(sizeof(Attention) == 72);

// Whether what depends on distance is added to the scores: kernels of their own, for the registers that it takes.
enum class Bias { None, Distance };

// The factor of what stands for the scores, which with a bias are whole.
template <Bias BIAS> __device__ float score_factor(const Attention &what) {
    return BIAS == Bias::None ? what.scale : 1.0f;
}

// The tiles of TILE queries of a group's sequences, one after the other. A tile has rows of one sequence only.
struct Tiles {
    const Sequence *sequence, *end;
    u32 tile;  // within the sequence

    __device__ Tiles(const Attention &what, u32 group, u32 first)
        : sequence(what.sequence(what.table[group])), end(what.sequence(what.table[group + 1])), tile(0) {
        advance(first);
    }
    __device__ bool found() const { return sequence != end; }
    __device__ void advance(u32 count) {
        tile += count;
        while (found()) {
            const u32 tiles = ceil_div(sequence->query_count(), TILE);
            if (tile < tiles) return;
            tile -= tiles;
            ++sequence;
        }
    }
    // Whether the tile has a row of this number.
    __device__ bool has(u32 row) const { return tile * TILE + row < sequence->query_count(); }
    // Row of the stream of the tile's row.
    __device__ u32 stream_row(u32 row) const { return sequence->query_row(tile * TILE + row); }
};

// Keys or values of a group: rows of two matrices.
struct KeyRows {
    In<bf16> matrices[2];
    Span spans[2];
    const u32 *listed;  // the rows that the second span's keys are, or null: they follow one another

    // Null beyond the last.
    __device__ const bf16 *row(u32 index) const {
        if (index < spans[0].len) return matrices[0].row(spans[0].start + index);
        index -= spans[0].len;
        if (index >= spans[1].len) return nullptr;
        index += spans[1].start;
        return matrices[1].row(listed == nullptr ? index : listed[index]);
    }
};

// ---- Rows in shared memory

// Rows of W bf16. The vectors of a row change places so that the same vector of eight consecutive rows
// lies in eight different quarters of the banks: ldmatrix reads them without conflicts.
template <u32 W> struct SharedRows {
    static constexpr u32 VECTORS = W / VECTOR;
    static constexpr u32 BYTES = W * sizeof(bf16);
    // How many neighbouring vectors change places.
    static constexpr u32 MIXED = VECTORS % 8 == 0 ? 8 : VECTORS % 4 == 0 ? 4 : 2;
    static_assert(VECTORS % MIXED == 0);
    u32 address;

    // Address of a vector of row first + row, where `first` is a multiple of 8.
    __device__ u32 at(u32 first, u32 row, u32 vector) const {
        return address + (first + row) * BYTES + (vector ^ row / (8 / MIXED) % MIXED) * 16;
    }

    // Starts to copy rows: `row_at(r)` is the address of row r, or null for zeros. Elements beyond `width`
    // are zeros. All threads of the block take part; who reads waits for the copies and for the block.
    template <class RowAt> __device__ void copy(u32 rows, u32 width, u32 vector_size, RowAt row_at) const {
        for (u32 i = threadIdx.x; i < rows * VECTORS; i += blockDim.x) {
            const u32 row = i / VECTORS, vector = i % VECTORS, column = vector * VECTOR;
            const bf16 *from = row_at(row);
            const bool there = from != nullptr && column < width;
            const u32 to = at(0, row, vector);
            if (vector_size == VECTOR && there) {
                cp_async(to, from + column, 16);
            } else {
                u32 words[4] = {};
                if (there)
#pragma unroll
                    for (u32 j = 0; j < VECTOR; ++j)
                        if (column + j < width) words[j / 2] |= static_cast<u32>(from[column + j].bits) << j % 2 * 16;
                st_shared(to, make_uint4(words[0], words[1], words[2], words[3]));
            }
        }
    }

    // Rows first .. first + 8 as b of two mma: their elements 2·pair·16 .. 2·pair·16 + 32.
    __device__ void load_rows(u32 (&b)[4], u32 first, u32 pair) const {
        ldmatrix(b, at(first, lane_index() % 8, pair * 4 + lane_index() / 8));
    }
    // Rows first .. first + 16, elements step·16 .. step·16 + 16, as a of mma.
    __device__ void load_fragment(u32 (&a)[4], u32 first, u32 step) const {
        ldmatrix(a, at(first, lane_index() % 16, step * 2 + lane_index() / 16));
    }
    // Rows first .. first + 16 down, elements pair·16 .. pair·16 + 16 across, as b of two mma.
    __device__ void load_columns(u32 (&b)[4], u32 first, u32 pair) const {
        ldmatrix_trans(b, at(first, lane_index() % 16, pair * 2 + lane_index() / 16));
    }
    // The same where only 8 rows are there: they stand in for the others, whose factor is zero.
    __device__ void load_half_columns(u32 (&b)[4], u32 first, u32 pair) const {
        ldmatrix_trans(b, at(first, lane_index() % 8, pair * 2 + lane_index() / 16));
    }
};

// ---- Fragments

// Elements column and column + 1 of a head's row in one register; zeros beyond it and where it is null.
__device__ inline u32 load_pair(const bf16 *row, u32 column, HeadSize head) {
    if (row == nullptr || column >= head.width) return 0;
    if (head.vector == VECTOR) return *reinterpret_cast<const u32 *>(row + column);
    const u32 next = column + 1 < head.width ? row[column + 1].bits : 0;
    return row[column].bits | next << 16;
}

__device__ inline void store_pair(bf16 *row, u32 column, float x, float next, HeadSize head) {
    if (column >= head.width) return;
    if (head.vector == VECTOR) {
        *reinterpret_cast<u32 *>(row + column) = pack(x, next);
    } else {
        row[column] = to_bf16(x);
        if (column + 1 < head.width) row[column + 1] = to_bf16(next);
    }
}

// 16 rows of W elements as a of mma, from the lane's two rows; what is null is zero.
template <u32 W> struct RowFragment {
    u32 a[W / 16][4];

    __device__ void load(const bf16 *row, const bf16 *row8, HeadSize head) {
#pragma unroll
        for (u32 k = 0; k < W / 16; ++k) {
            const u32 column = k * 16 + fragment_column();
            a[k][0] = load_pair(row, column, head);
            a[k][1] = load_pair(row8, column, head);
            a[k][2] = load_pair(row, column + 8, head);
            a[k][3] = load_pair(row8, column + 8, head);
        }
    }

    // c [16, 8] = this·rowsᵀ for 8 rows in shared memory.
    __device__ void times_rows(float (&c)[4], const SharedRows<W> &rows, u32 first) const {
#pragma unroll
        for (float &x : c) x = 0.0f;
#pragma unroll
        for (u32 pair = 0; pair < W / 32; ++pair) {
            u32 b[4];
            rows.load_rows(b, first, pair);
            mma(c, a[2 * pair], b[0], b[1]);
            mma(c, a[2 * pair + 1], b[2], b[3]);
        }
    }
};

// As `RowFragment`, but the 16 rows stay in shared memory, where registers are few.
template <u32 W> struct StoredFragment {
    SharedRows<W> own;
    u32 own_first;

    __device__ void times_rows(float (&c)[4], const SharedRows<W> &rows, u32 first) const {
#pragma unroll
        for (float &x : c) x = 0.0f;
#pragma unroll
        for (u32 pair = 0; pair < W / 32; ++pair) {
            u32 a[4], b[4];
            rows.load_rows(b, first, pair);
            own.load_fragment(a, own_first, 2 * pair);
            mma(c, a, b[0], b[1]);
            own.load_fragment(a, own_first, 2 * pair + 1);
            mma(c, a, b[2], b[3]);
        }
    }
};

// sums [16, W] += p [16, 16]·16 rows in shared memory, of which HALF says that only 8 are there.
enum class Rows { Sixteen, Eight };
template <Rows ROWS, u32 W>
__device__ void add_product(float (&sums)[W / 8][4], const u32 (&p)[4], const SharedRows<W> &rows, u32 first) {
#pragma unroll
    for (u32 pair = 0; pair < W / 16; ++pair) {
        u32 b[4];
        if constexpr (ROWS == Rows::Sixteen)
            rows.load_columns(b, first, pair);
        else
            rows.load_half_columns(b, first, pair);
        mma(sums[2 * pair], p, b[0], b[1]);
        mma(sums[2 * pair + 1], p, b[2], b[3]);
    }
}

// Two results of mma side by side, [16, 8] each, as a of the next.
__device__ inline void pack_fragment(u32 (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = pack(left[0], left[1]);
    a[1] = pack(left[2], left[3]);
    a[2] = pack(right[0], right[1]);
    a[3] = pack(right[2], right[3]);
}

// Over the four lanes that share a fragment's row.
__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}
__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

// ---- Dropout of probabilities

// Factors of a result of mma [16 queries, 8 keys from key on]; rows: of the stream, the lane's two.
__device__ inline void dropout_factors(float (&factors)[4], const Dropout &dropout, uint2 seed, const u32 (&rows)[2],
                                       u32 key) {
    // Two lanes have the four keys of a draw, in both rows: each draws for one row.
    const bool odd = lane_index() % 2 == 1;
    const uint4 draw = dropout.words(seed, blockIdx.y, odd ? rows[1] : rows[0], key + fragment_column() / 4 * 4);
    const u32 other0 = __shfl_xor_sync(ALL_LANES, odd ? draw.x : draw.z, 1);
    const u32 other1 = __shfl_xor_sync(ALL_LANES, odd ? draw.y : draw.w, 1);
    factors[0] = dropout.factor(odd ? other0 : draw.x);
    factors[1] = dropout.factor(odd ? other1 : draw.y);
    factors[2] = dropout.factor(odd ? draw.z : other0);
    factors[3] = dropout.factor(odd ? draw.w : other1);
}

// Factors of a result of mma [16 keys from key on, 8 queries]; rows: of the stream, the lane's two.
__device__ inline void dropout_factors_of_keys(float (&factors)[4], const Dropout &dropout, uint2 seed,
                                               const u32 (&rows)[2], u32 key) {
    // Four lanes have the four keys of a draw, and four draws in common: both rows, keys from 0 and 8 on. Each
    // draws one, and a transposition over the four gives each its key's words.
    const u32 index = fragment_row() % 4;
    const bool odd = index % 2 == 1, high = index / 2 == 1;
    const uint4 draw =
        dropout.words(seed, blockIdx.y, odd ? rows[1] : rows[0], key + fragment_row() / 4 * 4 + (high ? 8 : 0));
    const u32 x = __shfl_xor_sync(ALL_LANES, odd ? draw.x : draw.y, 4);
    const u32 y = __shfl_xor_sync(ALL_LANES, odd ? draw.z : draw.w, 4);
    const u32 pairs[4] = {odd ? x : draw.x, odd ? draw.y : x, odd ? y : draw.z, odd ? draw.w : y};
    const u32 z = __shfl_xor_sync(ALL_LANES, high ? pairs[0] : pairs[2], 8);
    const u32 w = __shfl_xor_sync(ALL_LANES, high ? pairs[1] : pairs[3], 8);
    factors[0] = dropout.factor(high ? z : pairs[0]);
    factors[1] = dropout.factor(high ? w : pairs[1]);
    factors[2] = dropout.factor(high ? pairs[2] : z);
    factors[3] = dropout.factor(high ? pairs[3] : w);
}
