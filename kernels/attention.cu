// attention: out = softmax(scale·q·kᵀ + bias + mask)·v, head by head, and its gradients.
//
// A group of sequences that read the same keys is the unit of work. The forward pass and the gradient of the
// queries give a block one head of one group: K and V [keys, head width] come to shared memory once, whole
// if they fit, else `chunk` rows at a time; warps take the group's tiles of 16 queries in turn. The gradients
// of keys and values give a block 16 keys a warp, whose sums stay in registers while all queries of the
// group pass through shared memory: they are written once, without atomics. Scores and probabilities stay in
// registers throughout (softmax by running maximum and sum, as in FlashAttention).
// Where few queries meet many keys, as in decoding, the blocks of the forward pass share out the keys instead: each
// leaves its sums in scratch memory, and `attention_combine` adds them up.
// Grids: [groups, heads, shares of the queries or splits of the keys] and [groups, heads, shares of the keys].
// Bytes moved: q, k, v, out once (backward: q, out, dout once for each share of the keys and once for dq).
// Saved: the log-sum-exp of each row's scores. The backward pass computes the scores again, and
// delta = Σ out·dout instead of Σ p·dp. Masks of dropout are drawn again from their place.
#include "attention.cuh"

// Twin of `ForwardArgs` in src/ops/attention/cuda.rs.
struct ForwardArgs {
    Attention what;
    In<bf16> q;         // [query rows, heads·width]
    In<bf16> k[2];      // of the first and the second span of keys [key rows, heads·width]
    In<bf16> v[2];      // as k
    In<u32> key_rows;   // [1, count], which the second spans of keys are spans of: their rows of k and v; or absent
    Out<bf16> out;      // [query rows, heads·width]
    Out<float> lse;     // [heads, query rows], or absent
    // [splits·heads·query rows, sums_of(width) + 2]: sums of values, their largest score in powers of two, the sum of
    // probabilities by it; or absent
    Out<float> sums;
    u32 chunk, unused;  // keys in shared memory, a multiple of KEYS
    u32 split;          // keys of a block, a multiple of KEYS, if the blocks share them out, else 0
    u32 query_rows;
};
static_assert(sizeof(ForwardArgs) == 232);

// Twin of `CombineArgs` in src/ops/attention/cuda.rs.
struct CombineArgs {
    Attention what;
    In<float> sums;  // as in ForwardArgs
    Out<bf16> out;   // [query rows, heads·width]
    Out<float> lse;  // [heads, query rows], or absent
    u32 split, query_rows;
};
static_assert(sizeof(CombineArgs) == 128);

// What both kernels of the backward pass read. Twin of `BackwardInputs` in src/ops/attention/cuda.rs.
struct BackwardInputs {
    Attention what;
    In<bf16> q;     // [query rows, heads·width]
    In<bf16> k[2];  // of the first and the second span of keys [key rows, heads·width]
    In<bf16> v[2];  // as k
    In<bf16> out;   // [query rows, heads·width]
    In<float> lse;  // [heads, query rows]
    In<bf16> dout;  // [query rows, heads·width]
};
static_assert(sizeof(BackwardInputs) == 200);

// Twin of `BackwardQueriesArgs` in src/ops/attention/cuda.rs.
struct BackwardQueriesArgs : BackwardInputs {
    Out<bf16> dq;       // [query rows, heads·width]
    u32 chunk, unused;  // keys in shared memory, a multiple of KEYS
};
static_assert(sizeof(BackwardQueriesArgs) == 224);

// Twin of `BackwardKeysArgs` in src/ops/attention/cuda.rs.
struct BackwardKeysArgs : BackwardInputs {
    Out<bf16> dk, dv;      // as k and v, but for what belongs to a prefix
    Out<bf16> dprefix[2];  // of k and v of the first span of keys if that is a prefix, or absent; added to
    Write write;           // of dk and dv
    u32 unused;
};
static_assert(sizeof(BackwardKeysArgs) == 272);

