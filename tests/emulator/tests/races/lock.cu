// Each block adds to a sum under a lock. BUG 1: the unlock is not fenced; 2: the lock is not fenced; 3: no lock;
// 4: fences of the block only.
#ifndef BUG
#define BUG 0
#endif

__device__ void fence() {
    if (BUG == 4) { __threadfence_block(); } else { __threadfence(); }
}

extern "C" __global__ void lock(float* sum, unsigned* lock) {
    if (threadIdx.x == 0) {
        if (BUG != 3) { while (atomicCAS(lock, 0, 1) != 0) {} }
        if (BUG != 2) { fence(); }
        *sum += (float)(blockIdx.x + 1);
        if (BUG != 1) { fence(); }
        if (BUG != 3) { atomicExch(lock, 0); }
    }
}

// The same among the threads of a block, in shared memory.
extern "C" __global__ void lock_shared(float* y) {
    __shared__ float sum;
    __shared__ unsigned held;
    if (threadIdx.x == 0) { sum = 0.0f; held = 0; }
    __syncthreads();
    bool done = false;
    while (!done) {
        if (BUG == 3 || atomicCAS(&held, 0, 1) == 0) {
            if (BUG != 2) { __threadfence_block(); }
            sum += (float)threadIdx.x;
            if (BUG != 1) { __threadfence_block(); }
            if (BUG != 3) { atomicExch(&held, 0); }
            done = true;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) { y[blockIdx.x] = sum; }
}
