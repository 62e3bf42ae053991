// gemm: a linear layer's products, on every architecture: mma.sync fed by cp.async.
//
//   forward  y  [rows, out] = f(x·Wᵀ + b) + r     x [rows, in], W [out, in]
//   input    dx [rows, in] = dy·W·f'(z), or added  dy [rows, out], z [rows, in] where x = f(z)
//   weight   dW [out, in] += dyᵀ·x, db += column sums of dy
//
// All are c [m, n] = a·bᵀ with a [m, k], b [n, k]; in memory the rows of a and b run along k or along m and n. A
// block computes one tile of c; blocks are numbered along n first, so that neighbours read the same rows of a while b
// stays in the cache. Stages of a ring in shared memory, filled by cp.async, run ahead of the tensor cores. Where a
// tile is small and the grid too, groups of warps take turns along k and their sums are added in a fixed order, so
// results are the same bits every time. Bytes moved: a once for each column of tiles, b once for each row of tiles, c
// once. db is dyᵀ times a vector of ones, by the blocks of the first column of tiles.
//
// A dW of few tiles, summed over many rows, would leave multiprocessors idle: then blocks share the rows, [blocks, parts]
// in the grid, each putting what its part adds up to beside dW, and `gemm_parts` adds these in order. Bytes moved
// for it: 8 a part and element of dW, from L2.
#include "gather.cuh"
#include "gemm.cuh"

// A block's work. Twin of `Tile` in src/ops/gemm/cuda/mma.rs.
struct Tile {
    u32 m, n;              // of c
    u32 k;                 // in a stage of the ring
    u32 warps_m, warps_n;  // warps along m and n …
    u32 parts;             // … and along k
    u32 stages;

    __device__ constexpr u32 threads() const { return warps_m * warps_n * parts * 32; }
    __device__ constexpr u32 shared_bytes() const { return (m + n) * k * sizeof(bf16) * stages; }
};

constexpr Tile LARGE = {128, 128, 32, 2, 4, 1, 3};
constexpr Tile MEDIUM = {64, 64, 64, 2, 2, 1, 3};
constexpr Tile NARROW = {32, 32, 128, 1, 1, 4, 4};
constexpr Tile SLIM = {32, 16, 128, 1, 1, 4, 4};

// How operands get into shared memory: by cp.async, or element by element where rows are not aligned to 16 bytes.
enum class Load { Vectors, Elements };

// A stage's part of an operand in shared memory: OUTER along m or n by DEPTH along k, in rows as in global memory.
template <Major MAJOR, u32 OUTER, u32 DEPTH> struct Panel {
    static constexpr u32 ROWS = MAJOR == Major::K ? OUTER : DEPTH;
    static constexpr u32 COLS = MAJOR == Major::K ? DEPTH : OUTER;
    static constexpr u32 BYTES = ROWS * COLS * sizeof(bf16);
    // Vectors of 16 bytes in a row.
    static constexpr u32 WIDTH = COLS / VECTOR;

    // Bytes to a vector. They are permuted so that eight of one column, one below the other, lie in different banks:
    // all banks together are 8 vectors wide, so rows that are narrower take turns less often.
    static __device__ u32 offset(u32 row, u32 vector) {
        constexpr u32 TURNS = WIDTH < 8 ? WIDTH : 8;
        static_assert(TURNS == 2 || TURNS == 4 || TURNS == 8);
        return (row * WIDTH + (vector ^ row / (8 / TURNS) % TURNS)) * 16;
    }

    // Fills the panel with what lies at (outer, k) of an operand of `outers` by `depth`; zeros beyond.
    template <Load LOAD, u32 THREADS>
    static __device__ void fill(unsigned char *panel, In<bf16> from, u32 outer, u32 k, u32 outers, u32 depth) {
        const u32 first_row = MAJOR == Major::K ? outer : k, rows = MAJOR == Major::K ? outers : depth;
        const u32 first_col = MAJOR == Major::K ? k : outer, cols = MAJOR == Major::K ? depth : outers;
        static_assert(ROWS * WIDTH % THREADS == 0);
#pragma unroll
        for (u32 i = 0; i < ROWS * WIDTH / THREADS; ++i) {
            const u32 index = i * THREADS + threadIdx.x, r = index / WIDTH, vector = index % WIDTH;
            const u32 row = first_row + r, col = first_col + vector * VECTOR;
            const bool inside = row < rows && col < cols;
            const u32 count = inside ? min(cols - col, u32(VECTOR)) : 0;
            const bf16 *source = inside ? from.row(row) + col : from.data;
            unsigned char *to = panel + offset(r, vector);
            if constexpr (LOAD == Load::Vectors)
                cp_async(shared_address(to), source, count * sizeof(bf16));
            else
                *reinterpret_cast<uint4 *>(to) = gather(source, count);
        }
    }

    // Four matrices of 8×8 for `mma`: [8, k] of those at (outer, k). A lane names the row of matrix lane/8, which lies
    // `outer_half` and `k_half` eights further.
    static __device__ void fragment(u32 (&to)[4], u32 panel, u32 outer, u32 k, u32 outer_half, u32 k_half) {
        const u32 row = lane_index() % 8;
        if constexpr (MAJOR == Major::K)
            ldmatrix(to, panel + offset(outer + outer_half * 8 + row, k / VECTOR + k_half));
        else
            ldmatrix_trans(to, panel + offset(k + k_half * 8 + row, outer / VECTOR + outer_half));
    }
};