constexpr u32 THREADS = 256;

extern __shared__ __align__(128) unsigned char shared[];

// First column of this block's head.
__device__ static u32 head_column(const Attention &what) { return blockIdx.y * what.head.width; }

// ---- One walk for the forward pass and the gradient of the queries

// Columns that the sums of a head take, in pairs.
__device__ static u32 sums_of(u32 width) { return ceil_div(width, 2) * 2; }

// Row of the sums that a split of the keys leaves for a row of queries.
__device__ static u32 row_of_sums(u32 split, u32 query_row, u32 query_rows) {
    return (split * gridDim.y + blockIdx.y) * query_rows + query_row;
}

// Whether all of a tile's queries see all keys of a step.
enum class Seen { All, Some };

// Gives every tile of the block's share to `pass`: begin, then `step` for STEP keys at a time, then end. `key_rows` are
// the rows that second spans of keys list, or null.
template <class Pass, class Args> __device__ void walk_queries(const Args &a, Pass &pass, const u32 *key_rows) {
    constexpr u32 W = Pass::WIDTH, STEP = Pass::STEP;
    const Attention &what = a.what;
    const u32 warps = blockDim.x / WARP, split = Pass::split(a);
    // Blocks share out the queries, or the keys.
    const u32 share = split == 0 ? blockIdx.z : 0, stride = split == 0 ? warps * gridDim.z : warps;
    const SharedRows<W> k{shared_address(shared)}, v{k.address + a.chunk * SharedRows<W>::BYTES};
    bool loaded = false;
    for (Tiles round(what, blockIdx.x, share * warps); round.found(); round.advance(stride)) {
        Tiles tile = round;
        tile.advance(warp_index());
        const Sequence &sequence = *round.sequence;
        const u32 begin = split == 0 ? 0 : blockIdx.z * split;
        const u32 keys = split == 0 ? sequence.key_count() : min(sequence.key_count(), begin + split);
        if (begin >= keys) return;
        // Of the first and the last row of this warp's tile.
        u32 least = 0, most = 0;
        if (tile.found()) {
            const Sequence &own = *tile.sequence;
            least = what.visible(own, tile.tile * TILE);
            most = what.visible(own, min(tile.tile * TILE + TILE, own.query_count()) - 1);
            pass.begin(a, tile);
        }
        for (u32 first = begin; first < keys; first += a.chunk) {
            const u32 rows = min(a.chunk, ceil_div(keys - first, KEYS) * KEYS);
            if (!loaded) {
                __syncthreads();
                const u32 column = head_column(what);
                const auto copy = [&](const SharedRows<W> &to, const In<bf16>(&matrices)[2]) {
                    const KeyRows from{{matrices[0], matrices[1]}, {sequence.keys[0], sequence.keys[1]}, key_rows};
                    to.copy(rows, what.head.width, what.head.vector, [&](u32 row) {
                        const bf16 *address = from.row(first + row);
                        return address == nullptr ? nullptr : address + column;
                    });
                };
                copy(k, a.k);
                copy(v, a.v);
                cp_async_commit_group();
                cp_async_wait_group<0>();
                __syncthreads();
                loaded = keys - begin <= a.chunk;
            }
            if (!tile.found()) continue;
            for (u32 row = 0; row < rows && first + row < most; row += STEP) {
                if (first + row + STEP <= least && row + STEP <= rows)
                    pass.template step<Seen::All>(k, v, row, first + row, rows);
                else
                    pass.template step<Seen::Some>(k, v, row, first + row, rows);
            }
        }
        if (tile.found()) pass.end(a);
    }
}

// What both passes know of a tile.
struct QueryTile {
    const Dropout &dropout;
    uint2 seed;
    u32 rows[2];     // of the stream, the lane's two; for absent ones a row of the same tile
    bool there[2];
    u32 visible[2];  // keys that they see
    int bias[2];     // the columns of the bias of their first keys

