// contrastive: the contrastive loss of I images of Q queries and T texts, in both directions, with hard negatives.
//
// Forward. A block has up to 128 texts and a range of images, taken four at a time, an image a warp; grid
// [blocks of texts, blocks of images]. At BLIP-2's sizes, Q = 32 and E = 256, the block's texts lie in shared memory
// and an image's queries in its warp's registers; at others both come from the cache. The warp takes the largest of 32
// rows of products, a lane a text, and what a row or a column of logits is known by (`Part`) grows lane by lane: no
// [I, T] numbers leave the block but winners, a byte each. `contrastive_lines` then puts parts of lines together, in
// order, and `contrastive_loss` sums over lines. Bytes moved: queries T/128 times, texts I/(images of a block) times,
// from L2; at other sizes queries T/32 times, texts I times. Saved: winners, and of each line its log-sum-exp and its
// number of positives.
//
// Backward: contrastive_dense.cuh. `contrastive_dtemperature` sums over lines.
//
// On Hopper contrastive_sm90a.cu and contrastive_backward_sm90a.cu take the place of what they have sizes for. Every sum
// is of a fixed order.
#include "contrastive_dense.cuh"
#include "contrastive_scores.cuh"

// ---- Forward

struct ContrastiveForwardArgs {
    Batch batch;
    In<u32> key;      // [1, 2]: seed and step; absent if the negatives are the hardest
    Out<u8> winner;   // [images, texts]
    Out<u32> workspace;
    u32 site;
    u32 vector;
};
static_assert(sizeof(ContrastiveForwardArgs) == 160);

// Dynamic shared memory: what is known of the block's columns, its logits and texts' scores, and its texts for tensor
// cores.
extern __shared__ uint4 shared[];

template <class Scores> __device__ void forward(const ContrastiveForwardArgs &a) {
    const Batch &batch = a.batch;
    const Workspace workspace(a.workspace.data, batch);
    Part *columns = reinterpret_cast<Part *>(shared);  // [TEXTS_OF_BLOCK], each its thread's own
    // [IMAGES_OF_STEP, TEXTS_OF_BLOCK]: logit, text's score
    float2 *pairs = reinterpret_cast<float2 *>(columns + TEXTS_OF_BLOCK);
    bf16 *texts = reinterpret_cast<bf16 *>(pairs + IMAGES_OF_STEP * TEXTS_OF_BLOCK);
    const u32 first_text = blockIdx.x * TEXTS_OF_BLOCK, first_image = blockIdx.y * batch.images_of_block;
    const u32 end_image = min(first_image + batch.images_of_block, batch.images);
    const float inverse = 1.0f / *batch.temperature.data;
    const Draw draw(a.key, a.site);
    Scores scores(batch, texts, first_text, a.vector);
    const u32 own_text = first_text + threadIdx.x;
    columns[threadIdx.x] = Part::empty();
    for (u32 step = first_image; step < end_image; step += IMAGES_OF_STEP) {
        const u32 image = step + warp_index();
        if (image < end_image) {
            scores.load_image(batch, image);
            Part row = Part::empty();
            for (u32 tile = 0; tile < TEXTS_OF_BLOCK && first_text + tile < batch.texts_count; tile += WARP) {
                const u32 in_block = tile + text_of_lane(), text = first_text + in_block;
                const Best best = scores.best(batch, texts, text, tile);
                if (text >= batch.texts_count) continue;
                a.winner.row(image)[text] = static_cast<u8>(best.query);
                const float logit = best.score * inverse;
                const float2 ranks = draw.ranks(image, text, logit);
                row.add(logit, ranks.x, text, batch.is_positive(image, text));
                pairs[warp_index() * TEXTS_OF_BLOCK + in_block] = make_float2(logit, ranks.y);
            }
#pragma unroll
            for (u32 lanes = WARP / 2; lanes > 0; lanes /= 2) row.add(row.shuffled(lanes));
            if (lane_index() == 0) workspace.of_rows[static_cast<u64>(blockIdx.x) * batch.images + image] = row;
        }
        __syncthreads();
        if (own_text < batch.texts_count) {
            Part column = columns[threadIdx.x];
            for (u32 i = 0; i < IMAGES_OF_STEP && step + i < end_image; ++i) {
                const float2 pair = pairs[i * TEXTS_OF_BLOCK + threadIdx.x];
                column.add(pair.x, pair.y, step + i, batch.is_positive(step + i, own_text));
            }
            columns[threadIdx.x] = column;
        }
        __syncthreads();
    }
    if (own_text < batch.texts_count)
        workspace.of_columns[static_cast<u64>(blockIdx.y) * batch.texts_count + own_text] = columns[threadIdx.x];
}

