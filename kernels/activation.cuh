// Activations and their derivatives, for epilogues of products and for kernels of their own.
#pragma once
#include "common.cuh"

// Twin of `Activation::number` in src/ops/activation/mod.rs.
enum class Activation : u32 { Identity = 0, Gelu = 1, GeluTanh = 2, QuickGelu = 3, Relu = 4 };

constexpr float LOG2_E = 1.4426950408889634f;

// 1/(1 + e⁻ˣ)
__device__ inline float sigmoid(float x) { return rcp(1.0f + ex2(-LOG2_E * x)); }

// exp(−x²/2)
__device__ inline float bell(float x) { return ex2(-0.5f * LOG2_E * x * x); }

// Φ(x), the normal distribution function, from bell = exp(−x²/2).
//
// Φ(−|x|) = exp(−x²/2)·g(|x|), where g falls slowly from ½. With t = 1/(1 + 0.3·|x|), g/t is a polynomial of degree 6
// (Chebyshev's on [0, 1]) to a relative 2e-5, a hundredth of what bf16 rounds; so far out in the tail, too. No branch,
// no division.
__device__ inline float normal_cdf(float x, float bell) {
    const float t = rcp(fmaf(0.3f, fabsf(x), 1.0f));
    float g = -0.0282115624f;
    g = fmaf(g, t, 0.0201451435f);
    g = fmaf(g, t, 0.0834791092f);
    g = fmaf(g, t, 0.0737517567f);
    g = fmaf(g, t, 0.111650664f);
    g = fmaf(g, t, 0.119496377f);
    g = fmaf(g, t, 0.119684615f);
    const float tail = bell * (g * t);
    return x > 0.0f ? 1.0f - tail : tail;
}

// √(2/π) and the cubic coefficient of GELU's tanh form.
constexpr float TANH_SCALE = 0.7978845608f;
constexpr float TANH_CUBIC = 0.044715f;
// Slope of quick GELU's sigmoid.
constexpr float QUICK_SLOPE = 1.702f;

// ½(1 + tanh u) = sigmoid(2u) with u = √(2/π)·(x + 0.044715·x³)
__device__ inline float tanh_gate(float x) { return sigmoid(2.0f * TANH_SCALE * x * fmaf(TANH_CUBIC * x, x, 1.0f)); }

// f(x)
__device__ inline float activate(Activation f, float x) {
    switch (f) {
    case Activation::Identity: return x;
    case Activation::Gelu: return x * normal_cdf(x, bell(x));
    case Activation::GeluTanh: return x * tanh_gate(x);
    case Activation::QuickGelu: return x * sigmoid(QUICK_SLOPE * x);
    case Activation::Relu: return x < 0.0f ? 0.0f : x;
    }
    return x;
}

// f'(x)
__device__ inline float activate_derivative(Activation f, float x) {
    switch (f) {
    case Activation::Identity: return 1.0f;
    case Activation::Gelu: {
        const float b = bell(x);
        return fmaf(0.3989422804f * x, b, normal_cdf(x, b));
    }
    case Activation::GeluTanh: {
        const float s = tanh_gate(x);
        const float slope = 2.0f * TANH_SCALE * fmaf(3.0f * TANH_CUBIC * x, x, 1.0f);
        return fmaf(x * slope, s * (1.0f - s), s);
    }
    case Activation::QuickGelu: {
        const float s = sigmoid(QUICK_SLOPE * x);
        return fmaf(QUICK_SLOPE * x, s * (1.0f - s), s);
    }
    case Activation::Relu: return x > 0.0f ? 1.0f : 0.0f;
    }
    return 1.0f;
}

template <Activation F, int N> __device__ void activate_each(float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = activate(F, x[i]);
}

// f of several elements; which f is asked once.
template <int N> __device__ void activate(Activation f, float (&x)[N]) {
    switch (f) {
    case Activation::Identity: return;
    case Activation::Gelu: return activate_each<Activation::Gelu>(x);
    case Activation::GeluTanh: return activate_each<Activation::GeluTanh>(x);
    case Activation::QuickGelu: return activate_each<Activation::QuickGelu>(x);
    case Activation::Relu: return activate_each<Activation::Relu>(x);
    }
}

template <Activation F, int N> __device__ void differentiate_each(float (&dy)[N], const float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) dy[i] *= activate_derivative(F, x[i]);
}

// dy·f'(x) in the place of dy.
template <int N> __device__ void differentiate(Activation f, float (&dy)[N], const float (&x)[N]) {
    switch (f) {
    case Activation::Identity: return;
    case Activation::Gelu: return differentiate_each<Activation::Gelu>(dy, x);
    case Activation::GeluTanh: return differentiate_each<Activation::GeluTanh>(dy, x);
    case Activation::QuickGelu: return differentiate_each<Activation::QuickGelu>(dy, x);
    case Activation::Relu: return differentiate_each<Activation::Relu>(dy, x);
    }
}