    __device__ QueryTile(const Attention &what) : dropout(what.dropout) {
        seed = dropout.present() ? dropout.load_key() : make_uint2(0, 0);
    }
    __device__ void begin(const Attention &what, const Tiles &tile) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const u32 row = fragment_row() + i * 8;
            there[i] = tile.has(row);
            rows[i] = tile.stream_row(there[i] ? row : 0);
            const u32 index = tile.tile * TILE + (there[i] ? row : 0);
            visible[i] = what.visible(*tile.sequence, index);
            bias[i] = what.first_bias(*tile.sequence, index);
        }
    }
    // Whether element i of a result of mma is a key, the result's first being `key`, that its row sees.
    __device__ bool sees(int i, u32 key) const { return key + fragment_column() + i % 2 < visible[i / 2]; }

    // What is added to the score at element i of a result of mma.
    __device__ float bias_of(const Attention &what, int i, u32 key) const {
        return what.bias_of(bias[i / 2], key + fragment_column() + i % 2);
    }

    template <class M> __device__ auto row(const M &matrix, int i, u32 column) const {
        return there[i] ? matrix.row(rows[i]) + column : nullptr;
    }
};

template <u32 W, Bias BIAS> struct Forward {
    // Scores of fewer keys at a time leave registers to wide heads.
    static constexpr u32 WIDTH = W, STEP = W > 96 || (W > 32 && BIAS == Bias::Distance) ? 32 : 64;
    const Attention &what;
    QueryTile tile;
    float scale2;  // in powers of two
    RowFragment<W> q;
    float out[W / 8][4];          // of the unscaled probabilities
    float largest[2], total[2];   // of the scores seen so far; the lane's part of the sum

    __device__ Forward(const Attention &what) : what(what), tile(what), scale2(score_factor<BIAS>(what) * LOG2_E) {}

    __device__ static u32 split(const ForwardArgs &a) { return a.split; }

    __device__ void begin(const ForwardArgs &a, const Tiles &tiles) {
        tile.begin(a.what, tiles);
        const u32 column = head_column(a.what);
        q.load(tile.row(a.q, 0, column), tile.row(a.q, 1, column), a.what.head);
#pragma unroll
        for (auto &fragment : out)
#pragma unroll
            for (float &x : fragment) x = 0.0f;
        largest[0] = largest[1] = -__int_as_float(0x7f800000);
        total[0] = total[1] = 0.0f;
    }

    template <Seen SEEN>
    __device__ void step(const SharedRows<W> &k, const SharedRows<W> &v, u32 first, u32 key, u32 rows) {
        float p[STEP / KEYS][4];
        const float before[2] = {largest[0], largest[1]};
        // Of the last step's keys some may not be there: nothing is done for them.
        const auto there = [&](u32 t) { return SEEN == Seen::All || first + t * KEYS < rows; };
#pragma unroll
        for (u32 t = 0; t < STEP / KEYS; ++t) {
            if (!there(t)) continue;
            q.times_rows(p[t], k, first + t * KEYS);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if constexpr (BIAS == Bias::Distance)
                    p[t][i] = p[t][i] * what.scale + tile.bias_of(what, i, key + t * KEYS);
                if (SEEN == Seen::Some && !tile.sees(i, key + t * KEYS)) p[t][i] = -__int_as_float(0x7f800000);
                largest[i / 2] = fmaxf(largest[i / 2], p[t][i]);
            }
        }
        float shift[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            largest[h] = row_max(largest[h]);
            shift[h] = largest[h] * scale2;
            // A row may see no key of a split's first step.
            if (SEEN == Seen::Some && largest[h] == -__int_as_float(0x7f800000)) shift[h] = 0.0f;
            const float shrink = ex2(before[h] * scale2 - shift[h]);
            total[h] *= shrink;
#pragma unroll
            for (auto &fragment : out) fragment[2 * h] *= shrink, fragment[2 * h + 1] *= shrink;
        }
#pragma unroll
        for (u32 t = 0; t < STEP / KEYS; ++t) {
            if (!there(t)) {
#pragma unroll
                for (float &x : p[t]) x = 0.0f;
                continue;
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                p[t][i] = ex2(p[t][i] * scale2 - shift[i / 2]);
                total[i / 2] += p[t][i];
            }
            if (tile.dropout.present()) {
                float factors[4];
                dropout_factors(factors, tile.dropout, tile.seed, tile.rows, key + t * KEYS);
#pragma unroll
                for (int i = 0; i < 4; ++i) p[t][i] *= factors[i];
            }
        }
#pragma unroll
        for (u32 t = 0; t < STEP / KEYS; t += 2) {
            u32 a[4];
            pack_fragment(a, p[t], p[t + 1]);
            const u32 row = first + t * KEYS;
            if (SEEN == Seen::All || row + TILE <= rows)
                add_product<Rows::Sixteen, W>(out, a, v, row);
            else if (row < rows)
                add_product<Rows::Eight, W>(out, a, v, row);
        }
    }

    __device__ void end(const ForwardArgs &a) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            total[h] = row_sum(total[h]);
            if (!tile.there[h]) continue;
            if (a.split != 0) {
                float *sums = a.sums.row(row_of_sums(blockIdx.z, tile.rows[h], a.query_rows));
                const u32 width = a.what.head.width;
#pragma unroll
                for (u32 n = 0; n < W / 8; ++n) {
                    const u32 c = n * 8 + fragment_column();
                    if (c < width) *reinterpret_cast<float2 *>(sums + c) = make_float2(out[n][2 * h], out[n][2 * h + 1]);
                }
                if (fragment_column() == 0)
                    *reinterpret_cast<float2 *>(sums + sums_of(width)) = make_float2(largest[h] * scale2, total[h]);
                continue;
            }
            const float inverse = 1.0f / total[h];
            bf16 *row = a.out.row(tile.rows[h]) + head_column(a.what);
