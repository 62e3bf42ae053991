// The fixture of tests/first.rs: kernels with one struct parameter, as the crate's own kernels have.
struct ScaleArgs {
    const float *x;
    float *out;
    unsigned count;
    float factor[3];
};

// out[i] = x[i] * factor[i % 3]: the parameter is indexed by a register, so its address is taken.
extern "C" __global__ void scale(const __grid_constant__ ScaleArgs a)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.count) a.out[i] = a.x[i] * a.factor[i % 3];
}

struct BlockSumArgs {
    const float *x;
    float *out;
    unsigned count;
};

// out[block] = sum of the block's 256 elements.
extern "C" __global__ void __launch_bounds__(256) block_sum(const __grid_constant__ BlockSumArgs a)
{
    __shared__ float part[8];
    unsigned i = blockIdx.x * 256 + threadIdx.x;
    float sum = i < a.count ? a.x[i] : 0.f;
    for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        sum = 0.f;
        for (int w = 0; w < 8; ++w) sum += part[w];
        a.out[blockIdx.x] = sum;
    }
}
