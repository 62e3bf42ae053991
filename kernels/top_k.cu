// top_k: of each row of V logits the k largest, the largest first, of equals the smaller id first; the log-sum-exp of
// the row; and the logits of those tokens that are asked for.
//
// top_k_parts: a block a part of a row; grid [parts, rows]. It sorts a chunk as lists of `kept` logits, a power of two
// from k on, and merges these two by two until one is left, then with what earlier chunks have left. Saves that list, the
// part's largest logit and its Σ exp(x − largest). Bytes moved: the logits once.
// top_k_combine: a block a row, which merges the lists of its parts. Bytes moved: those lists.
//
// Logits are compared as whole numbers that have their order, with the id in the lower half: no two are equal, so the
// result is the same in whatever order they are compared. NaN counts as −∞ there, but makes the log-sum-exp NaN.
// It belongs to inference and has no backward pass.
#include "common.cuh"

struct TopKPartsArgs {
    In<bf16> logits;    // [rows, width]
    Out<float> values;  // [rows·parts, kept]
    Out<u32> ids;       // [rows·parts, kept]
    Out<float> sums;    // [rows·parts, 2]: the largest, and Σ exp(x − largest)
    u32 width;
    u32 part;  // columns of a part, whole chunks
    u32 kept, vector;
};
static_assert(sizeof(TopKPartsArgs) == 80);

struct TopKCombineArgs {
    In<bf16> logits;          // [rows, width]
    In<float> part_values;    // [rows·parts, kept]
    In<u32> part_ids;         // [rows·parts, kept]
    In<float> sums;           // [rows·parts, 2]
    In<u32> asked_ids;        // [rows, asked]
    Out<float> asked_values;  // [rows, asked]
    Out<float> lse;           // [1, rows]
    Out<u32> ids;             // [rows, k]
    Out<float> values;        // [rows, k]
    u32 parts, kept, k, asked;
};
static_assert(sizeof(TopKCombineArgs) == 160);

constexpr u32 PART_THREADS = 128, COMBINE_THREADS = 256;
// Logits that a block sorts at a time.
constexpr u32 CHUNK = PART_THREADS * VECTOR;
// Logits of all parts of a row: parts · kept at most.
constexpr u32 CANDIDATES = 4096;
// The largest k.
constexpr u32 LONGEST = 128;
constexpr float LOG2_E = 1.4426950408889634f;
// Below any logit, and a number even in units of ln 2.
constexpr float LOWEST = -1e38f;

// ---- Keys: the order of logits in the upper half, that of ids, backwards, in the lower. 0 is below all keys.

__device__ inline u64 key(float x, u32 id) {
    constexpr u32 MINUS_INFINITY = 0xff800000u;
    // Adding 0 makes −0 the same as 0.
    const u32 bits = x == x ? __float_as_uint(x + 0.0f) : MINUS_INFINITY;
    const u32 order = bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<u64>(order) << 32 | ~id;
}

__device__ inline u32 key_id(u64 key) { return ~static_cast<u32>(key); }

__device__ inline float key_value(u64 key) {
    const u32 order = static_cast<u32>(key >> 32);
    return __uint_as_float(order >> 31 ? order ^ 0x80000000u : ~order);
}

// ---- Lists of keys in shared memory, one behind the other, each of `kept`, a power of two, the largest first.

__device__ inline void order(u64 &first, u64 &second) {
    const u64 a = first, b = second;
    if (a < b) first = b, second = a;
}

// Orders keys that are `stride` apart, in each group of twice as many.
template <u32 THREADS> __device__ void order_apart(u64 *keys, u32 count, u32 stride) {
    for (u32 pair = threadIdx.x; pair < count / 2; pair += THREADS) {
        const u32 first = 2 * pair - (pair & (stride - 1));
        order(keys[first], keys[first + stride]);
    }
    __syncthreads();
}

// Makes lists of `count` keys in any order.
template <u32 THREADS> __device__ void sort_lists(u64 *keys, u32 count, u32 kept) {
    for (u32 size = 2; size <= kept; size *= 2) {
        // Two ordered halves, the second of them backwards.
        for (u32 pair = threadIdx.x; pair < count / 2; pair += THREADS) {
            const u32 place = pair & (size / 2 - 1), group = 2 * (pair - place);
            order(keys[group + place], keys[group + size - 1 - place]);
        }
        __syncthreads();
        for (u32 stride = size / 4; stride > 0; stride /= 2) order_apart<THREADS>(keys, count, stride);
    }
}

// Each of the lists at `to` becomes the largest of itself and of its counterpart at `from`.
template <u32 THREADS> __device__ void merge_lists(u64 *to, const u64 *from, u32 lists, u32 kept) {
    for (u32 i = threadIdx.x; i < lists * kept; i += THREADS) {
        const u64 other = from[i ^ (kept - 1)];
        if (other > to[i]) to[i] = other;
    }
    __syncthreads();
    for (u32 stride = kept / 2; stride > 0; stride /= 2) order_apart<THREADS>(to, lists * kept, stride);
}

// Merges a power of two of lists into the first.
template <u32 THREADS> __device__ void merge_all(u64 *keys, u32 lists, u32 kept) {
    while (lists > 1) {
        lists /= 2;
        merge_lists<THREADS>(keys, keys + lists * kept, lists, kept);
    }
}

