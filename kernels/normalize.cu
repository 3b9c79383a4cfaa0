// Normalisation of targets: affine maps of all elements, and rows to unit norm.
//
// scale_shift: y = (x - shift)*scale, one thread per element. unit_norm: one warp per row, sums over the warp in a fixed order.
// moments: mean and unbiased variance of all elements in f64, by one block: the batch is small, and two passes are exact.
#include "common.cuh"
#include "reduce.cuh"

extern "C" __global__ void __launch_bounds__(256)
    scale_shift(float* __restrict__ y, const float* __restrict__ x, float shift, float scale, unsigned long long n) {
    unsigned long long i = thread_index();
    if (i < n) y[i] = (x[i] - shift) * scale;
}

// y += slope*(x - shift): the gradient of the deviation's penalty.
extern "C" __global__ void __launch_bounds__(256)
    add_deviation(float* __restrict__ y, const float* __restrict__ x, float shift, float slope, unsigned long long n) {
    unsigned long long i = thread_index();
    if (i < n) y[i] = fmaf(slope, x[i] - shift, y[i]);
}

// The norm of a row, at least 1e-12; NaN stays NaN.
__device__ __forceinline__ float row_norm(const float* x, unsigned d, unsigned lane) {
    float sum = 0.0f;
    for (unsigned column = lane; column < d; column += 32) sum = fmaf(x[column], x[column], sum);
    float norm = sqrtf(warp_sum(sum));
    return norm < 1e-12f ? 1e-12f : norm;
}

extern "C" __global__ void __launch_bounds__(256)
    unit_norm_forward(float* __restrict__ y, const float* __restrict__ x, unsigned rows, unsigned d) {
    unsigned row = (unsigned)(thread_index() / 32), lane = threadIdx.x % 32;
    if (row >= rows) return; // whole warps
    x += (unsigned long long)row * d;
    y += (unsigned long long)row * d;
    float inverse = 1.0f / row_norm(x, d, lane);
    for (unsigned column = lane; column < d; column += 32) y[column] = x[column] * inverse;
}

extern "C" __global__ void __launch_bounds__(256) unit_norm_backward(
    float* __restrict__ dx, const float* __restrict__ dy, const float* __restrict__ x, unsigned rows, unsigned d) {
    unsigned row = (unsigned)(thread_index() / 32), lane = threadIdx.x % 32;
    if (row >= rows) return; // whole warps
    x += (unsigned long long)row * d;
    dy += (unsigned long long)row * d;
    dx += (unsigned long long)row * d;
    float inverse = 1.0f / row_norm(x, d, lane), along = 0.0f;
    for (unsigned column = lane; column < d; column += 32) along = fmaf(dy[column], x[column] * inverse, along);
    along = warp_sum(along);
    for (unsigned column = lane; column < d; column += 32) dx[column] = (dy[column] - x[column] * inverse * along) * inverse;
}

// out = {mean, unbiased variance} of n elements.
extern "C" __global__ void __launch_bounds__(1024)
    moments(double* __restrict__ out, const float* __restrict__ x, unsigned long long n) {
    __shared__ double scratch[32];
    double sum = 0.0;
    for (unsigned long long i = threadIdx.x; i < n; i += 1024) sum += (double)x[i];
    double mean = block_sum(sum, scratch) / (double)n;
    double squares = 0.0;
    for (unsigned long long i = threadIdx.x; i < n; i += 1024) squares += ((double)x[i] - mean) * ((double)x[i] - mean);
    squares = block_sum(squares, scratch);
    if (threadIdx.x == 0) {
        out[0] = mean;
        out[1] = squares / (double)(n - 1);
    }
}
