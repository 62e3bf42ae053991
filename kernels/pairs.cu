// pairs: the pairs of images and texts that hard negatives make, and the stream of rows that pairs and captions are.
//
// pairs_list: grid [images / LIST_THREADS], a thread an image, which counts the pairs of the images before it.
// pairs_stream: one block, whose threads take the pairs, in turn if there are more, and whose warps take the texts.
// Bytes moved: the negatives once for each image, from the cache; the texts of the stream once.
#include "common.cuh"

// Twins of constants in src/ops.
constexpr u32 ABSENT = 0xffffffffu;    // of a pair, and of a hard negative
constexpr u32 LEFT_OUT = 0xffffffffu;  // of ITM
constexpr u32 IGNORED = 0xffffffffu;   // of ITG
constexpr u32 PADDING = 0;
constexpr u32 FILLER = 32;
constexpr u32 SEQUENCE_WORDS = 8;

constexpr u32 LIST_THREADS = 128;
constexpr u32 THREADS = 1024;
constexpr u32 WARPS = THREADS / WARP;

struct PairsListArgs {
    In<u32> negative_texts;   // [1, images]
    In<u32> negative_images;  // [1, images]
    Out<u32> pairs;           // [2, 3·images]: image and text
    Out<u32> bounds;          // [1, images + 1]
    u32 images, unused;
};
static_assert(sizeof(PairsListArgs) == 72);

struct PairsStreamArgs {
    In<u32> pairs;        // [2, count]: image and text
    In<u32> bounds;       // [1, images of the batch + 1]
    In<u32> texts;        // [1, tokens of all texts]
    In<u32> starts;       // [1, images of the batch + 1]: where each text begins
    Out<u32> query_ids;   // [1, count·queries]
    Out<u32> tokens;      // [1, rows]
    Out<u32> positions;   // [1, rows]
    Out<u32> matched;     // table of pairs and filler
    Out<u32> generated;   // table of captions
    Out<u32> cross;       // table of query sets
    Out<u32> picked;      // [1, picks]
    Out<u32> places;      // [1, rows]
    Out<u32> predicted;   // [1, predicting]
    Out<u32> labels;      // [1, count]
    Out<u32> needed;      // [1, 1]
    u32 first, count;     // of the pairs
    u32 rows, picks, predicting;
    u32 room;             // for sequences of pairs and filler
    u32 queries, image_tokens;
    u32 first_image, images, captions;
    u32 start_token;
};
static_assert(sizeof(PairsStreamArgs) == 288);

extern "C" __global__ void __launch_bounds__(LIST_THREADS) pairs_list(const __grid_constant__ PairsListArgs a) {
    const u32 image = blockIdx.x * LIST_THREADS + threadIdx.x;
    if (image >= a.images) return;
    u32 before = 0, all = 0;
    for (u32 i = 0; i < a.images; ++i) {
        const u32 with_texts = a.negative_texts.data[i] == ABSENT ? 1 : 2, negative = a.negative_images.data[i];
        all += with_texts + (negative == ABSENT ? 0 : 1);
        before += (i < image ? with_texts : 0) + (negative < image ? 1 : 0);
    }
    u32 pair = before;
    const auto add = [&](u32 text) {
        a.pairs.row(0)[pair] = image;
        a.pairs.row(1)[pair++] = text;
    };
    add(image);
    for (u32 text = 0; text < a.images; ++text)
        if (a.negative_images.data[text] == image) add(text);
    if (a.negative_texts.data[image] != ABSENT) add(a.negative_texts.data[image]);
    a.bounds.data[image] = before;
    if (image + 1 == a.images) a.bounds.data[a.images] = pair;
    for (u32 none = all + image; none < 3 * a.images; none += a.images)
        a.pairs.row(0)[none] = a.pairs.row(1)[none] = ABSENT;
}

// Rows that follow one another.
struct Span {
    u32 start, length;
};

__device__ static void write(u32 *to, const Span (&queries)[2], const Span (&keys)[2]) {
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        to[2 * i] = queries[i].start, to[2 * i + 1] = queries[i].length;
        to[4 + 2 * i] = keys[i].start, to[4 + 2 * i + 1] = keys[i].length;
    }
}

// The captions' rows, and those of them that predict.
__device__ static void write_captions(const PairsStreamArgs &a, u32 query_rows) {
    const u32 *starts = a.starts.data + a.first_image;
    for (u32 caption = warp_index(); caption < a.captions; caption += WARPS) {
        const u32 begin = starts[caption], length = starts[caption + 1] - begin;
        const u32 start = begin - starts[0], first = start - caption;
        for (u32 i = lane_index(); i < length; i += WARP) {
            const bool predicts = i + 1 < length;
            a.tokens.data[start + i] = i == 0 ? a.start_token : a.texts.data[begin + i];
            a.positions.data[start + i] = i;
            a.places.data[start + i] = predicts ? first + i : a.picks;
            if (!predicts) continue;
            a.picked.data[first + i] = query_rows + start + i;
            a.predicted.data[first + i] = a.texts.data[begin + i + 1];
        }
        if (lane_index() > 0) continue;
        const Span text{query_rows + start, length};
        write(a.generated.data + a.captions + 1 + caption * SEQUENCE_WORDS, {Span{}, text},
              {Span{caption * a.queries, a.queries}, text});
    }
    for (u32 group = threadIdx.x; group <= a.captions; group += THREADS) a.generated.data[group] = group;
    for (u32 i = starts[a.captions] - starts[0] - a.captions + threadIdx.x; i < a.predicting; i += THREADS) {
        a.picked.data[i] = 0;
        a.predicted.data[i] = IGNORED;
    }
}

