// contrastive_backward_sm90a: the backward pass of contrastive_dense.cuh on Hopper, at BLIP-2's 32 queries of width 256:
// wgmma fed by TMA.
//
//   dqueries [I·32, E] = G·texts      dtexts [T, E] = Gᵀ·queries
//
// A block has 128 rows of one side in shared memory. One thread of its first warpgroup, the producer, copies the other
// side's rows, 64 at a time (texts, or the queries of two images), into a ring of stages; the two others, the consumers,
// have 64 rows each, whose gradients are in registers. Of a stage a consumer computes the products again, [64, 64] over
// E, makes of them its part of G, in bf16, which is already as wgmma takes it from registers, and multiplies it with the
// stage's rows. While one consumer differentiates, the tensor cores do the other's products.
//
// Grid, parts of the texts' gradients and bytes moved: as contrastive_dense.cuh. Every sum is of a fixed order.
#include "contrastive_gradients.cuh"
#include "pipeline_sm90a.cuh"

constexpr u32 CONSUMERS = 2, CONSUMER_WARPS = CONSUMERS * WARPGROUP / WARP;
constexpr u32 THREADS = (1 + CONSUMERS) * WARPGROUP;
constexpr u32 OWN_ROWS = CONSUMERS * 64, STAGE_ROWS = 64;
constexpr u32 PANELS = WIDTH / DEPTH;
static_assert(STAGE_ROWS == DEPTH, "the second product's k are the first one's n");

// Rows of a panel as wgmma reads them: over the width, and across it.
using Own = Panels<Major::K, OWN_ROWS>;
using Other = Panels<Major::K, STAGE_ROWS>;
using Across = Panels<Major::MN, WIDTH>;
static_assert(Other::BYTES == Across::PANEL, "of the same rows");

// Places in dynamic shared memory. The swizzle wants panels to start at multiples of 1024 bytes.
struct Shared {
    static constexpr u32 STAGES = 4;
    static constexpr u32 STAGE = PANELS * Other::BYTES;
    static constexpr u32 OWN = 0, RING = OWN + PANELS * Own::BYTES, FULL = RING + STAGES * STAGE;
    static constexpr u32 EMPTY = FULL + STAGES * sizeof(u64), OWN_FULL = EMPTY + STAGES * sizeof(u64);
    static constexpr u32 BYTES = OWN_FULL + sizeof(u64);
    static_assert(RING % ATOM == 0 && STAGE % ATOM == 0 && BYTES <= 227 * 1024);
};

extern __shared__ __align__(1024) unsigned char shared[];

struct ContrastiveBackwardSm90aArgs {
    TensorMap queries, texts;  // in boxes of 64 rows
    ContrastiveBackwardArgs gradients;
};
static_assert(sizeof(ContrastiveBackwardSm90aArgs) == 512);

// What a block goes over: its own rows, and the other side's from `first` on.
struct Range {
    u32 own_row, first, end;

    __device__ u32 stages() const { return ceil_div(end - first, STAGE_ROWS); }
};

// One thread: fills the block's own rows, and the ring.
__device__ inline void produce(const TensorMap &own, const TensorMap &other, u32 base, const Range &range) {
    mbarrier_arrive_expect_tx(base + Shared::OWN_FULL, PANELS * Own::BYTES);
    for (u32 panel = 0; panel < PANELS; ++panel)
        for (u32 row = 0; row < OWN_ROWS; row += STAGE_ROWS)
            tma_load(base + Shared::OWN + panel * Own::BYTES + row * ROW, &own, base + Shared::OWN_FULL,
                     panel * DEPTH, range.own_row + row);
    Turn turn;
    for (u32 index = 0; index < range.stages(); ++index) {
        // Before its first turn a stage counts as emptied: that is the phase before the first.
        wait(base + Shared::EMPTY + turn.stage * sizeof(u64), turn.phase ^ 1);
        const u32 full = base + Shared::FULL + turn.stage * sizeof(u64);
        const u32 stage = base + Shared::RING + turn.stage * Shared::STAGE;
        mbarrier_arrive_expect_tx(full, Shared::STAGE);
        for (u32 panel = 0; panel < PANELS; ++panel)
            tma_load(stage + panel * Other::BYTES, &other, full, panel * DEPTH, range.first + index * STAGE_ROWS);
        turn.advance<Shared::STAGES>();
    }
}

// products [64, 64] = own · stageᵀ
__device__ inline void multiply(float (&products)[STAGE_ROWS / 2], u32 base, u32 stage, u32 consumer) {
    wgmma_fence();
#pragma unroll
    for (u32 k = 0; k < WIDTH; k += 16) {
        const u32 panel = k / DEPTH;
        wgmma<Transpose::No, Transpose::No>(
            products, Own::descriptor(base + Shared::OWN + panel * Own::BYTES, consumer * 64, k % DEPTH),
            Other::descriptor(stage + panel * Other::BYTES, 0, k % DEPTH), k > 0);
    }
    wgmma_commit_group();
    wgmma_wait_group<0>();
}