// The ring's memory, and after it the results'.
extern __shared__ __align__(128) unsigned char shared[];

// c = a·bᵀ and what is done to it. SUMS: the sum of a's rows is added to `sums` [1, m] (null: not wanted); and a block
// sums over its part of k alone.
template <Tile T, Major A_MAJOR, Major B_MAJOR, Load LOAD, bool SUMS, class Finishing>
__device__ void gemm(In<bf16> a, In<bf16> b, u32 m, u32 n, u32 k, const Finishing &whole, float *sums,
                     u32 k_of_part) {
    using A = Panel<A_MAJOR, T.m, T.k>;
    using B = Panel<B_MAJOR, T.n, T.k>;
    constexpr u32 STAGE = A::BYTES + B::BYTES;
    // Of a warp, in fragments.
    constexpr u32 WARP_M = T.m / T.warps_m, WARP_N = T.n / T.warps_n;
    constexpr u32 FRAGMENTS_M = WARP_M / 16, FRAGMENTS_N = WARP_N / 8;
    static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0 && T.k % (16 * T.parts) == 0 && T.stages >= 2);

    const u32 tiles_n = ceil_div(n, T.n);
    const u32 first_m = blockIdx.x / tiles_n * T.m, first_n = blockIdx.x % tiles_n * T.n;
    const u32 warp = warp_index(), part = warp / (T.warps_m * T.warps_n);
    const u32 warp_m = warp / T.warps_n % T.warps_m * WARP_M, warp_n = warp % T.warps_n * WARP_N;
    const bool sum_here = SUMS && sums != nullptr && first_n == 0 && warp_n == 0;
    const u32 first_k = SUMS ? blockIdx.y * k_of_part : 0;
    const u32 steps = ceil_div(SUMS ? min(k_of_part, k - first_k) : k, T.k);
    Finishing finish = whole;
    if constexpr (SUMS) finish = whole.of_part(blockIdx.y, m);

    const auto fill = [&](u32 step) {
        if (step < steps) {
            unsigned char *stage = shared + step % T.stages * STAGE;
            A::template fill<LOAD, T.threads()>(stage, a, first_m, first_k + step * T.k, m, k);
            B::template fill<LOAD, T.threads()>(stage + A::BYTES, b, first_n, first_k + step * T.k, n, k);
        }
        // Empty groups at the end keep the count of those under way.
        cp_async_commit_group();
    };

    float c[FRAGMENTS_M][FRAGMENTS_N][4] = {};
    float row_sums[SUMS ? FRAGMENTS_M : 1][4] = {};
#pragma unroll
    for (u32 step = 0; step + 1 < T.stages; ++step) fill(step);
    for (u32 step = 0; step < steps; ++step) {
        cp_async_wait_group<T.stages - 2>();
        // This stage has arrived for all, and all have done with the one that is filled next.
        __syncthreads();
        fill(step + T.stages - 1);
        const u32 a_panel = shared_address(shared) + step % T.stages * STAGE, b_panel = a_panel + A::BYTES;
        const u32 half = lane_index() / 8 % 2, other_half = lane_index() / 16;
#pragma unroll
        for (u32 i = 0; i < T.k / T.parts; i += 16) {
            const u32 depth = part * (T.k / T.parts) + i;
            u32 rows[FRAGMENTS_M][4], cols[FRAGMENTS_N / 2][4];
#pragma unroll
            for (u32 fm = 0; fm < FRAGMENTS_M; ++fm)
                A::fragment(rows[fm], a_panel, warp_m + fm * 16, depth, half, other_half);
#pragma unroll
            for (u32 fn = 0; fn < FRAGMENTS_N / 2; ++fn)
                B::fragment(cols[fn], b_panel, warp_n + fn * 16, depth, other_half, half);
#pragma unroll
            for (u32 fm = 0; fm < FRAGMENTS_M; ++fm)
#pragma unroll
                for (u32 fn = 0; fn < FRAGMENTS_N; ++fn)
                    mma(c[fm][fn], rows[fm], cols[fn / 2][fn % 2 * 2], cols[fn / 2][fn % 2 * 2 + 1]);
            if constexpr (SUMS) {
                constexpr u32 ONES = 0x3f803f80;  // two of bf16
                if (sum_here)
#pragma unroll
                    for (u32 fm = 0; fm < FRAGMENTS_M; ++fm) mma(row_sums[fm], rows[fm], ONES, ONES);
            }
        }
    }

    // Results pass through shared memory, as many rows at a time as fit, and become whole vectors of a row.
    constexpr u32 SLAB = T.m < 64 ? T.m : 64, SIZE = SLAB * T.n;
    static_assert(SLAB % WARP_M == 0 && (SIZE + T.m) * T.parts * sizeof(float) <= T.shared_bytes());
    float *results = reinterpret_cast<float *>(shared);  // [parts, SLAB, n]
    float *partial_sums = results + T.parts * SIZE;      // [parts, m]