#pragma unroll
            for (u32 n = 0; n < W / 8; ++n)
                store_pair(row, n * 8 + fragment_column(), out[n][2 * h] * inverse, out[n][2 * h + 1] * inverse,
                           a.what.head);
            if (a.lse.present() && fragment_column() == 0)
                a.lse.row(blockIdx.y)[tile.rows[h]] = largest[h] * score_factor<BIAS>(a.what) + logf(total[h]);
        }
    }
};

template <u32 W, Bias BIAS> struct QueryGradient {
    // As in the forward pass.
    static constexpr u32 WIDTH = W, STEP = W > 96 && BIAS == Bias::Distance ? 16 : 32;
    const Attention &what;
    QueryTile tile;
    float scale2;
    RowFragment<W> q, dout;
    float lse2[2], delta[2];  // log-sum-exp in powers of two; Σ out·dout
    float dq[W / 8][4];       // without the factor `scale`

    __device__ QueryGradient(const Attention &what)
        : what(what), tile(what), scale2(score_factor<BIAS>(what) * LOG2_E) {}

    __device__ static u32 split(const BackwardQueriesArgs &) { return 0; }

    __device__ void begin(const BackwardQueriesArgs &a, const Tiles &tiles) {
        tile.begin(a.what, tiles);
        const u32 column = head_column(a.what);
        q.load(tile.row(a.q, 0, column), tile.row(a.q, 1, column), a.what.head);
        dout.load(tile.row(a.dout, 0, column), tile.row(a.dout, 1, column), a.what.head);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            lse2[h] = a.lse.row(blockIdx.y)[tile.rows[h]] * LOG2_E;
            const bf16 *out = tile.row(a.out, h, column);
            float sum = 0.0f;
#pragma unroll
            for (u32 k = 0; k < W / 8; ++k) {
                float x[2], dx[2];
                unpack(x[0], x[1], load_pair(out, k * 8 + fragment_column(), a.what.head));
                unpack(dx[0], dx[1], dout.a[k / 2][k % 2 * 2 + h]);
                sum += x[0] * dx[0] + x[1] * dx[1];
            }
            delta[h] = row_sum(sum);
        }
#pragma unroll
        for (auto &fragment : dq)
#pragma unroll
            for (float &x : fragment) x = 0.0f;
    }

    template <Seen SEEN>
    __device__ void step(const SharedRows<W> &k, const SharedRows<W> &v, u32 first, u32 key, u32 rows) {
#pragma unroll
        for (u32 t = 0; t < STEP / KEYS; t += 2) {
            const u32 row = first + t * KEYS;
            if (SEEN == Seen::Some && row >= rows) return;
            float ds[2][4] = {};
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
                if (SEEN == Seen::All || row + half * KEYS < rows)
                    scores<SEEN>(ds[half], k, v, row + half * KEYS, key + (t + half) * KEYS);
            u32 a[4];
            pack_fragment(a, ds[0], ds[1]);
            if (SEEN == Seen::All || row + TILE <= rows)
                add_product<Rows::Sixteen, W>(dq, a, k, row);
            else
                add_product<Rows::Eight, W>(dq, a, k, row);
        }
    }

    // ds [16, 8]: gradients of the scores of 8 keys.
    template <Seen SEEN>
    __device__ void scores(float (&ds)[4], const SharedRows<W> &k, const SharedRows<W> &v, u32 first, u32 key) {
        float s[4], factors[4] = {1.0f, 1.0f, 1.0f, 1.0f};
        q.times_rows(s, k, first);
        dout.times_rows(ds, v, first);
        if (tile.dropout.present()) dropout_factors(factors, tile.dropout, tile.seed, tile.rows, key);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if constexpr (BIAS == Bias::Distance) s[i] = s[i] * what.scale + tile.bias_of(what, i, key);
            const float p = ex2(s[i] * scale2 - lse2[i / 2]);
            ds[i] = SEEN == Seen::All || tile.sees(i, key) ? p * (ds[i] * factors[i] - delta[i / 2]) : 0.0f;
        }
    }

    __device__ void end(const BackwardQueriesArgs &a) {
        const float scale = a.what.scale;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            if (!tile.there[h]) continue;
            bf16 *row = a.dq.row(tile.rows[h]) + head_column(a.what);
#pragma unroll
            for (u32 n = 0; n < W / 8; ++n)
                store_pair(row, n * 8 + fragment_column(), dq[n][2 * h] * scale, dq[n][2 * h + 1] * scale, a.what.head);
        }
    }
};

