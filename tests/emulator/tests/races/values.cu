// Lanes of one instruction that store to one address. BUG 1: different values.
#ifndef BUG
#define BUG 0
#endif

extern "C" __global__ void same_address(unsigned* y) {
    __shared__ unsigned s;
    s = BUG == 1 ? threadIdx.x : 7u;
    __syncthreads();
    y[threadIdx.x] = s;
}

// Neighbouring bytes belong to different threads, which is no race. BUG 1: a byte is read before the barrier.
extern "C" __global__ void neighbours(unsigned char* y) {
    __shared__ unsigned char s[129];
    s[threadIdx.x] = threadIdx.x;
    if (BUG != 1) { __syncthreads(); }
    y[threadIdx.x] = s[threadIdx.x ^ 1];
}