// The sum over the block's threads up to this one, and over all of them.
__device__ static uint2 running_sum(u32 x, u32 (&sums)[WARPS]) {
#pragma unroll
    for (u32 step = 1; step < WARP; step *= 2) {
        const u32 earlier = __shfl_up_sync(ALL_LANES, x, step);
        if (lane_index() >= step) x += earlier;
    }
    __syncthreads();
    if (lane_index() == WARP - 1) sums[warp_index()] = x;
    __syncthreads();
    u32 all = 0;
    for (u32 warp = 0; warp < WARPS; ++warp) {
        if (warp < warp_index()) x += sums[warp];
        all += sums[warp];
    }
    return make_uint2(x, all);
}

extern "C" __global__ void __launch_bounds__(THREADS) pairs_stream(const __grid_constant__ PairsStreamArgs a) {
    __shared__ u32 sums[WARPS], filled;
    const u32 query_rows = a.count * a.queries, caption_rows =
        a.starts.data[a.first_image + a.captions] - a.starts.data[a.first_image];
    u32 *const matched = a.matched.data + a.room + 1, *const cross = a.cross.data + a.images + 1;
    write_captions(a, query_rows);

    // Where the pairs' texts stand.
    u32 end_of_all = caption_rows;
    for (u32 base = 0; base < a.count; base += THREADS) {
        const u32 pair = base + threadIdx.x;
        const u32 text = pair < a.count ? a.pairs.row(1)[pair] : ABSENT;
        const u32 length = text == ABSENT ? 0 : a.starts.data[text + 1] - a.starts.data[text];
        const uint2 sum = running_sum(length, sums);
        const u32 end = end_of_all + sum.x, start = end - length;
        end_of_all += sum.y;
        if (start <= a.rows && end > a.rows) filled = start;
        if (pair >= a.count) continue;
        const Span set{pair * a.queries, a.queries};
        const Span rows = length > 0 && end <= a.rows ? Span{query_rows + start, length} : Span{};
        write(matched + pair * SEQUENCE_WORDS, {set, rows}, {set, rows});
        const u32 image = a.pairs.row(0)[pair], place = image == ABSENT ? a.images - 1 : image - a.first_image;
        write(cross + pair * SEQUENCE_WORDS, {set, Span{}}, {Span{place * a.image_tokens, a.image_tokens}, Span{}});
        a.labels.data[pair] = image == ABSENT ? LEFT_OUT : image == text ? 1 : 0;
        if (a.picks > a.predicting) a.picked.data[a.predicting + pair] = rows.start;
    }
    if (threadIdx.x == 0) {
        *a.needed.data = end_of_all;
        if (end_of_all <= a.rows) filled = end_of_all;
    }
    for (u32 group = threadIdx.x; group <= a.images; group += THREADS) {
        const u32 bound = group == a.images ? a.first + a.count : a.bounds.data[a.first_image + group];
        a.cross.data[group] = min(max(bound, a.first) - a.first, a.count);
    }
    for (u32 row = threadIdx.x; row < query_rows; row += THREADS) a.query_ids.data[row] = row % a.queries;
    __syncthreads();

    for (u32 pair = warp_index(); pair < a.count; pair += WARPS) {
        const u32 *sequence = matched + pair * SEQUENCE_WORDS, length = sequence[3];
        if (length == 0) continue;
        const u32 start = sequence[2] - query_rows, begin = a.starts.data[a.pairs.row(1)[pair]];
        for (u32 i = lane_index(); i < length; i += WARP) {
            a.tokens.data[start + i] = a.texts.data[begin + i];
            a.positions.data[start + i] = i;
            a.places.data[start + i] = i == 0 ? min(a.predicting + pair, a.picks) : a.picks;
        }
    }
    for (u32 row = filled + threadIdx.x; row < a.rows; row += THREADS) {
        a.tokens.data[row] = PADDING;
        a.positions.data[row] = 0;
        a.places.data[row] = a.picks;
    }
    const u32 sequences = a.count + ceil_div(a.rows - filled, FILLER);
    for (u32 group = threadIdx.x; group <= a.room; group += THREADS) a.matched.data[group] = min(group, sequences);
    for (u32 index = a.count + threadIdx.x; index < a.room; index += THREADS) {
        const u32 start = filled + (index - a.count) * FILLER;
        const Span rows = index < sequences ? Span{query_rows + start, min(FILLER, a.rows - start)} : Span{};
        write(matched + index * SEQUENCE_WORDS, {Span{}, rows}, {Span{}, rows});
    }
}
