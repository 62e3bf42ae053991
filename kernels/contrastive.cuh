// What the kernels of the contrastive loss share: the batch, what is known of a line of logits, and the workspace.
#pragma once
#include "random.cuh"

// Twin of `BatchArgs` in src/ops/contrastive/cuda.rs.
struct Batch {
    In<bf16> queries;       // [images·count, width]
    In<bf16> texts;         // [texts_count, width]
    In<float> temperature;  // [1, 1]
    In<u32> image_ids;      // [1, images]
    In<u32> text_ids;       // [1, texts_count]
    u32 images, texts_count;
    u32 count;             // queries of an image
    u32 width;             // of a feature
    u32 images_of_block;   // a multiple of IMAGES_OF_STEP
    float smoothing;

    __device__ bool is_positive(u32 image, u32 text) const {
        return image_ids.data[image] == text_ids.data[text];
    }
};
static_assert(sizeof(Batch) == 104);

constexpr u32 NONE = 0xffffffffu;

constexpr u32 TEXTS_OF_BLOCK = 128;

// The largest score so far, and whose it is.
struct Best {
    float score;
    u32 query;

    // Takes a later query in, without a branch. A NaN must not be passed over.
    __device__ void add(float other, u32 other_query) {
        const bool better = (other > score) | isnan(other);
        score = better ? other : score;
        query = better ? other_query : query;
    }

    // The better of two, of equals the first.
    __device__ static Best of(Best a, Best b) {
        const bool second = (b.score > a.score) | ((b.score == a.score) & (b.query < a.query)) | isnan(b.score);
        return second ? b : a;
    }
};

// Gumbel noise from a word: twin of `noise` in src/ops/contrastive/mod.rs.
__device__ inline float gumbel(u32 word) {
    // Of a number in (0, 1) that is finest near 0, where the noise is large. The largest words would round to 1.
    const float uniform = fminf((static_cast<float>(word) + 0.5f) * 0x1p-32f, 1.0f - 0x1p-24f);
    // −ln(1 − uniform): the rounding of 1 − uniform is made good by the factor (Kahan).
    const float rest = 1.0f - uniform;
    return -logf(rest == 1.0f ? uniform : -logf(rest) * __fdividef(uniform, 1.0f - rest));
}

// What negatives are chosen by.
struct Draw {
    bool drawn;  // or the hardest
    uint2 key;
    u32 site;

    __device__ Draw(const In<u32> &from, u32 site) : drawn(from.present()), site(site) {
        key = drawn ? make_uint2(from.data[0], from.data[1]) : make_uint2(0, 0);
    }

    // What the image, and what the text, ranks the pair by.
    __device__ float2 ranks(u32 image, u32 text, float logit) const {
        if (!drawn) return make_float2(logit, logit);
        const uint4 words = philox(make_uint4(text, image, site, 0), key);
        return make_float2(logit + gumbel(words.x), logit + gumbel(words.y));
    }
};

// What is known of some of a line's logits, a line being an image's or a text's.
struct alignas(16) Part {
    float largest, sum;      // Σ e^(logit − largest)
    float total, positive;   // sums of all logits, and of the positives'
    u32 positives;           // how many are positive
    u32 first;               // where the largest is; NONE if there is no logit
    u32 negative;            // where the largest score of what is not positive is; NONE if all are
    float negative_score;

    __device__ static Part empty() { return {-3.402823466e38f, 0.0f, 0.0f, 0.0f, 0, NONE, NONE, 0.0f}; }

    // Takes the next logit in.
    __device__ void add(float logit, float score, u32 place, bool is_positive) {
        const float e = expf(-fabsf(logit - largest));
        if (logit > largest) {
            sum = sum * e + 1.0f;
            largest = logit;
            first = place;
        } else {
            sum += e;
        }
        total += logit;
        if (is_positive) {
            positive += logit;
            positives += 1;
        } else if (negative == NONE || score > negative_score) {
            negative = place;
            negative_score = score;
        }
    }