// ---- The gradients of keys and values

// Queries in shared memory at a time, in two buffers.
constexpr u32 QUERIES = 2 * TILE;

// What is known of the queries in a buffer.
struct QueryStatistics {
    float lse2[QUERIES];   // log-sum-exp in powers of two; infinite for absent queries
    float delta[QUERIES];  // Σ out·dout
    u32 visible[QUERIES];  // keys that they see
    u32 rows[QUERIES];     // of the stream
    int bias[QUERIES];     // the columns of the bias of their first keys
};

// Starts to copy QUERIES queries from `tiles` on, and their output's gradients; their statistics are there
// after the next barrier.
template <u32 W, Bias BIAS>
__device__ void start_queries(const BackwardInputs &a, const Tiles &tiles, const SharedRows<W> &q,
                              const SharedRows<W> &dout, QueryStatistics &statistics) {
    const Attention &what = a.what;
    const u32 column = head_column(what);
    Tiles next = tiles;
    next.advance(1);
    const auto tile_of = [&](u32 row) { return row < TILE ? tiles : next; };
    const auto has = [&](u32 row) { return tile_of(row).found() && tile_of(row).has(row % TILE); };
    const auto copy = [&](const SharedRows<W> &to, const In<bf16> &from) {
        to.copy(QUERIES, what.head.width, what.head.vector, [&](u32 row) {
            return has(row) ? from.row(tile_of(row).stream_row(row % TILE)) + column : nullptr;
        });
    };
    copy(q, a.q);
    copy(dout, a.dout);
    cp_async_commit_group();
    // Eight lanes a row.
    for (u32 i = threadIdx.x; i < QUERIES * 8; i += blockDim.x) {
        const u32 row = i / 8;
        const bool there = has(row);
        const u32 stream_row = there ? tile_of(row).stream_row(row % TILE) : 0;
        float sum = 0.0f;
        if (there) {
            const bf16 *out = a.out.row(stream_row) + column, *gradient = a.dout.row(stream_row) + column;
            for (u32 c = i % 8 * 2; c < what.head.width; c += 16) {
                float x[2], dx[2];
                unpack(x[0], x[1], load_pair(out, c, what.head));
                unpack(dx[0], dx[1], load_pair(gradient, c, what.head));
                sum += x[0] * dx[0] + x[1] * dx[1];
            }
        }
        sum = row_sum(sum);
        sum += __shfl_xor_sync(ALL_LANES, sum, 4);
        if (i % 8 == 0) {
            const Tiles tile = tile_of(row);
            statistics.lse2[row] = there ? a.lse.row(blockIdx.y)[stream_row] * LOG2_E : __int_as_float(0x7f800000);
            statistics.delta[row] = sum;
            statistics.visible[row] = there ? what.visible(*tile.sequence, tile.tile * TILE + row % TILE) : 0;
            statistics.rows[row] = stream_row;
            if constexpr (BIAS == Bias::Distance)
                statistics.bias[row] = there ? what.first_bias(*tile.sequence, tile.tile * TILE + row % TILE) : 0;
        }
    }
}

