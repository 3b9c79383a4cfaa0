// Block 0 writes data and raises a flag; the other blocks spin on it and read. In `flag` by a volatile flag and fences, in
// `flag_release` by st.release and ld.acquire.
// BUG 1: the writer does not fence (release); 2: the reader does not fence (acquire); 3: scope of the block; 4: the flag is not
// raised by the thread that wrote, and no barrier is between; 5: the reader does not wait.
#ifndef BUG
#define BUG 0
#endif

__device__ void fence() {
    if (BUG == 3) { __threadfence_block(); } else { __threadfence(); }
}

extern "C" __global__ void flag(float* y, float* data, volatile unsigned* ready, const float* x) {
    int t = threadIdx.x;
    if (blockIdx.x == 0) {
        data[t] = x[t] * 3.0f;
        if (BUG != 1) { fence(); }
        if (BUG != 4) { __syncthreads(); }
        if (t == 0) { *ready = 1; }
    } else {
        if (BUG != 5) { while (*ready == 0) {} }
        if (BUG != 2) { fence(); }
        y[blockIdx.x * blockDim.x + t] = data[(t + 1) % blockDim.x];
    }
}

extern "C" __global__ void flag_release(float* y, float* data, unsigned* ready, const float* x) {
    int t = threadIdx.x;
    if (blockIdx.x == 0) {
        data[t] = x[t] * 3.0f;
        if (BUG != 4) { __syncthreads(); }
        if (t == 0) {
#if BUG == 1
            asm volatile("st.relaxed.gpu.global.u32 [%0], 1;" ::"l"(ready) : "memory");
#elif BUG == 3
            asm volatile("st.release.cta.global.u32 [%0], 1;" ::"l"(ready) : "memory");
#else
            asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(ready) : "memory");
#endif
        }
    } else {
        unsigned seen = BUG == 5;
        while (seen == 0) {
#if BUG == 2
            asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(ready) : "memory");
#else
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(ready) : "memory");
#endif
        }
        y[blockIdx.x * blockDim.x + t] = data[(t + 1) % blockDim.x];
    }
}
