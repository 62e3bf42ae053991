// A kernel whose cubins the driver must read: registers, shared memory, launch bounds, parameters.
struct ScaleArgs {
    const float *x;
    float *out;
    unsigned count;
    float factor[3];
#ifdef LONGER
    unsigned long long more;
#endif
};

// out[i] = x[i] * factor[i % 3], in blocks of at most 192 threads.
extern "C" __global__ void __launch_bounds__(192) scale(const __grid_constant__ ScaleArgs a)
{
    __shared__ float turn[192];
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    turn[blockDim.x - 1 - threadIdx.x] = i < a.count ? a.x[i] * a.factor[i % 3] : 0.f;
    __syncthreads();
    if (i < a.count) a.out[i] = turn[blockDim.x - 1 - threadIdx.x];
}