// Whether a warp's keys and values stay in shared memory while queries pass by: registers hold those of narrower heads.
template <u32 W> constexpr bool KEYS_STORED = W > 96;

template <u32 W, bool STORED = KEYS_STORED<W>> struct KeyFragment : RowFragment<W> {};
template <u32 W> struct KeyFragment<W, true> : StoredFragment<W> {};

template <u32 W, Bias BIAS> struct KeyGradient {
    const Attention &what;
    uint2 seed;
    float scale2;
    u32 first;  // of the warp's keys
    KeyFragment<W> k, v;
    float dk[W / 8][4] = {}, dv[W / 8][4] = {};  // dk without the factor `scale`

    __device__ KeyGradient(const Attention &what, u32 first)
        : what(what), seed(what.dropout.present() ? what.dropout.load_key() : make_uint2(0, 0)),
          scale2(score_factor<BIAS>(what) * LOG2_E), first(first) {}

    // Adds what TILE queries of a buffer give, from `row` on.
    __device__ void add(const SharedRows<W> &q, const SharedRows<W> &dout, const QueryStatistics &statistics,
                        u32 row) {
        float p[2][4], ds[2][4];
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 query = row + half * 8;
            k.times_rows(p[half], q, query);
            v.times_rows(ds[half], dout, query);
            const u32 column = query + fragment_column();
            float factors[4] = {1.0f, 1.0f, 1.0f, 1.0f};
            if (what.dropout.present()) {
                const u32 rows[2] = {statistics.rows[column], statistics.rows[column + 1]};
                dropout_factors_of_keys(factors, what.dropout, seed, rows, first);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const u32 c = column + i % 2, key = first + fragment_row() + i / 2 * 8;
                const bool seen = key < statistics.visible[c];
                if constexpr (BIAS == Bias::Distance)
                    p[half][i] = p[half][i] * what.scale + what.bias_of(statistics.bias[c], key);
                const float probability = seen ? ex2(p[half][i] * scale2 - statistics.lse2[c]) : 0.0f;
                p[half][i] = probability * factors[i];
                ds[half][i] = seen ? probability * (ds[half][i] * factors[i] - statistics.delta[c]) : 0.0f;
            }
        }
        u32 a[4];
        pack_fragment(a, p[0], p[1]);
        add_product<Rows::Sixteen, W>(dv, a, dout, row);
        pack_fragment(a, ds[0], ds[1]);
        add_product<Rows::Sixteen, W>(dk, a, q, row);
    }
};