// gradient [64, 256] += g · stage, g [64, 64] rounded to bf16
__device__ inline void accumulate(float (&gradient)[WIDTH / 2], const float (&g)[STAGE_ROWS / 2], u32 stage) {
    u32 a[STAGE_ROWS / 16][4];
#pragma unroll
    for (u32 k = 0; k < STAGE_ROWS / 16; ++k)
#pragma unroll
        for (u32 i = 0; i < 4; ++i) a[k][i] = pack(g[k * 8 + i * 2], g[k * 8 + i * 2 + 1]);
    wgmma_fence();
#pragma unroll
    for (u32 k = 0; k < STAGE_ROWS / 16; ++k)
        wgmma<Across::TRANSPOSE>(gradient, a[k], Across::descriptor(stage, 0, k * 16));
    wgmma_commit_group();
    wgmma_wait_group<0>();
}

// A consumer's turn: the gradient of its 64 rows, of which a warp has 16 from `first_row` on.
template <Side SIDE>
__device__ void consume(const ContrastiveBackwardArgs &a, u32 base, const Range &range, u32 consumer, u32 first_row,
                        float *part) {
    constexpr bool OF_QUERIES = SIDE == Side::Queries;
    const Batch &batch = a.batch;
    const u32 rows = OF_QUERIES ? batch.images * QUERIES : batch.texts_count;
    const float inverse = 1.0f / *batch.temperature.data;
    float gradient[WIDTH / 2] = {};
    float sum = 0.0f;
    Turn turn;
    wait(base + Shared::OWN_FULL, 0);
    for (u32 index = 0; index < range.stages(); ++index) {
        wait(base + Shared::FULL + turn.stage * sizeof(u64), turn.phase);
        const u32 stage = base + Shared::RING + turn.stage * Shared::STAGE;
        float products[STAGE_ROWS / 2];
        multiply(products, base, stage, consumer);
#pragma unroll
        for (u32 half = 0; half < STAGE_ROWS / TILE_ROWS; ++half) {
            const u32 first = range.first + index * STAGE_ROWS + half * TILE_ROWS;
            Products &tile = *reinterpret_cast<Products *>(products + half * TILE_ROWS / 2);
            if constexpr (OF_QUERIES)
                differentiate_queries(a, tile, first_row / QUERIES, first_row % QUERIES, first, inverse, sum);
            else
                differentiate_texts(a, tile, first_row, first / QUERIES, 0, range.end / QUERIES, inverse);
        }
        accumulate(gradient, products, stage);
        if (lane_index() == 0) mbarrier_arrive(base + Shared::EMPTY + turn.stage * sizeof(u64));
        turn.advance<Shared::STAGES>();
    }

    const u32 column = lane_index() % 4 * 2;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const u32 row = first_row + half * 8 + lane_index() / 4;
        if (row >= rows) continue;
#pragma unroll
        for (u32 n = 0; n < WIDTH / 8; ++n) {
            const float x = gradient[n * 4 + half * 2], y = gradient[n * 4 + half * 2 + 1];
            if constexpr (OF_QUERIES)
                *reinterpret_cast<u32 *>(a.dqueries.row(row) + n * 8 + column) = pack(x, y);
            else
                *reinterpret_cast<float2 *>(part + static_cast<u64>(row) * WIDTH + n * 8 + column) = make_float2(x, y);
        }
    }
    if constexpr (OF_QUERIES) {
        sum = warp_sum(sum);
        const bool writes = first_row < rows && lane_index() == 0;
        if (writes) BackwardWorkspace(a.workspace.data, batch).products[first_row / WARP_ROWS] = sum;
    }
}

// Grid: blocks of queries, then of texts for each part of the images.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    contrastive_backward_sm90a(const __grid_constant__ ContrastiveBackwardSm90aArgs a) {
    const Batch &batch = a.gradients.batch;
    const u32 base = shared_address(shared);
    const u32 query_rows = batch.images * QUERIES, query_blocks = ceil_div(query_rows, OWN_ROWS);
    const u32 text_blocks = ceil_div(batch.texts_count, OWN_ROWS);
    const bool of_queries = blockIdx.x < query_blocks;
    const u32 index = of_queries ? blockIdx.x : blockIdx.x - query_blocks, part = index / text_blocks;
    Range range = {index * OWN_ROWS, 0, batch.texts_count};
    if (!of_queries) {
        const u32 first_image = part * a.gradients.images_of_part;
        const u32 end_image = min(first_image + a.gradients.images_of_part, batch.images);
        range = {index % text_blocks * OWN_ROWS, first_image * QUERIES, end_image * QUERIES};
    }
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < Shared::STAGES; ++stage) {
            mbarrier_init(base + Shared::FULL + stage * sizeof(u64), 1);
            mbarrier_init(base + Shared::EMPTY + stage * sizeof(u64), CONSUMER_WARPS);
        }
        mbarrier_init(base + Shared::OWN_FULL, 1);
        fence_mbarrier_init();
    }
    __syncthreads();

    const u32 warpgroup = threadIdx.x / WARPGROUP;
    if (warpgroup == 0) {
        setmaxnreg_dec<24>();
        if (threadIdx.x != 0) return;
        of_queries ? produce(a.queries, a.texts, base, range) : produce(a.texts, a.queries, base, range);
        return;
    }
    setmaxnreg_inc<240>();
    const u32 consumer = warpgroup - 1;
    const u32 first_row = range.own_row + (warp_index() - WARPGROUP / WARP) * WARP_ROWS;
    const BackwardWorkspace workspace(a.gradients.workspace.data, batch);
    if (of_queries)
        consume<Side::Queries>(a.gradients, base, range, consumer, first_row, nullptr);
    else
        consume<Side::Texts>(a.gradients, base, range, consumer, first_row, workspace.part(part, batch));
}
