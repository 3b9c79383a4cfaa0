// Shuffles, shared memory, barriers, atomics: the last block finishes.
__device__ unsigned done = 0;

extern "C" __global__ void reduce(const float* x, float* out, unsigned n) {
    __shared__ float partial[32];
    __shared__ bool last;
    float v = 0;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) { v += x[i]; }
#pragma unroll 1
    for (int o = 16; o > 0; o >>= 1) { v += __shfl_xor_sync(~0u, v, o); }
    if (threadIdx.x % 32 == 0) { partial[threadIdx.x / 32] = v; }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (unsigned w = 1; w < blockDim.x / 32; ++w) { v += partial[w]; }
        atomicAdd(out, v);
        __threadfence();
        last = atomicInc(&done, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) { out[1] = sqrtf(((volatile float*)out)[0]) / 3.0f; }
}