template <u32 W, Bias BIAS> __device__ void key_gradients(const BackwardKeysArgs &a) {
    const Attention &what = a.what;
    const u32 group = blockIdx.x, column = head_column(what);
    if (what.table[group] == what.table[group + 1]) return;
    const Sequence &sequence = *what.sequence(what.table[group]);
    const u32 keys = sequence.key_count(), share = blockDim.x / WARP * TILE;
    if (blockIdx.z * share >= keys) return;

    __shared__ QueryStatistics statistics[2];
    constexpr u32 BUFFER = QUERIES * SharedRows<W>::BYTES;
    const u32 buffers = shared_address(shared);
    const auto q = [&](u32 index) { return SharedRows<W>{buffers + index % 2 * 2 * BUFFER}; };
    const auto dout = [&](u32 index) { return SharedRows<W>{buffers + (index % 2 * 2 + 1) * BUFFER}; };
    Tiles tiles(what, group, 0);
    if (tiles.found()) start_queries<W, BIAS>(a, tiles, q(0), dout(0), statistics[0]);

    KeyGradient<W, BIAS> gradient(what, blockIdx.z * share + warp_index() * TILE);
    const u32 key[2] = {gradient.first + fragment_row(), gradient.first + fragment_row() + 8};
    const auto rows_of = [&](const In<bf16>(&matrices)[2]) {
        return KeyRows{{matrices[0], matrices[1]}, {sequence.keys[0], sequence.keys[1]}, nullptr};
    };
    if constexpr (KEYS_STORED<W>) {
        // Behind the queries; each warp uses its own, after the barrier that the queries wait for.
        const auto store = [&](KeyFragment<W> &fragment, u32 place, const In<bf16>(&matrices)[2]) {
            const SharedRows<W> all{buffers + 4 * BUFFER + place * share * SharedRows<W>::BYTES};
            all.copy(share, what.head.width, what.head.vector, [&](u32 row) {
                const bf16 *address = rows_of(matrices).row(blockIdx.z * share + row);
                return address == nullptr ? nullptr : address + column;
            });
            fragment.own = all;
            fragment.own_first = warp_index() * TILE;
        };
        store(gradient.k, 0, a.k);
        store(gradient.v, 1, a.v);
        cp_async_commit_group();
        cp_async_wait_group<0>();
    } else {
        const auto load = [&](KeyFragment<W> &fragment, const In<bf16>(&matrices)[2]) {
            const KeyRows from = rows_of(matrices);
            const bf16 *rows[2] = {from.row(key[0]), from.row(key[1])};
            fragment.load(rows[0] == nullptr ? nullptr : rows[0] + column,
                          rows[1] == nullptr ? nullptr : rows[1] + column, what.head);
        };
        load(gradient.k, a.k);
        load(gradient.v, a.v);
    }

    for (u32 index = 0; tiles.found(); ++index) {
        tiles.advance(QUERIES / TILE);
        if (tiles.found()) {
            start_queries<W, BIAS>(a, tiles, q(index + 1), dout(index + 1), statistics[(index + 1) % 2]);
            cp_async_wait_group<1>();
        } else {
            cp_async_wait_group<0>();
        }
        __syncthreads();
        if (gradient.first < keys)
#pragma unroll 1
            for (u32 row = 0; row < QUERIES; row += TILE)
                gradient.add(q(index), dout(index), statistics[index % 2], row);
        __syncthreads();
    }

#pragma unroll
    for (int h = 0; h < 2; ++h) {
        if (key[h] >= keys) continue;
        const bool first = key[h] < sequence.keys[0].len, prefix = first && a.dprefix[0].present();
        const u32 row = first ? sequence.keys[0].start + key[h]
                              : sequence.keys[1].start + key[h] - sequence.keys[0].len;
        bf16 *const dk = (prefix ? a.dprefix[0] : a.dk).row(row) + column;
        bf16 *const dv = (prefix ? a.dprefix[1] : a.dv).row(row) + column;
        const auto store = [&](bf16 *to, u32 c, float x, float next) {
            if (prefix || a.write == Write::Add) {
                float before[2];
                unpack(before[0], before[1], load_pair(to, c, what.head));
                x += before[0], next += before[1];
            }
            store_pair(to, c, x, next, what.head);
        };
#pragma unroll
        for (u32 n = 0; n < W / 8; ++n) {
            const u32 c = n * 8 + fragment_column();
            store(dk, c, gradient.dk[n][2 * h] * what.scale, gradient.dk[n][2 * h + 1] * what.scale);
            store(dv, c, gradient.dv[n][2 * h], gradient.dv[n][2 * h + 1]);
        }
    }
}

