// One warp produces by plain stores and another by cp.async, two consume, through a ring of two stages with mbarriers.
// BUG 1: consumers do not wait; 2: producers do not wait; 3: the initialisation is not followed by a barrier;
// 4: the warp with cp.async arrives at once, not when its copies are complete.
#ifndef BUG
#define BUG 0
#endif

__device__ unsigned at(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ void init(unsigned long long* b, int n) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at(b)), "r"(n) : "memory");
}
__device__ void arrive(unsigned long long* b) {
    asm volatile("{ .reg .b64 s; mbarrier.arrive.shared.b64 s, [%0]; }" ::"r"(at(b)) : "memory");
}
__device__ void wait(unsigned long long* b, unsigned parity) {
    unsigned done = 0;
    while (!done) {
        asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(at(b)), "r"(parity) : "memory");
    }
}

extern "C" __global__ void mbarrier(float* y, const float* x, int rounds) {
    __shared__ __align__(8) unsigned long long full[2], empty[2];
    __shared__ __align__(16) float s[2][64];
    int t = threadIdx.x, lane = t % 32, warp = t / 32;
    if (t == 0) {
        for (int i = 0; i < 2; ++i) {
            init(&full[i], 64);
            init(&empty[i], 64);
        }
    }
    if (BUG != 3) { __syncthreads(); }
    if (warp < 2) {
        for (int i = 0; i < rounds; ++i) {
            int stage = i % 2;
            if (BUG != 2) { wait(&empty[stage], (i / 2 + 1) % 2); }
            if (warp == 0) {
                s[stage][lane] = x[i * 64 + lane];
                arrive(&full[stage]);
            } else {
                asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(at(&s[stage][32 + lane])),
                             "l"(x + i * 64 + 32 + lane) : "memory");
#if BUG == 4
                arrive(&full[stage]);
#else
                asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(at(&full[stage])) : "memory");
#endif
            }
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
    } else {
        float sum = 0.0f;
        for (int i = 0; i < rounds; ++i) {
            int stage = i % 2;
            if (BUG != 1) { wait(&full[stage], i / 2 % 2); }
            sum += s[stage][(t * 7) % 64];
            arrive(&empty[stage]);
        }
        y[t - 64] = sum;
    }
}
