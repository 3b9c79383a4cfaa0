// Sums by block, and the block that is last adds the sums (the idiom of the CUDA guide's threadFenceReduction).
// BUG 1: no fence; 2: a fence of the block only; 3: thread 0 does not wait for the others before it counts;
// 4: the counter is no atomic; 5: every block adds.
#ifndef BUG
#define BUG 0
#endif

extern "C" __global__ void last_block(float* y, float* sums, unsigned* count, const float* x) {
    __shared__ bool last;
    int t = threadIdx.x, b = blockIdx.x, n = blockDim.x;
    sums[b * n + t] = x[b * n + t] * 2.0f;
#if BUG == 2
    __threadfence_block();
#elif BUG != 1
    __threadfence();
#endif
    if (BUG != 3) { __syncthreads(); }
    if (t == 0) {
        unsigned before = BUG == 4 ? (*count)++ : atomicAdd(count, 1);
        last = BUG == 5 || before == gridDim.x - 1;
    }
    __syncthreads();
    if (last) {
        float sum = 0.0f;
        for (int i = 0; i < gridDim.x; ++i) { sum += sums[i * n + t]; }
        y[t] = sum;
    }
}

// As last_block, with the fence in thread 0 alone, after the barrier; the last block resets the counter.
// BUG 1: no fence; 2: the others touch the counter after they have counted.
extern "C" __global__ void last_block_once(float* y, float* sums, unsigned* count, const float* x) {
    __shared__ bool last;
    int t = threadIdx.x, b = blockIdx.x, n = blockDim.x;
    sums[b * n + t] = x[b * n + t] * 2.0f;
    __syncthreads();
    if (t == 0) {
        if (BUG != 1) { __threadfence(); }
        last = atomicInc(count, gridDim.x) == gridDim.x - 1;
        if (BUG != 1) { __threadfence(); }
    }
    __syncthreads();
    if (last) {
        float sum = 0.0f;
        for (int i = 0; i < gridDim.x; ++i) { sum += sums[i * n + t]; }
        y[t] = sum;
        if (t == 1) { *count = 0; }
    }
    if (BUG == 2 && t == 0 && !last) { *count = gridDim.x; }
}
