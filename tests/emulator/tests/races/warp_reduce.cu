// Each warp sums 32 values in shared memory. BUG 1: no __syncwarp in the loop; 2: for the lower half of the lanes only;
// 3: none between the last addition and the read by all lanes.
#ifndef BUG
#define BUG 0
#endif

extern "C" __global__ void warp_reduce(float* y, const float* x) {
    __shared__ float s[128];
    int t = threadIdx.x, lane = t % 32;
    s[t] = x[blockIdx.x * blockDim.x + t];
    __syncwarp();
    for (int half = 16; half > 0; half /= 2) {
        float other = lane < half ? s[t + half] : 0.0f;
        if (BUG != 1 && BUG != 2) { __syncwarp(); }
        if (lane < half) { s[t] += other; }
        if (BUG == 2) {
            if (lane < 16) { __syncwarp(0xffff); }
        } else if (BUG == 0) {
            __syncwarp();
        } else if (BUG == 3 && half > 1) {
            __syncwarp();
        }
    }
    y[blockIdx.x * blockDim.x + t] = s[t - lane];
}