// ---- The log-sum-exp

// What has been seen of a row.
struct Seen {
    float largest;  // of the logits
    float sum;      // Σ exp(x − largest)

    __device__ static Seen nothing() { return {LOWEST, 0.0f}; }

    // NaN is no maximum, but makes the sum NaN.
    template <int N> __device__ void add(const float (&x)[N]) {
        float peak = largest;
#pragma unroll
        for (int i = 0; i < N; ++i) peak = fmaxf(peak, x[i]);
        sum *= ex2((largest - peak) * LOG2_E);
        largest = peak;
#pragma unroll
        for (int i = 0; i < N; ++i) sum += ex2((x[i] - peak) * LOG2_E);
    }

    __device__ void merge(const Seen &other) {
        const float peak = fmaxf(largest, other.largest);
        sum = sum * ex2((largest - peak) * LOG2_E) + other.sum * ex2((other.largest - peak) * LOG2_E);
        largest = peak;
    }

    // Of all lanes of a warp, in the first.
    __device__ void merge_lanes() {
#pragma unroll
        for (u32 step = WARP / 2; step > 0; step /= 2)
            merge({__shfl_down_sync(ALL_LANES, largest, step), __shfl_down_sync(ALL_LANES, sum, step)});
    }
};

// ---- Kernels

// Makes keys of the chunk of a row that starts at column `start`, and zeros behind column `end`.
template <int N> __device__ void load_chunk(u64 *keys, Seen &seen, const bf16 *row, u32 start, u32 end) {
#pragma unroll
    for (u32 place = threadIdx.x * N; place < CHUNK; place += PART_THREADS * N) {
        const u32 column = start + place;
        float x[N] = {};
        if (column < end) {
            load(x, row + column);
            seen.add(x);
        }
#pragma unroll
        for (int i = 0; i < N; ++i) keys[place + i] = column < end ? key(x[i], column + i) : 0;
    }
}

extern "C" __global__ void __launch_bounds__(PART_THREADS) top_k_parts(const __grid_constant__ TopKPartsArgs a) {
    constexpr u32 WARPS = PART_THREADS / WARP;
    __shared__ u64 keys[CHUNK], best[LONGEST];
    __shared__ Seen warps[WARPS];
    const bf16 *row = a.logits.row(blockIdx.y);  // [width]
    const u32 begin = blockIdx.x * a.part, end = min(begin + a.part, a.width);
    Seen seen = Seen::nothing();
    if (threadIdx.x < a.kept) best[threadIdx.x] = 0;
    for (u32 start = begin; start < end; start += CHUNK) {
        if (a.vector == VECTOR) {
            load_chunk<VECTOR>(keys, seen, row, start, end);
        } else {
            load_chunk<1>(keys, seen, row, start, end);
        }
        __syncthreads();
        sort_lists<PART_THREADS>(keys, CHUNK, a.kept);
        merge_all<PART_THREADS>(keys, CHUNK / a.kept, a.kept);
        merge_lists<PART_THREADS>(best, keys, 1, a.kept);
    }
    const u32 part = blockIdx.y * gridDim.x + blockIdx.x;
    if (threadIdx.x < a.kept) {
        a.values.row(part)[threadIdx.x] = key_value(best[threadIdx.x]);
        a.ids.row(part)[threadIdx.x] = key_id(best[threadIdx.x]);
    }
    seen.merge_lanes();
    if (lane_index() == 0) warps[warp_index()] = seen;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (u32 warp = 1; warp < WARPS; ++warp) seen.merge(warps[warp]);
    a.sums.row(part)[0] = seen.largest;
    a.sums.row(part)[1] = seen.sum;
}

extern "C" __global__ void __launch_bounds__(COMBINE_THREADS)
    top_k_combine(const __grid_constant__ TopKCombineArgs a) {
    __shared__ u64 keys[CANDIDATES];
    const u32 row = blockIdx.x, first = row * a.parts;
    u32 lists = 1;
    while (lists < a.parts) lists *= 2;
    for (u32 i = threadIdx.x; i < lists * a.kept; i += COMBINE_THREADS) {
        const u32 part = i / a.kept, place = i % a.kept;
        // What fills a list up has an id beyond all others.
        keys[i] = part < a.parts ? key(a.part_values.row(first + part)[place], a.part_ids.row(first + part)[place]) : 0;
    }
    __syncthreads();
    merge_all<COMBINE_THREADS>(keys, lists, a.kept);
    if (threadIdx.x < a.k) {
        a.values.row(row)[threadIdx.x] = key_value(keys[threadIdx.x]);
        a.ids.row(row)[threadIdx.x] = key_id(keys[threadIdx.x]);
    }
    for (u32 i = threadIdx.x; i < a.asked; i += COMBINE_THREADS)
        a.asked_values.row(row)[i] = to_float(a.logits.row(row)[a.asked_ids.row(row)[i]]);
    if (warp_index() > 0) return;
    Seen seen = Seen::nothing();
    for (u32 part = lane_index(); part < a.parts; part += WARP) {
        const float *sums = a.sums.row(first + part);
        seen.merge({sums[0], sums[1]});
    }
    seen.merge_lanes();
    if (lane_index() == 0) a.lse.data[row] = seen.largest + logf(seen.sum);
}
