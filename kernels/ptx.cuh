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

// ---- Shared memory, by its 32-bit addresses

__device__ inline u32 shared_address(const void *pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// st.shared.v4.b32
__device__ inline void st_shared(u32 address, uint4 x) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(address), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
                 : "memory");
}

// st.shared.b32
__device__ inline void st_shared(u32 address, u32 x) {
    asm volatile("st.shared.b32 [%0], %1;" : : "r"(address), "r"(x) : "memory");
}

// cp.async.cg.shared.global: copies 16 bytes past the registers; the last 16 − `bytes` become zeros.
__device__ inline void cp_async(u32 to, const void *from, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(to), "l"(from), "r"(bytes) : "memory");
}

// cp.async.commit_group: closes the group of the copies asked for since the last one.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" : : : "memory"); }

// cp.async.wait_group: until at most PENDING of this thread's groups are not done.
template <int PENDING> __device__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" : : "n"(PENDING) : "memory");
}

// ---- Matrices of 8×8 bf16 and their products

// ldmatrix.x4: four matrices, lane 8·i + r giving the address of row r of matrix i. A lane gets of each the
// elements 2·(lane % 4) and the next of row lane / 4.
__device__ inline void ldmatrix(u32 (&to)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

// ldmatrix.x4.trans: the same of the transposed matrices.
__device__ inline void ldmatrix_transposed(u32 (&to)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

// mma.m16n8k16: c [16, 8] += a [16, 16]·b [16, 8]. With g = lane / 4 and t = 2·(lane % 4), a lane holds
//   a: (g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8), each with the column after it;
//   b: (t, g), (t + 8, g), each with the row after it;
//   c: (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1).
__device__ inline void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