    // Takes another part of the same line in. Of equals the first in the line wins.
    __device__ void add(const Part &other) {
        const float e = expf(-fabsf(other.largest - largest));
        const bool larger = other.largest > largest;
        sum = larger ? sum * e + other.sum : sum + other.sum * e;
        if (larger || (other.largest == largest && other.first < first)) first = other.first;
        largest = larger ? other.largest : largest;
        total += other.total;
        positive += other.positive;
        positives += other.positives;
        const bool equal = other.negative_score == negative_score && other.negative < negative;
        if (other.negative != NONE && (negative == NONE || other.negative_score > negative_score || equal)) {
            negative = other.negative;
            negative_score = other.negative_score;
        }
    }

    __device__ Part shuffled(u32 step) const {
        return {__shfl_xor_sync(ALL_LANES, largest, step),   __shfl_xor_sync(ALL_LANES, sum, step),
                __shfl_xor_sync(ALL_LANES, total, step),     __shfl_xor_sync(ALL_LANES, positive, step),
                __shfl_xor_sync(ALL_LANES, positives, step), __shfl_xor_sync(ALL_LANES, first, step),
                __shfl_xor_sync(ALL_LANES, negative, step),  __shfl_xor_sync(ALL_LANES, negative_score, step)};
    }
};
static_assert(sizeof(Part) == 32);

// Scratch of the forward pass: twin of `forward_words` in src/ops/contrastive/mod.rs.
struct Workspace {
    Part *of_rows;         // [blocks of texts, images]
    Part *of_columns;      // [blocks of images, texts]
    float *cross_entropy;  // [images + texts]
    float *recalled;       // [images + texts], 0 or 1
    u32 row_parts, column_parts;

    __device__ Workspace(u32 *words, const Batch &batch) {
        row_parts = ceil_div(batch.texts_count, TEXTS_OF_BLOCK);
        column_parts = ceil_div(batch.images, batch.images_of_block);
        of_rows = reinterpret_cast<Part *>(words);
        of_columns = of_rows + static_cast<u64>(row_parts) * batch.images;
        cross_entropy = reinterpret_cast<float *>(of_columns + static_cast<u64>(column_parts) * batch.texts_count);
        recalled = cross_entropy + batch.images + batch.texts_count;
    }
};

// Whose gradient a warp computes.
enum class Side { Queries, Texts };

struct ContrastiveBackwardArgs {
    Batch batch;
    In<float> image_statistics;  // [2, images]
    In<float> text_statistics;   // [2, texts]
    In<u8> winner;               // [images, texts]
    Out<bf16> dqueries;          // [images·count, width], written
    Out<bf16> dtexts;            // [texts_count, width], written
    Out<u32> workspace;
    float weight; // of the loss, over 2
    u32 full;     // whether both directions are differentiated by these features, not only their own
    u32 vector;
    u32 images_of_part;  // images that a block of texts goes over

    // Gradients of the cross-entropies of an image and of a text by their logit.
    __device__ float2 dlogit(u32 image, u32 text, float logit) const {
        const bool is_positive = batch.is_positive(image, text);
        const float images = static_cast<float>(batch.images), texts = static_cast<float>(batch.texts_count);
        return make_float2(of_line(image_statistics, image, texts, logit, is_positive) * weight / images,
                           of_line(text_statistics, text, images, logit, is_positive) * weight / texts);
    }

    // The one that a side's features get.
    template <Side SIDE> __device__ float of_side(float2 both) const {
        if (full) return both.x + both.y;
        return SIDE == Side::Queries ? both.x : both.y;
    }

    __device__ float of_line(const In<float> &statistics, u32 line, float length, float logit,
                             bool is_positive) const {
        const float log_sum_exp = statistics.row(0)[line], positives = statistics.row(1)[line];
        // A line without a positive counts as 0.
        if (positives == 0.0f) return 0.0f;
        const float of_positive = is_positive ? (1.0f - batch.smoothing) / positives : 0.0f;
        return expf(logit - log_sum_exp) - of_positive - batch.smoothing / length;
    }
};
static_assert(sizeof(ContrastiveBackwardArgs) == 216);
