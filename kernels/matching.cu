// matching: binary cross-entropy of pairs' logits. A pair's logit is the difference of its two class logits, or
// scale·similarity + bias.
//
// One block for all pairs: there are thousands, and the sums over them are then of a fixed order. Bytes moved: the
// logits once, and in the backward pass their gradients once. The forward pass saves the number of pairs that count.
#include "common.cuh"

// Label of a pair that is left out.
constexpr u32 LEFT_OUT = 0xffffffffu;

// Twin of `PairsArgs` in src/ops/matching/cuda.rs.
struct Pairs {
    In<bf16> logits;      // [pairs, 2]: no match, match; absent if the similarity is there
    In<bf16> similarity;  // [pairs, 1]
    In<float> scale;      // [1, 1]
    In<float> bias;       // [1, 1]
    In<u32> labels;       // [1, pairs]
    u32 count, unused;

    // How much more a match is said than no match.
    __device__ float logit(u32 pair) const {
        if (logits.present()) return to_float(logits.row(pair)[1]) - to_float(logits.row(pair)[0]);
        return scale.data[0] * to_float(*similarity.row(pair)) + bias.data[0];
    }
};
static_assert(sizeof(Pairs) == 88);

struct MatchingForwardArgs {
    Pairs pairs;
    Out<float> loss;   // [1, 1]
    Out<u32> correct;  // [1, 2]: pairs that are told right, and pairs that count
};
static_assert(sizeof(MatchingForwardArgs) == 120);

struct MatchingBackwardArgs {
    Pairs pairs;
    In<u32> correct;        // [1, 2]
    Out<bf16> dlogits;      // [pairs, 2], written; absent if the similarity's is there
    Out<bf16> dsimilarity;  // [pairs, 1], written
    Out<float> dscale;      // [1, 1], added to
    Out<float> dbias;       // [1, 1], added to
    float weight;           // of the loss
    u32 unused;
};
static_assert(sizeof(MatchingBackwardArgs) == 176);

constexpr u32 THREADS = 1024;
constexpr u32 WARPS = THREADS / WARP;

extern "C" __global__ void __launch_bounds__(THREADS) matching_forward(const __grid_constant__ MatchingForwardArgs a) {
    __shared__ float sums[3][WARPS];
    // Counts below 2²⁴ are exact.
    float loss = 0.0f, right = 0.0f, counted = 0.0f;
    for (u32 pair = threadIdx.x; pair < a.pairs.count; pair += THREADS) {
        const u32 label = a.pairs.labels.data[pair];
        if (label == LEFT_OUT) continue;
        const float logit = a.pairs.logit(pair);
        const bool matches = label == 1;
        // ln(1 + eˣ) of the logit for the other answer, without overflow; no fmaxf, for a NaN must not be
        // passed over.
        const float x = matches ? -logit : logit;
        loss += (x < 0.0f ? 0.0f : x) + logf(1.0f + expf(-fabsf(x)));
        right += (logit > 0.0f) == matches ? 1.0f : 0.0f;
        counted += 1.0f;
    }
    loss = block_sum(loss, sums[0]);
    right = block_sum(right, sums[1]);
    counted = block_sum(counted, sums[2]);
    if (threadIdx.x == 0) {
        *a.loss.data = loss / fmaxf(counted, 1.0f);
        a.correct.data[0] = static_cast<u32>(right);
        a.correct.data[1] = static_cast<u32>(counted);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    matching_backward(const __grid_constant__ MatchingBackwardArgs a) {
    __shared__ float dscales[WARPS], dbiases[WARPS];
    const float weight = a.weight / static_cast<float>(max(a.correct.data[1], 1u));
    float dscale = 0.0f, dbias = 0.0f;
    for (u32 pair = threadIdx.x; pair < a.pairs.count; pair += THREADS) {
        const u32 label = a.pairs.labels.data[pair];
        float dlogit = 0.0f;
        if (label != LEFT_OUT)
            dlogit = (1.0f / (1.0f + expf(-a.pairs.logit(pair))) - static_cast<float>(label)) * weight;
        if (a.dlogits.present()) {
            a.dlogits.row(pair)[0] = to_bf16(-dlogit);
            a.dlogits.row(pair)[1] = to_bf16(dlogit);
        } else {
            *a.dsimilarity.row(pair) = to_bf16(dlogit * a.pairs.scale.data[0]);
            if (label != LEFT_OUT) dscale += dlogit * to_float(*a.pairs.similarity.row(pair));
            dbias += dlogit;
        }
    }
    if (a.dlogits.present()) return;
    dscale = block_sum(dscale, dscales);
    dbias = block_sum(dbias, dbiases);
    if (threadIdx.x == 0) {
        *a.dscale.data += dscale;
        *a.dbias.data += dbias;
    }
}
