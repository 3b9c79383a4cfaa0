// total = the sum of x: (n). Each block of 256 threads adds up its part; the last one to finish adds the parts in the
// order of the blocks, so that the bits do not depend on the schedule. `done` is zero before, and again after.
extern "C" __global__ void __launch_bounds__(256) reduce(float* total, float* parts, unsigned* done, const float* x, int n) {
    __shared__ float sums[256];
    __shared__ bool last;
    const int thread = threadIdx.x;
    float sum = 0;
    for (int i = blockIdx.x * 256 + thread; i < n; i += gridDim.x * 256) { sum += x[i]; }
    sums[thread] = sum;
    __syncthreads();
    for (int step = 128; step > 0; step /= 2) {
        if (thread < step) { sums[thread] += sums[thread + step]; }
        __syncthreads();
    }
    if (thread == 0) {
        parts[blockIdx.x] = sums[0];
        __threadfence();
        last = atomicAdd(done, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && thread == 0) {
        __threadfence();
        float all = 0;
        for (int block = 0; block < gridDim.x; block++) { all += ((volatile float*)parts)[block]; }
        *total = all;
        atomicExch(done, 0u); // a plain store is not ordered after the other blocks' arrivals themselves
    }
}