// At BLIP-2's sizes.
extern "C" __global__ void __launch_bounds__(THREADS)
    contrastive_forward(const __grid_constant__ ContrastiveForwardArgs a) {
    forward<KnownScores>(a);
}

// At any others.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    contrastive_forward_any(const __grid_constant__ ContrastiveForwardArgs a) {
    forward<AnyScores>(a);
}

struct ContrastiveLinesArgs {
    Batch batch;
    Out<u32> workspace;
    Out<float> image_statistics;  // [2, images]: log-sum-exp, number of positives
    Out<float> text_statistics;   // [2, texts]
    Out<u32> negative_texts;      // [1, images]
    Out<u32> negative_images;     // [1, texts]
};
static_assert(sizeof(ContrastiveLinesArgs) == 184);

// A thread a line: images, then texts.
extern "C" __global__ void __launch_bounds__(THREADS)
    contrastive_lines(const __grid_constant__ ContrastiveLinesArgs a) {
    const Batch &batch = a.batch;
    const Workspace workspace(a.workspace.data, batch);
    const u32 line = blockIdx.x * THREADS + threadIdx.x;
    if (line >= batch.images + batch.texts_count) return;
    const bool is_image = line < batch.images;
    const u32 index = is_image ? line : line - batch.images;
    const u32 lines = is_image ? batch.images : batch.texts_count;
    const u32 length = is_image ? batch.texts_count : batch.images;
    const u32 parts = is_image ? workspace.row_parts : workspace.column_parts;
    const Part *from = is_image ? workspace.of_rows : workspace.of_columns;
    Part all = Part::empty();
    for (u32 part = 0; part < parts; ++part) all.add(from[static_cast<u64>(part) * lines + index]);

    const float log_sum_exp = all.largest + logf(all.sum);
    const Out<float> &statistics = is_image ? a.image_statistics : a.text_statistics;
    statistics.row(0)[index] = log_sum_exp;
    statistics.row(1)[index] = static_cast<float>(all.positives);
    (is_image ? a.negative_texts : a.negative_images).data[index] = all.negative;
    float cross_entropy = 0.0f;
    if (all.positives > 0)
        cross_entropy = log_sum_exp - (1.0f - batch.smoothing) * all.positive / static_cast<float>(all.positives) -
                        batch.smoothing * all.total / static_cast<float>(length);
    workspace.cross_entropy[line] = cross_entropy;
    const bool known = all.first != NONE && !isnan(log_sum_exp);
    const u32 image = is_image ? index : all.first, text = is_image ? all.first : index;
    workspace.recalled[line] = known && batch.is_positive(image, text) ? 1.0f : 0.0f;
}

struct ContrastiveLossArgs {
    Batch batch;
    Out<u32> workspace;
    Out<float> loss;    // [1, 1]
    Out<u32> recalled;  // [1, 2]
};
static_assert(sizeof(ContrastiveLossArgs) == 152);

constexpr u32 SUM_THREADS = 1024;
constexpr u32 SUM_WARPS = SUM_THREADS / WARP;

// The sum of `count` numbers, by one block; whole in its first warp.
__device__ inline float sum_of(const float *numbers, u32 count, float (&sums)[SUM_WARPS]) {
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < count; i += SUM_THREADS) sum += numbers[i];
    return block_sum(sum, sums);
}

