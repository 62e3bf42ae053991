// adamw: the optimiser's step over all parameters, each with its gradient, moments and rounded copy.
//
// Grid-stride over quads of parameters; what is left of a quad is done by the first threads, one element each.
// Bytes moved, a parameter: gradient 4, parameter 8, moments 16, weight 2.
// The step's learning rate and bias corrections and the gradient's norm come from memory, so that a recorded
// launch serves every step.
#include "common.cuh"

struct AdamWArgs {
    In<float> schedule;        // [1, 3]: η, 1 − β1ᵗ, 1 − β2ᵗ
    In<float> norm;            // [1, 1]
    In<float> gradient;        // [1, size]; this and all below at multiples of 16 bytes
    Out<float> parameters;     // [1, size]
    Out<float> first_moment;   // [1, size]
    Out<float> second_moment;  // [1, size]
    Out<bf16> weights;         // [1, size]; null if absent
    u32 size;
    u32 decayed;                // the first so many decay
    float beta1, beta2;
    float rest1, rest2;         // 1 − β1 and 1 − β2
    float epsilon;
    float weight_decay;
    float max_norm;             // infinite without clipping
    float clip_epsilon;
};
static_assert(sizeof(AdamWArgs) == 152);

constexpr u32 THREADS = 256;

// What is the same for all parameters of a step.
struct Step {
    float clip;          // the gradient's factor
    float decay;         // the factor of a parameter that decays
    float size;          // η / (1 − β1ᵗ)
    float inverse_root;  // 1 / √(1 − β2ᵗ)
};

__device__ Step step_of(const AdamWArgs &a, float norm) {
    const float rate = a.schedule.data[0], correction1 = a.schedule.data[1], correction2 = a.schedule.data[2];
    return {fminf(1.0f, a.max_norm / (norm + a.clip_epsilon)), 1.0f - rate * a.weight_decay, rate / correction1,
            1.0f / sqrtf(correction2)};
}

// The parameters index .. index + N.
template <int N> __device__ void update(const AdamWArgs &a, const Step &step, u32 index) {
    float g[N], p[N], m[N], v[N];
    load(g, a.gradient.data + index);
    load(p, a.parameters.data + index);
    load(m, a.first_moment.data + index);
    load(v, a.second_moment.data + index);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        g[i] *= step.clip;
        m[i] = a.beta1 * m[i] + a.rest1 * g[i];
        v[i] = a.beta2 * v[i] + a.rest2 * g[i] * g[i];
        if (index + i < a.decayed) p[i] *= step.decay;
        p[i] -= step.size * (m[i] / (sqrtf(v[i]) * step.inverse_root + a.epsilon));
    }
    store(a.parameters.data + index, p);
    store(a.first_moment.data + index, m);
    store(a.second_moment.data + index, v);
    if (a.weights.present()) store(a.weights.data + index, p);
}

extern "C" __global__ void __launch_bounds__(THREADS) adamw_step(const __grid_constant__ AdamWArgs a) {
    const float norm = *a.norm.data;
    // Written so that NaN leaves too.
    if (!(norm < __int_as_float(0x7f800000))) return;
    const Step step = step_of(a, norm);
    const u32 thread = blockIdx.x * THREADS + threadIdx.x, threads = gridDim.x * THREADS;
    for (u32 quad = thread; quad < a.size / QUAD; quad += threads) update<QUAD>(a, step, quad * QUAD);
    if (thread < a.size % QUAD) update<1>(a, step, a.size / QUAD * QUAD + thread);
}
