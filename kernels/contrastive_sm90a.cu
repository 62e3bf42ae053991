// contrastive_sm90a: the forward pass of contrastive.cu on Hopper: wgmma fed by TMA.
//
// For images of 8, 16, 32 or 64 queries of width up to 256. A block has up to 128 texts, which stay in shared memory,
// and a range of images; grid [blocks of texts, blocks of images]. One thread of its first warpgroup, the producer,
// copies queries into a ring of stages, 128 rows by 64 along the width; the two others, the consumers, have 64 texts
// each. A step is the products of these with 128 rows of queries, S [64, 128] = texts · queriesᵀ. A thread has, of two
// texts, a quarter of every image's products, so the largest is found in its own registers and in two exchanges with
// its neighbours; they leave each with other pairs of image and text. While this is done, and what a line of logits is
// known by grows, the tensor cores compute the next step's products into other registers.
//
// What is known of a text grows in a thread's registers. What is known of an image is put together over a warp's 16
// texts by exchanges, and over the block's warps through shared memory, 32 images at a time.
//
// Bytes moved: queries T/128 times, texts I/(images of a block) times, from L2. Saved: as contrastive.cu, whose
// `contrastive_lines` goes on from here. Every sum is of a fixed order.
#include "contrastive.cuh"
#include "pipeline_sm90a.cuh"

constexpr u32 CONSUMERS = 2, CONSUMER_THREADS = CONSUMERS * WARPGROUP, CONSUMER_WARPS = CONSUMER_THREADS / WARP;
constexpr u32 THREADS = WARPGROUP + CONSUMER_THREADS;
constexpr u32 STEP_ROWS = 128;  // of queries
constexpr u32 MOST_PANELS = 4;  // of 64 along the width
static_assert(TEXTS_OF_BLOCK == CONSUMERS * 64);

// Images of which parts are put together at a time: a thread of the consumers has one warp's part of one.
constexpr u32 PERIOD = CONSUMER_THREADS / CONSUMER_WARPS;
using Rows = Part[PERIOD][CONSUMER_WARPS];

// Places in dynamic shared memory. The swizzle wants panels to start at multiples of 1024 bytes. Stages are two steps'.
struct Shared {
    static constexpr u32 STAGES = 2 * MOST_PANELS;
    static constexpr u32 PANEL = TEXTS_OF_BLOCK * ROW, STAGE = STEP_ROWS * ROW;
    static constexpr u32 TEXTS = 0, RING = TEXTS + MOST_PANELS * PANEL, ROWS = RING + STAGES * STAGE;
    static constexpr u32 FULL = ROWS + 2 * sizeof(Rows), EMPTY = FULL + STAGES * sizeof(u64);
    static constexpr u32 TEXTS_FULL = EMPTY + STAGES * sizeof(u64), BYTES = TEXTS_FULL + sizeof(u64);
    static_assert(RING % ATOM == 0 && STAGE % ATOM == 0 && BYTES <= 227 * 1024);
};

extern __shared__ __align__(1024) unsigned char shared[];

struct ContrastiveForwardSm90aArgs {
    TensorMap queries, texts;
    Batch batch;
    In<u32> key;      // [1, 2]: seed and step; absent if the negatives are the hardest
    Out<u8> winner;   // [images, texts]
    Out<u32> workspace;
    u32 site, unused;
};
static_assert(sizeof(ContrastiveForwardSm90aArgs) == 448);

// What a block goes over.
struct Range {
    u32 first_text, first_image, end_image;
    u32 panels;  // of the width

    __device__ explicit Range(const Batch &batch)
        : first_text(blockIdx.x * TEXTS_OF_BLOCK), first_image(blockIdx.y * batch.images_of_block),
          end_image(min(first_image + batch.images_of_block, batch.images)), panels(ceil_div(batch.width, DEPTH)) {}

    template <u32 QUERIES> __device__ u32 steps() const {
        return ceil_div((end_image - first_image) * QUERIES, STEP_ROWS);
    }
};

