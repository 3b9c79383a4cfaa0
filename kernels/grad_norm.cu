// Global gradient norm: the sum of squares of a flat buffer, in a fixed order.
//
// squares: a block of 256 threads covers 65,536 neighbouring elements, each thread 256 of them in 16-byte loads, eight under way at
// a time; squares are added in f32 within a thread (four sums of 64 terms) and in pairs of f32 across threads, so that no error grows
// with n. finish: one block adds the partial sums. Bytes moved: 4 per element.
#include "common.cuh"
#include "pair.cuh"

static const unsigned SPAN = 65536, UNDER_WAY = 8;

extern "C" __global__ void __launch_bounds__(256)
    squares(float* __restrict__ partials, const float* __restrict__ g, unsigned long long n) {
    __shared__ Pair scratch[32];
    unsigned long long first = (unsigned long long)blockIdx.x * SPAN;
    g += first;
    unsigned count = n - first < SPAN ? (unsigned)(n - first) : SPAN, whole = count / 4 * 4;
    float sums[4] = {};
    for (unsigned base = threadIdx.x * 4; base < whole; base += 4 * 256 * UNDER_WAY) {
        float x[UNDER_WAY][4];
#pragma unroll
        for (unsigned k = 0; k < UNDER_WAY; k++) read_floats(x[k], g + base + k * 4 * 256, base + k * 4 * 256 < whole);
#pragma unroll
        for (unsigned k = 0; k < UNDER_WAY; k++) {
#pragma unroll
            for (unsigned j = 0; j < 4; j++) sums[j] = fmaf(x[k][j], x[k][j], sums[j]);
        }
    }
    if (whole + threadIdx.x < count) sums[0] = fmaf(g[whole + threadIdx.x], g[whole + threadIdx.x], sums[0]);
    Pair total = block_sum(pair((sums[0] + sums[1]) + (sums[2] + sums[3]), 0.0f), scratch);
    if (threadIdx.x == 0) ((Pair*)partials)[blockIdx.x] = total;
}

// total = sum of count partial sums; pairs.
extern "C" __global__ void __launch_bounds__(256)
    finish(float* __restrict__ total, const float* __restrict__ partials, unsigned count) {
    __shared__ Pair scratch[32];
    Pair sum = sum_of_pairs((const Pair*)partials, count, scratch);
    if (threadIdx.x == 0) *(Pair*)total = sum;
}