// One block.
extern "C" __global__ void __launch_bounds__(SUM_THREADS)
    contrastive_loss(const __grid_constant__ ContrastiveLossArgs a) {
    __shared__ float sums[4][SUM_WARPS];
    const u32 images = a.batch.images, texts = a.batch.texts_count;
    const Workspace workspace(a.workspace.data, a.batch);
    const float of_images = sum_of(workspace.cross_entropy, images, sums[0]) / static_cast<float>(images);
    const float of_texts = sum_of(workspace.cross_entropy + images, texts, sums[1]) / static_cast<float>(texts);
    // Counts below 2²⁴ are exact.
    const float images_recalled = sum_of(workspace.recalled, images, sums[2]);
    const float texts_recalled = sum_of(workspace.recalled + images, texts, sums[3]);
    if (threadIdx.x == 0) {
        *a.loss.data = 0.5f * (of_images + of_texts);
        a.recalled.data[0] = static_cast<u32>(images_recalled);
        a.recalled.data[1] = static_cast<u32>(texts_recalled);
    }
}

// ---- Backward

// At BLIP-2's sizes.
extern "C" __global__ void __launch_bounds__(DENSE_THREADS)
    contrastive_backward(const __grid_constant__ ContrastiveBackwardArgs a) {
    backward_dense<KnownSizes>(a, reinterpret_cast<bf16 *>(shared));
}

// At any others.
extern "C" __global__ void __launch_bounds__(DENSE_THREADS)
    contrastive_backward_any(const __grid_constant__ ContrastiveBackwardArgs a) {
    backward_dense<AnySizes>(a, reinterpret_cast<bf16 *>(shared));
}

struct ContrastiveDtextsArgs {
    Batch batch;
    Out<u32> workspace;
    Out<bf16> dtexts;  // [texts_count, width], written
    u32 parts, vector;
};
static_assert(sizeof(ContrastiveDtextsArgs) == 144);

// A thread four elements.
extern "C" __global__ void __launch_bounds__(THREADS)
    contrastive_dtexts(const __grid_constant__ ContrastiveDtextsArgs a) {
    const BackwardWorkspace workspace(a.workspace.data, a.batch);
    const u32 index = blockIdx.x * THREADS + threadIdx.x;
    const u32 text = index / (workspace.pitch / QUAD), column = index % (workspace.pitch / QUAD) * QUAD;
    if (text >= a.batch.texts_count) return;
    const float *from = workspace.parts + static_cast<u64>(text) * workspace.pitch + column;
    float sum[QUAD] = {};
#pragma unroll 4
    for (u32 part = 0; part < a.parts; ++part) {
        float x[QUAD];
        load(x, from + static_cast<u64>(part) * a.batch.texts_count * workspace.pitch);
#pragma unroll
        for (int i = 0; i < QUAD; ++i) sum[i] += x[i];
    }
    bf16 *to = a.dtexts.row(text) + column;
    if (a.vector == VECTOR)
        store(to, sum);
    else
#pragma unroll
        for (u32 i = 0; i < QUAD; ++i)
            if (column + i < a.batch.width) to[i] = to_bf16(sum[i]);
}

struct ContrastiveDtemperatureArgs {
    Batch batch;
    Out<u32> workspace;
    Out<float> dtemperature;  // [1, 1], added to
    u32 products, unused;     // how many to sum up
};
static_assert(sizeof(ContrastiveDtemperatureArgs) == 144);

// One block. A logit is s/temperature, whose derivative is −logit/temperature.
extern "C" __global__ void __launch_bounds__(SUM_THREADS)
    contrastive_dtemperature(const __grid_constant__ ContrastiveDtemperatureArgs a) {
    __shared__ float sums[SUM_WARPS];
    const float sum = sum_of(BackwardWorkspace(a.workspace.data, a.batch).products, a.products, sums);
    if (threadIdx.x == 0) *a.dtemperature.data -= sum / *a.batch.temperature.data;
}
