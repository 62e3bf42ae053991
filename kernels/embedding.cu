// embedding: y[i] = table[ids[i]] (+ positions[places[i]]); backward, dtable[ids[i]] += dy[i] in the order of i.
//
// Forward: a warp a row of y. Bytes moved: y once, and as much of the tables.
//
// Backward, once for each table: grid [count, blocks of columns]. The block of the first i that has its id adds all
// rows of dy with that id, in their order and without atomics; the others find their id before them and are done. Bytes
// moved: dy once, the table's rows that occur twice. The search compares up to count² indices, out of the caches, but a
// thousand at a time, and ends where it looks first if an index comes again soon, as those of queries and places do.
#include "common.cuh"

struct EmbeddingForwardArgs {
    In<u32> ids;         // [1, count]
    In<bf16> table;      // [table rows, width]
    In<u32> places;      // [1, count], with `positions`
    In<bf16> positions;  // [table rows, width]; may be absent
    Out<bf16> y;         // [count, width]
    u32 count, width, vector, unused;
};
static_assert(sizeof(EmbeddingForwardArgs) == 96);

struct EmbeddingBackwardArgs {
    In<u32> ids;        // [1, count]
    In<bf16> dy;        // [count, width]
    Out<float> dtable;  // [table rows, width]
    u32 count, width, vector;
    u32 frozen;  // an index whose row is left alone; 2³² − 1, which is none, if there is none
};
static_assert(sizeof(EmbeddingBackwardArgs) == 64);

// ---- Forward

constexpr u32 FORWARD_THREADS = 256;

template <int N> __device__ void forward(const EmbeddingForwardArgs &a, u32 i) {
    const bf16 *from = a.table.row(a.ids.data[i]);
    const bf16 *position = a.positions.present() ? a.positions.row(a.places.data[i]) : nullptr;
    for (u32 column = lane_index() * N; column < a.width; column += WARP * N) {
        float y[N];
        load(y, from + column);
        if (position != nullptr) {
            float p[N];
            load(p, position + column);
#pragma unroll
            for (int j = 0; j < N; ++j) y[j] += p[j];
        }
        store(a.y.row(i) + column, y);
    }
}

extern "C" __global__ void __launch_bounds__(FORWARD_THREADS)
    embedding_forward(const __grid_constant__ EmbeddingForwardArgs a) {
    const u32 i = blockIdx.x * (FORWARD_THREADS / WARP) + warp_index();
    if (i >= a.count) return;
    a.vector == VECTOR ? forward<VECTOR>(a, i) : forward<1>(a, i);
}

// ---- Backward

constexpr u32 THREADS = 128;
// Indices that a block looks at together: a bit for each in as many words as a warp has lanes.
constexpr u32 SEARCHED = WARP * WARP;

// What a block's threads tell one another.
struct Search {
    u32 found[WARP];         // which of the indices looked at are the block's own: a bit each
    u32 indices[SEARCHED];   // their places, in order …
    u32 length;              // … and how many they are
};

// Which of ids[first .. first + SEARCHED], as far as they are before `end`, are `id`: a bit each.
__device__ void search(Search &shared, const u32 *ids, u32 id, u32 first, u32 end) {
    for (u32 word = warp_index(); word < WARP; word += THREADS / WARP) {
        const u32 i = first + word * WARP + lane_index();
        const u32 equal = __ballot_sync(ALL_LANES, i < end && ids[i] == id);
        if (lane_index() == 0) shared.found[word] = equal;
    }
}

// Whether `id` stands before ids[end]; the same in all threads. Near ones are looked at first.
__device__ bool occurs_before(Search &shared, const u32 *ids, u32 id, u32 end) {
    for (u32 before = end; before > 0;) {
        const u32 first = before > SEARCHED ? before - SEARCHED : 0;
        search(shared, ids, id, first, before);
        __syncthreads();
        const bool occurs = __ballot_sync(ALL_LANES, shared.found[lane_index()] != 0) != 0;
        __syncthreads();
        if (occurs) return true;
        before = first;
    }
    return false;
}

// Turns the bits into a list of indices, in order; by the first warp.
__device__ void list(Search &shared, u32 first) {
    u32 bits = shared.found[lane_index()];
    const u32 mine = __popc(bits);
    u32 end = mine;
#pragma unroll
    for (u32 step = 1; step < WARP; step *= 2) {
        const u32 before = __shfl_up_sync(ALL_LANES, end, step);
        if (lane_index() >= step) end += before;
    }
    for (u32 at = end - mine; bits != 0; bits &= bits - 1, ++at)
        shared.indices[at] = first + lane_index() * WARP + __ffs(bits) - 1;
    if (lane_index() == WARP - 1) shared.length = end;
}

template <int N> __device__ void backward(const EmbeddingBackwardArgs &a, Search &shared) {
    const u32 id = a.ids.data[blockIdx.x];
    if (id == a.frozen || occurs_before(shared, a.ids.data, id, blockIdx.x)) return;
    const u32 column = (blockIdx.y * THREADS + threadIdx.x) * N;
    const bool has_columns = column < a.width;
    float sum[N];
    if (has_columns) load(sum, a.dtable.row(id) + column);
    for (u32 first = blockIdx.x; first < a.count; first += min(SEARCHED, a.count - first)) {
        search(shared, a.ids.data, id, first, a.count);
        __syncthreads();
        if (warp_index() == 0) list(shared, first);
        __syncthreads();
        if (has_columns) {
            const u32 end = shared.length;
            // Several rows are on their way while one is added.
#pragma unroll 4
            for (u32 at = 0; at < end; ++at) {
                float dy[N];
                load(dy, a.dy.row(shared.indices[at]) + column);
#pragma unroll
                for (int j = 0; j < N; ++j) sum[j] += dy[j];
            }
        }
        __syncthreads();
    }
    if (has_columns) store(a.dtable.row(id) + column, sum);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_backward(const __grid_constant__ EmbeddingBackwardArgs a) {
    __shared__ Search shared;
    a.vector == VECTOR ? backward<VECTOR>(a, shared) : backward<1>(a, shared);
}