// Products of 64 texts with a step's queries: of 16 times 8 columns, what a lane has of `mma`'s d.
using Scores = float[STEP_ROWS / 2];

// One thread: fills the texts' panels, and the ring with every step's.
template <u32 QUERIES> __device__ void produce(const ContrastiveForwardSm90aArgs &a, u32 base, const Range &range) {
    mbarrier_arrive_expect_tx(base + Shared::TEXTS_FULL, range.panels * Shared::PANEL);
    for (u32 panel = 0; panel < range.panels; ++panel)
        tma_load(base + Shared::TEXTS + panel * Shared::PANEL, &a.texts, base + Shared::TEXTS_FULL, panel * DEPTH,
                 range.first_text);
    Turn turn;
    for (u32 step = 0; step < range.steps<QUERIES>(); ++step)
        for (u32 panel = 0; panel < range.panels; ++panel) {
            // Before its first turn a stage counts as emptied: that is the phase before the first.
            wait(base + Shared::EMPTY + turn.stage * sizeof(u64), turn.phase ^ 1);
            const u32 full = base + Shared::FULL + turn.stage * sizeof(u64);
            mbarrier_arrive_expect_tx(full, Shared::STAGE);
            tma_load(base + Shared::RING + turn.stage * Shared::STAGE, &a.queries, full, panel * DEPTH,
                     range.first_image * QUERIES + step * STEP_ROWS);
            turn.advance<Shared::STAGES>();
        }
}

// Starts a step's products, which nobody may touch before they are waited for.
__device__ inline void start(Scores &scores, Turn &turn, u32 base, u32 consumer, u32 panels) {
    using Operand = Panels<Major::K, TEXTS_OF_BLOCK>;
    static_assert(STEP_ROWS == TEXTS_OF_BLOCK);
    u32 panel = 0;
    do {
        wait(base + Shared::FULL + turn.stage * sizeof(u64), turn.phase);
        wgmma_fence();
        const u32 texts = base + Shared::TEXTS + panel * Shared::PANEL;
        const u32 queries = base + Shared::RING + turn.stage * Shared::STAGE;
#pragma unroll
        for (u32 k = 0; k < DEPTH; k += 16)
            wgmma<Transpose::No, Transpose::No>(scores, Operand::descriptor(texts, consumer * 64, k),
                                                Operand::descriptor(queries, 0, k), panel + k > 0);
        turn.advance<Shared::STAGES>();
    } while (++panel < panels);
    wgmma_commit_group();
}

// Waits for a step's products; its stages may be filled again.
__device__ inline void finish(Turn &turn, u32 base, u32 panels) {
    wgmma_wait_group<0>();
    for (u32 panel = 0; panel < panels; ++panel) {
        if (lane_index() == 0) mbarrier_arrive(base + Shared::EMPTY + turn.stage * sizeof(u64));
        turn.advance<Shared::STAGES>();
    }
}