#pragma unroll
    for (u32 slab = 0; slab < T.m; slab += SLAB) {
        __syncthreads();
        if (warp_m / SLAB * SLAB == slab) {
#pragma unroll
            for (u32 fm = 0; fm < FRAGMENTS_M; ++fm)
#pragma unroll
                for (u32 fn = 0; fn < FRAGMENTS_N; ++fn)
                    stage<T.n>(results + part * SIZE, warp_m - slab + fm * 16, warp_n + fn * 8, c[fm][fn]);
        }
        if constexpr (SUMS) {
            if (slab == 0 && sum_here && lane_index() % 4 == 0)
#pragma unroll
                for (u32 fm = 0; fm < FRAGMENTS_M; ++fm)
#pragma unroll
                    for (u32 half = 0; half < 2; ++half)
                        partial_sums[part * T.m + warp_m + fm * 16 + half * 8 + lane_index() / 4] =
                            row_sums[fm][2 * half];
        }
        __syncthreads();
#pragma unroll 1
        for (u32 index = threadIdx.x; index < SIZE / VECTOR; index += T.threads()) {
            const u32 row = index / (T.n / VECTOR), col = index % (T.n / VECTOR) * VECTOR;
            const float *vector = results + staged<T.n>(row, col);
            finish_vector<T.parts, SIZE>(finish, vector, first_m + slab + row, first_n + col, m, n);
        }
        if constexpr (SUMS) {
            const u32 row = threadIdx.x;
            if (slab == 0 && sums != nullptr && first_n == 0 && row < T.m && first_m + row < m) {
                float sum = 0.0f;
#pragma unroll
                for (u32 p = 0; p < T.parts; ++p) sum += partial_sums[p * T.m + row];
                finish.add_sum(sums + blockIdx.y * m + first_m + row, sum);
            }
        }
    }
}

// y [m = rows, n = out] from x [rows, k = in] and W [out, in].
struct GemmForwardArgs {
    In<bf16> x;
    In<bf16> weight;
    FinishForward finish;
    u32 rows, outputs, inputs, unused;
};
static_assert(sizeof(GemmForwardArgs) == 120);

// dx [m = rows, n = in], or that of z where x = f(z), from dy [rows, k = out] and W [out, in].
struct GemmInputArgs {
    In<bf16> dy;
    In<bf16> weight;
    FinishInput finish;
    u32 rows, outputs, inputs, unused;
};
static_assert(sizeof(GemmInputArgs) == 104);

// dW [m = out, n = in] and db [1, out] (may be absent) from dy [k = rows, out] and x [rows, in].
struct GemmWeightArgs {
    In<bf16> dy;
    In<bf16> x;
    Accumulate finish;
    Out<float> dbias;
    u32 rows, outputs, inputs;
    u32 rows_of_part;  // those of all; or fewer, a multiple of 64: then parts of dW and db are put one below the other
};
static_assert(sizeof(GemmWeightArgs) == 88);

struct GemmPartsArgs {
    Accumulate finish;
    Out<float> dbias;       // [1, out]; may be absent
    In<float> parts;        // [count·out, in], rows at multiples of 16 bytes
    In<float> parts_of_db;  // [1, count·out]
    u32 outputs, inputs, count, unused;
};
static_assert(sizeof(GemmPartsArgs) == 88);

// N elements of a row of dW, from `col` on.
template <int N> __device__ void add_parts(const GemmPartsArgs &a, u32 row, u32 col) {
    float sum[N] = {};
#pragma unroll 4
    for (u32 part = 0; part < a.count; ++part) {
        float x[N];
        load(x, a.parts.row(part * a.outputs + row) + col);
#pragma unroll
        for (int i = 0; i < N; ++i) sum[i] += x[i];
    }
    a.finish(row, col, sum);
}

