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

// cvta.to.shared: an address in the space of shared memory, as the instructions below take it.
__device__ inline u32 shared_address(const void *pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// cp.async.cg: 16 bytes from global to shared memory, not through registers; those beyond `bytes` become zeros.
__device__ inline void cp_async(u32 shared, const void *global, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}

__device__ inline void cp_async_commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most N of this thread's groups are under way.
template <int N> __device__ void cp_async_wait_group() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ldmatrix: four 8×8 matrices of bf16, whose rows of 16 bytes are where lanes 0..8, 8..16, 16..24 and 24..32 say. Of
// matrix i, lane l gets the elements [l/4][2·(l%4)] and [l/4][2·(l%4) + 1] in to[i].
__device__ inline void ldmatrix(u32 (&to)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
}

// The same with each matrix transposed: lane l gets [2·(l%4)][l/4] and [2·(l%4) + 1][l/4].
__device__ inline void ldmatrix_trans(u32 (&to)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
}

// mma.sync: d [16, 8] += a [16, 16] · b [16, 8]. Lane l has, with g = l/4 and t = 2·(l%4): of d the elements [g][t],
// [g][t + 1], [g + 8][t], [g + 8][t + 1]; of a, in pairs along k, [g][t], [g + 8][t], [g][t + 8], [g + 8][t + 8]; of b,
// in pairs along k, [t][g] and [t + 8][g].
__device__ inline void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
