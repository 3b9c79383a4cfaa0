// counts[b] += the number of bytes of x: (n) with value b. Each block of 256 threads counts in shared memory first.
extern "C" __global__ void __launch_bounds__(256) histogram(unsigned* counts, const unsigned char* x, int n) {
    __shared__ unsigned bins[256];
    bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) { atomicAdd(&bins[x[i]], 1u); }
    __syncthreads();
    if (bins[threadIdx.x] != 0) { atomicAdd(&counts[threadIdx.x], bins[threadIdx.x]); }
}
