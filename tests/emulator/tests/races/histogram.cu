// A histogram of bytes in shared memory, then added to the one in global memory.
// BUG 1: no barrier after the bins are cleared; 2: none before they are read; 3: no atomics.
#ifndef BUG
#define BUG 0
#endif

extern "C" __global__ void histogram(unsigned* bins, const unsigned char* x, int n) {
    __shared__ unsigned s[256];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) { s[i] = 0; }
    if (BUG != 1) { __syncthreads(); }
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        if (BUG == 3) { s[x[i]]++; } else { atomicAdd(&s[x[i]], 1); }
    }
    if (BUG != 2) { __syncthreads(); }
    for (int i = threadIdx.x; i < 256; i += blockDim.x) { atomicAdd(&bins[i], s[i]); }
}
