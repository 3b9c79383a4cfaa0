// y = softmax of each row of x: (rows, C). One warp for each row, four rows a block; the maximum goes round through
// shuffles, the sum through shared memory within the warp.
extern "C" __global__ void __launch_bounds__(128) softmax(float* y, const float* x, int rows, int C) {
    __shared__ float sums[4][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = blockIdx.x * 4 + warp;
    if (row >= rows) { return; }
    float top = -1e38f;
    for (int i = lane; i < C; i += 32) { top = fmaxf(top, x[row * C + i]); }
    for (int step = 16; step > 0; step /= 2) { top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step)); }
    float sum = 0;
    for (int i = lane; i < C; i += 32) { sum += __expf(x[row * C + i] - top); }
    sums[warp][lane] = sum;
    __syncwarp();
    for (int step = 16; step > 0; step /= 2) {
        if (lane < step) { sums[warp][lane] += sums[warp][lane + step]; }
        __syncwarp();
    }
    sum = sums[warp][0];
    for (int i = lane; i < C; i += 32) { y[row * C + i] = __fdividef(__expf(x[row * C + i] - top), sum); }
}