// The pairs of a step that a lane is left with: it begins with a quarter of the products of PAIRS pairs, in the order
// of images, and of each of its row's text and of that eight rows below.
template <u32 QUERIES> struct Pairs {
    static constexpr u32 IMAGES = STEP_ROWS / QUERIES, ALL = 2 * IMAGES, OWN = ALL / 4;
    // Of a lane's own pairs.
    static constexpr u32 OWN_TEXTS = OWN == 1 ? 1 : 2, OWN_IMAGES = OWN / OWN_TEXTS;

    static __device__ u32 image(u32 own) { return (lane_index() % 4 * OWN + own) / 2; }
    // Among a warp's 16.
    static __device__ u32 text(u32 own) { return lane_index() / 4 + (lane_index() % 4 * OWN + own) % 2 * 8; }

    // Half of what a lane has goes to the lane that has another quarter of the queries.
    template <u32 LEFT> static __device__ void exchange(Best (&best)[ALL], u32 lanes) {
        const bool upper = lane_index() & lanes;
#pragma unroll
        for (u32 i = 0; i < LEFT; ++i) {
            const Best keep = upper ? best[i + LEFT] : best[i], give = upper ? best[i] : best[i + LEFT];
            const Best taken = {__shfl_xor_sync(ALL_LANES, give.score, lanes),
                                __shfl_xor_sync(ALL_LANES, give.query, lanes)};
            best[i] = Best::of(keep, taken);
        }
    }

    static __device__ void best(Best (&own)[OWN], const Scores &scores) {
        constexpr u32 FRAGMENTS = QUERIES / 8;  // of an image
        Best best[ALL];
#pragma unroll
        for (u32 pair = 0; pair < ALL; ++pair) {
            const float *from = scores + pair / 2 * FRAGMENTS * 4 + pair % 2 * 2;
            const u32 first = lane_index() % 4 * 2;
            best[pair] = {from[0], first};
#pragma unroll
            for (u32 i = 1; i < FRAGMENTS * 2; ++i) best[pair].add(from[i / 2 * 4 + i % 2], i / 2 * 8 + first + i % 2);
        }
        exchange<ALL / 2>(best, 2);
        exchange<ALL / 4>(best, 1);
#pragma unroll
        for (u32 i = 0; i < OWN; ++i) own[i] = best[i];
    }
};

// A warp of the consumers and what it knows of its 16 texts.
template <u32 QUERIES> struct Lines {
    using Own = Pairs<QUERIES>;
    static constexpr u32 STEPS = PERIOD / Own::IMAGES;  // of a period

    const ContrastiveForwardSm90aArgs &a;
    const Range &range;
    const Workspace workspace;
    const Draw draw;
    const float inverse;
    const u32 warp, first_text;
    Part columns[Own::OWN_TEXTS];

    __device__ Lines(const ContrastiveForwardSm90aArgs &a, const Range &range, u32 warp)
        : a(a), range(range), workspace(a.workspace.data, a.batch), draw(a.key, a.site),
          inverse(1.0f / *a.batch.temperature.data), warp(warp), first_text(range.first_text + warp * 16) {
#pragma unroll
        for (Part &column : columns) column = Part::empty();
    }

    // Takes a step's products in.
    __device__ void add(const Scores &scores, u32 step) {
        const Batch &batch = a.batch;
        Rows *rows = reinterpret_cast<Rows *>(shared + Shared::ROWS);
        Best best[Own::OWN];
        Own::best(best, scores);
#pragma unroll
        for (u32 i = 0; i < Own::OWN; i += Own::OWN_TEXTS) {
            const u32 in_step = Own::image(i), image = range.first_image + step * Own::IMAGES + in_step;
            Part row = Part::empty();
#pragma unroll
            for (u32 half = 0; half < Own::OWN_TEXTS; ++half) {
                const u32 text = first_text + Own::text(i + half);
                if (image >= range.end_image || text >= batch.texts_count) continue;
                a.winner.row(image)[text] = static_cast<u8>(best[i + half].query);
                const float logit = best[i + half].score * inverse;
                const bool is_positive = batch.is_positive(image, text);
                const float2 ranks = draw.ranks(image, text, logit);
                row.add(logit, ranks.x, text, is_positive);
                columns[half].add(logit, ranks.y, image, is_positive);
            }
            if constexpr (Own::OWN_TEXTS == 1) row.add(row.shuffled(1));
#pragma unroll
            for (u32 lanes = 4; lanes < WARP; lanes *= 2) row.add(row.shuffled(lanes));
            const bool writes = lane_index() < 4 && Own::text(i) == 0;
            if (writes) rows[step / STEPS % 2][step % STEPS * Own::IMAGES + in_step][warp] = row;
        }
    }

    // Puts the images of a period together. There is room for two periods: nobody writes to a period's before all
    // have come here for the next one, having read what was there.
    __device__ void end_period(u32 period) const {
        bar_sync<1, CONSUMER_THREADS>();
        const Rows *rows = reinterpret_cast<const Rows *>(shared + Shared::ROWS);
        const u32 in_period = warp * (PERIOD / CONSUMER_WARPS) + lane_index() / CONSUMER_WARPS;
        const u32 image = range.first_image + period * PERIOD + in_period;
        Part row = Part::empty();
        if (image < range.end_image) row = rows[period % 2][in_period][lane_index() % CONSUMER_WARPS];
#pragma unroll
        for (u32 lanes = 1; lanes < CONSUMER_WARPS; lanes *= 2) row.add(row.shuffled(lanes));
        if (image < range.end_image && lane_index() % CONSUMER_WARPS == 0)
            workspace.of_rows[static_cast<u64>(blockIdx.x) * a.batch.images + image] = row;
    }

    __device__ void end() {
#pragma unroll
        for (u32 half = 0; half < Own::OWN_TEXTS; ++half) {
            if constexpr (Own::OWN_TEXTS == 2) columns[half].add(columns[half].shuffled(1));
            columns[half].add(columns[half].shuffled(2));
            const u32 text = first_text + Own::text(half);
            const bool writes = Own::image(half) == 0 && text < a.batch.texts_count;
            if (writes) workspace.of_columns[static_cast<u64>(blockIdx.y) * a.batch.texts_count + text] = columns[half];
        }
    }
};

