// The only inline PTX: one instruction a wrapper, named as in NVIDIA's "Parallel Thread Execution ISA".
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

// The upper half of a float.
struct bf16 {
    u16 bits;
};

__device__ inline float to_float(bf16 x) { return __uint_as_float(static_cast<u32>(x.bits) << 16); }

// Two bf16 in one register, the first in the lower half.
__device__ inline void unpack(float &low, float &high, u32 pair) {
    low = __uint_as_float(pair << 16);
    high = __uint_as_float(pair & 0xffff0000u);
}

// cvt.rn.bf16x2.f32: both to the nearest, ties to even.
__device__ inline u32 pack(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ inline bf16 to_bf16(float x) { return {static_cast<u16>(pack(x, 0.0f))}; }

// ex2.approx.ftz.f32: 2ˣ with a relative error below 2⁻²²; 0 where that is subnormal.
__device__ inline float ex2(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// rcp.approx.ftz.f32: 1/x with an error of one unit in the last place at most.
__device__ inline float rcp(float x) {
    float reciprocal;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(x));
    return reciprocal;
}