// ---- The kernels, by the width of a head, filled up with zeros

template <u32 W, Bias BIAS> __device__ void forward(const ForwardArgs &a) {
    Forward<W, BIAS> pass(a.what);
    walk_queries(a, pass, a.key_rows.data);
}

template <u32 W, Bias BIAS> __device__ void query_gradient(const BackwardQueriesArgs &a) {
    QueryGradient<W, BIAS> pass(a.what);
    walk_queries(a, pass, nullptr);
}

#define ATTENTION(NAME, W, BIAS)                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                     \
        attention_forward_##NAME(const __grid_constant__ ForwardArgs a) {                                        \
        forward<W, BIAS>(a);                                                                                     \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                     \
        attention_backward_queries_##NAME(const __grid_constant__ BackwardQueriesArgs a) {                       \
        query_gradient<W, BIAS>(a);                                                                              \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                     \
        attention_backward_keys_##NAME(const __grid_constant__ BackwardKeysArgs a) {                             \
        key_gradients<W, BIAS>(a);                                                                               \
    }
ATTENTION(32, 32, Bias::None)
ATTENTION(64, 64, Bias::None)
ATTENTION(96, 96, Bias::None)
ATTENTION(128, 128, Bias::None)
ATTENTION(32_bias, 32, Bias::Distance)
ATTENTION(64_bias, 64, Bias::Distance)
ATTENTION(96_bias, 96, Bias::Distance)
ATTENTION(128_bias, 128, Bias::Distance)
#undef ATTENTION

// Adds up what the splits of the keys left, in their order: a warp for a query.
extern "C" __global__ void __launch_bounds__(THREADS) attention_combine(const __grid_constant__ CombineArgs a) {
    const u32 width = a.what.head.width, last = sums_of(width), head = blockIdx.y, lane = lane_index();
    const Sequence *const end = a.what.sequence(a.what.table[blockIdx.x + 1]);
    for (const Sequence *s = a.what.sequence(a.what.table[blockIdx.x]); s != end; ++s) {
        const u32 splits = ceil_div(s->key_count(), a.split);
        for (u32 index = warp_index(); index < s->query_count(); index += blockDim.x / WARP) {
            const u32 row = s->query_row(index);
            const auto sums = [&](u32 split) { return a.sums.row(row_of_sums(split, row, a.query_rows)); };
            float largest = -__int_as_float(0x7f800000), total = 0.0f;
            for (u32 split = 0; split < splits; ++split) largest = fmaxf(largest, sums(split)[last]);
            for (u32 split = 0; split < splits; ++split)
                total += sums(split)[last + 1] * ex2(sums(split)[last] - largest);
            for (u32 c = lane; c < width; c += WARP) {
                float x = 0.0f;
                for (u32 split = 0; split < splits; ++split) x += sums(split)[c] * ex2(sums(split)[last] - largest);
                a.out.row(row)[head * width + c] = to_bf16(x / total);
            }
            if (a.lse.present() && lane == 0) a.lse.row(head)[row] = largest / LOG2_E + logf(total);
        }
    }
}
