// Warps 0 and 1 produce, warps 2 and 3 consume, through two named barriers ("full" is 1, "empty" is 2).
// BUG 1: the consumers do not wait for "full"; 2: the producers do not wait for "empty".
#ifndef BUG
#define BUG 0
#endif

__device__ void sync(int id) { asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory"); }
__device__ void arrive(int id) { asm volatile("bar.arrive %0, 128;" ::"r"(id) : "memory"); }

extern "C" __global__ void named(float* y, const float* x, int rounds) {
    __shared__ float s[64];
    int t = threadIdx.x;
    if (t < 64) {
        for (int i = 0; i < rounds; ++i) {
            if (BUG == 2) { arrive(2); } else { sync(2); }
            s[t] = x[i * 64 + t];
            arrive(1);
        }
    } else {
        float sum = 0.0f;
        arrive(2);
        for (int i = 0; i < rounds; ++i) {
            if (BUG == 1) { arrive(1); } else { sync(1); }
            sum += s[(t * 7) % 64];
            if (i + 1 < rounds) { arrive(2); }
        }
        y[t - 64] = sum;
    }
}
