// Normalisation of targets: affine maps of all elements, and rows to unit norm.
//
// scale_shift: y = (x - shift)*scale, 16 bytes a thread. unit_norm: one warp per row, sums over the warp in a fixed order; a row of up to
// 1024 columns, a multiple of 4, is read once and held in registers. Bytes moved per element: 8; 12 with dy or an addend.
// moments: mean of all elements and the squares of deviations from it, by one block, added in pairs of f32: the batch is small, and two
// passes lose nothing.
#include "common.cuh"
#include "pair.cuh"

static const unsigned HELD = 8; // packs that a lane holds

extern "C" __global__ void __launch_bounds__(256)
    scale_shift(float* __restrict__ y, const float* __restrict__ x, float shift, float scale, unsigned long long n) {
    unsigned long long i = thread_index() * 4;
    if (i + 4 <= n) {
        float values[4];
        read(values, x + i);
#pragma unroll
        for (unsigned j = 0; j < 4; j++) values[j] = (values[j] - shift) * scale;
        write(y + i, values);
    } else {
#pragma unroll 1
        for (; i < n; i++) y[i] = (x[i] - shift) * scale;
    }
}

// y += slope*(x - shift): the gradient of the deviation's penalty.
extern "C" __global__ void __launch_bounds__(256)
    add_deviation(float* __restrict__ y, const float* __restrict__ x, float shift, float slope, unsigned long long n) {
    unsigned long long i = thread_index() * 4;
    if (i + 4 <= n) {
        float sum[4], values[4];
        read(sum, y + i);
        read(values, x + i);
#pragma unroll
        for (unsigned j = 0; j < 4; j++) sum[j] = fmaf(slope, values[j] - shift, sum[j]);
        write(y + i, sum);
    } else {
#pragma unroll 1
        for (; i < n; i++) y[i] = fmaf(slope, x[i] - shift, y[i]);
    }
}

// Reads what a lane holds of a row; zeros behind its end.
__device__ __forceinline__ void hold(float (&held)[HELD][4], const float* row, unsigned d, unsigned lane) {
#pragma unroll
    for (unsigned k = 0; k < HELD; k++) read_floats(held[k], row + (k * 32 + lane) * 4, (k * 32 + lane) * 4 < d);
}

__device__ __forceinline__ float dot(const float (&a)[HELD][4], const float (&b)[HELD][4]) {
    float sum = 0.0f;
#pragma unroll
    for (unsigned k = 0; k < HELD; k++) {
#pragma unroll
        for (unsigned j = 0; j < 4; j++) sum = fmaf(a[k][j], b[k][j], sum);
    }
    return warp_sum(sum);
}

// The reciprocal of a row's norm from its square; the norm is at least 1e-12, and NaN stays NaN.
__device__ __forceinline__ float inverse_norm(float square) {
    float norm = square_root(square);
    return __fdividef(1.0f, norm < 1e-12f ? 1e-12f : norm);
}

__device__ __forceinline__ float row_square(const float* x, unsigned d, unsigned lane) {
    float sum = 0.0f;
    for (unsigned column = lane; column < d; column += 32) sum = fmaf(x[column], x[column], sum);
    return warp_sum(sum);
}

__device__ __forceinline__ bool fits(unsigned d) { return d % 4 == 0 && d <= HELD * 128; }

extern "C" __global__ void __launch_bounds__(256)
    unit_norm_forward(float* __restrict__ y, const float* __restrict__ x, unsigned rows, unsigned d) {
    unsigned row = (unsigned)(thread_index() / 32), lane = threadIdx.x % 32;
    if (row >= rows) return; // whole warps
    x += (unsigned long long)row * d;
    y += (unsigned long long)row * d;
    if (fits(d)) {
        float held[HELD][4];
        hold(held, x, d, lane);
        float inverse = inverse_norm(dot(held, held));
#pragma unroll
        for (unsigned k = 0; k < HELD; k++) {
#pragma unroll
            for (unsigned j = 0; j < 4; j++) held[k][j] *= inverse;
            write_floats(y + (k * 32 + lane) * 4, held[k], (k * 32 + lane) * 4 < d);
        }
        return;
    }
    float inverse = inverse_norm(row_square(x, d, lane));
    for (unsigned column = lane; column < d; column += 32) y[column] = x[column] * inverse;
}

extern "C" __global__ void __launch_bounds__(256) unit_norm_backward(
    float* __restrict__ dx, const float* __restrict__ dy, const float* __restrict__ x, unsigned rows, unsigned d) {
    unsigned row = (unsigned)(thread_index() / 32), lane = threadIdx.x % 32;
    if (row >= rows) return; // whole warps
    x += (unsigned long long)row * d;
    dy += (unsigned long long)row * d;
    dx += (unsigned long long)row * d;
    if (fits(d)) {
        float held[HELD][4], gradient[HELD][4];
        hold(held, x, d, lane);
        hold(gradient, dy, d, lane);
        float inverse = inverse_norm(dot(held, held)), along = dot(gradient, held) * inverse;
#pragma unroll
        for (unsigned k = 0; k < HELD; k++) {
#pragma unroll
            for (unsigned j = 0; j < 4; j++) gradient[k][j] = (gradient[k][j] - held[k][j] * inverse * along) * inverse;
            write_floats(dx + (k * 32 + lane) * 4, gradient[k], (k * 32 + lane) * 4 < d);
        }
        return;
    }
    float inverse = inverse_norm(row_square(x, d, lane)), along = 0.0f;
    for (unsigned column = lane; column < d; column += 32) along = fmaf(dy[column], x[column] * inverse, along);
    along = warp_sum(along);
    for (unsigned column = lane; column < d; column += 32) dx[column] = (dy[column] - x[column] * inverse * along) * inverse;
}

// The sum over a block of 1024 threads of term(x) of all elements, four loads of 16 bytes a thread under way.
template <class Term> __device__ __forceinline__ Pair sum_of(const float* x, unsigned long long n, Pair* scratch, Term term) {
    Pair sum = pair(0.0f, 0.0f);
    unsigned long long whole = n / 4 * 4;
    for (unsigned long long i = threadIdx.x * 4; i < whole; i += 4 * 4096) {
        float values[4][4];
#pragma unroll
        for (unsigned k = 0; k < 4; k++) read_floats(values[k], x + i + k * 4096, i + k * 4096 < whole);
#pragma unroll
        for (unsigned k = 0; k < 4; k++) {
#pragma unroll
            for (unsigned j = 0; j < 4; j++) sum = sum + (i + k * 4096 < whole ? term(values[k][j]) : 0.0f);
        }
    }
    if (whole + threadIdx.x < n) sum = sum + term(x[whole + threadIdx.x]);
    return block_sum(sum, scratch);
}

// out = {mean, sum of squared deviations from it} of n elements, pairs; inverse, inverse_low: 1/n.
extern "C" __global__ void __launch_bounds__(1024)
    moments(float* __restrict__ out, const float* __restrict__ x, float inverse, float inverse_low, unsigned long long n) {
    __shared__ Pair scratch[32];
    Pair mean = sum_of(x, n, scratch, [](float x) { return x; }) * pair(inverse, inverse_low);
    Pair squares = sum_of(x, n, scratch, [=](float x) {
        float deviation = (x - mean.high) - mean.low;
        return deviation * deviation;
    });
    if (threadIdx.x == 0) {
        ((Pair*)out)[0] = mean;
        ((Pair*)out)[1] = squares;
    }
}