// A consumer: `done` has a step's products, while those of the next are computed into `next`.
template <u32 QUERIES>
__device__ void turn_over(Lines<QUERIES> &lines, const Scores &done, Scores &next, Turn &to_start, Turn &to_finish,
                          u32 base, u32 consumer, u32 step, u32 steps) {
    finish(to_finish, base, lines.range.panels);
    if (step + 1 < steps) start(next, to_start, base, consumer, lines.range.panels);
    lines.add(done, step);
    constexpr u32 STEPS = Lines<QUERIES>::STEPS;
    if (step + 1 == steps || step % STEPS == STEPS - 1) lines.end_period(step / STEPS);
}

template <u32 QUERIES> __device__ void forward(const ContrastiveForwardSm90aArgs &a) {
    const u32 base = shared_address(shared);
    const Range range(a.batch);
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < Shared::STAGES; ++stage) {
            mbarrier_init(base + Shared::FULL + stage * sizeof(u64), 1);
            mbarrier_init(base + Shared::EMPTY + stage * sizeof(u64), CONSUMER_WARPS);
        }
        mbarrier_init(base + Shared::TEXTS_FULL, 1);
        fence_mbarrier_init();
    }
    __syncthreads();

    const u32 warpgroup = threadIdx.x / WARPGROUP;
    if (warpgroup == 0) {
        setmaxnreg_dec<24>();
        if (threadIdx.x == 0) produce<QUERIES>(a, base, range);
        return;
    }
    setmaxnreg_inc<240>();
    const u32 consumer = warpgroup - 1, steps = range.steps<QUERIES>();
    Lines<QUERIES> lines(a, range, warp_index() - WARPGROUP / WARP);
    Scores even, odd;
    Turn to_start, to_finish;
    wait(base + Shared::TEXTS_FULL, 0);
    start(even, to_start, base, consumer, range.panels);
    for (u32 step = 0; step < steps; step += 2) {
        turn_over(lines, even, odd, to_start, to_finish, base, consumer, step, steps);
        if (step + 1 < steps) turn_over(lines, odd, even, to_start, to_finish, base, consumer, step + 1, steps);
    }
    lines.end();
}

#define CONTRASTIVE_KERNELS(QUERIES)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                           \
        contrastive_forward_sm90a_##QUERIES(const __grid_constant__ ContrastiveForwardSm90aArgs a) {                   \
        forward<QUERIES>(a);                                                                                           \
    }

CONTRASTIVE_KERNELS(8)
CONTRASTIVE_KERNELS(16)
CONTRASTIVE_KERNELS(32)
CONTRASTIVE_KERNELS(64)