// Adds what the parts of dW and db add up to: a thread four columns of a row. Grid: [columns / 512, out].
extern "C" __global__ void __launch_bounds__(128) gemm_parts(const __grid_constant__ GemmPartsArgs a) {
    const u32 row = blockIdx.y, col = (blockIdx.x * blockDim.x + threadIdx.x) * QUAD;
    if (col == 0 && a.dbias.present()) {
        float sum = 0.0f;
        for (u32 part = 0; part < a.count; ++part) sum += a.parts_of_db.data[part * a.outputs + row];
        a.dbias.data[row] += sum;
    }
    if (a.finish.vector == VECTOR && col + QUAD <= a.inputs)
        add_parts<QUAD>(a, row, col);
    else
        for (u32 i = col; i < min(col + QUAD, a.inputs); ++i) add_parts<1>(a, row, i);
}

// Sums of rows, for db where cuBLASLt computes dW: of dy's rows in parts, and then of the parts.
template <class T> struct GemmRowSumsArgs {
    In<T> rows;       // [count, cols], rows at multiples of 16 bytes and whole vectors
    Out<float> sums;  // [parts, cols]
    u32 count, cols, rows_of_part;
    Write write;
};
static_assert(sizeof(GemmRowSumsArgs<bf16>) == 48);

// A block has 64 columns of a part: eight threads side by side, each a vector of every 32nd row. Grid: [cols / 64, parts].
template <class T> __device__ void sum_rows(const GemmRowSumsArgs<T> &a) {
    constexpr u32 COLS = 64, WIDTH = COLS / VECTOR, ROWS = 32;
    __shared__ float sums[ROWS][COLS];
    const u32 lane = threadIdx.x % WIDTH, first = threadIdx.x / WIDTH, col = blockIdx.x * COLS + lane * VECTOR;
    const u32 begin = blockIdx.y * a.rows_of_part, end = min(begin + a.rows_of_part, a.count);
    float sum[VECTOR] = {};
#pragma unroll 4
    for (u32 row = begin + first; row < end; row += ROWS) {
        if (col >= a.cols) break;
        float x[VECTOR];
        load(x, a.rows.row(row) + col);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) sum[i] += x[i];
    }
    store(&sums[first][lane * VECTOR], sum);
    __syncthreads();
    const u32 own = blockIdx.x * COLS + threadIdx.x;
    if (threadIdx.x >= COLS || own >= a.cols) return;
    float all = 0.0f;
#pragma unroll
    for (u32 row = 0; row < ROWS; ++row) all += sums[row][threadIdx.x];
    float *to = a.sums.row(blockIdx.y) + own;
    *to = a.write == Write::Add ? *to + all : all;
}

extern "C" __global__ void __launch_bounds__(256) gemm_row_sums(const __grid_constant__ GemmRowSumsArgs<bf16> a) {
    sum_rows(a);
}

extern "C" __global__ void __launch_bounds__(256)
    gemm_row_sums_f32(const __grid_constant__ GemmRowSumsArgs<float> a) {
    sum_rows(a);
}

#define GEMM_KERNELS(NAME, TILE, BLOCKS, LOAD)                                                                         \
    extern "C" __global__ void __launch_bounds__(TILE.threads(), BLOCKS)                                               \
        gemm_forward_##NAME(const __grid_constant__ GemmForwardArgs a) {                                               \
        gemm<TILE, Major::K, Major::K, LOAD, false>(a.x, a.weight, a.rows, a.outputs, a.inputs, a.finish, nullptr, a.inputs);      \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(TILE.threads(), BLOCKS)                                               \
        gemm_input_##NAME(const __grid_constant__ GemmInputArgs a) {                                                   \
        gemm<TILE, Major::K, Major::MN, LOAD, false>(a.dy, a.weight, a.rows, a.inputs, a.outputs, a.finish, nullptr, a.outputs);   \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(TILE.threads(), BLOCKS)                                               \
        gemm_weight_##NAME(const __grid_constant__ GemmWeightArgs a) {                                                 \
        gemm<TILE, Major::MN, Major::MN, LOAD, true>(a.dy, a.x, a.outputs, a.inputs, a.rows, a.finish, a.dbias.data,           \
                                                     a.rows_of_part);                                                  \
    }

GEMM_KERNELS(large, LARGE, 2, Load::Vectors)
GEMM_KERNELS(medium, MEDIUM, 4, Load::Vectors)
GEMM_KERNELS(narrow, NARROW, 3, Load::Vectors)
GEMM_KERNELS(slim, SLIM, 4, Load::Vectors)
GEMM_KERNELS(unaligned, MEDIUM, 3, Load::Elements)
