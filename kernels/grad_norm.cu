// Global gradient norm: the sum of squares of a flat buffer, in a fixed order.
//
// squares: a block of 256 threads covers 65,536 neighbouring elements, each thread 256 of them in 16-byte loads; squares are
// added in f32 within a thread (256 terms) and in f64 across threads. finish: one block adds the partial sums. Bytes
// moved: 4 per element.
#include "common.cuh"
#include "reduce.cuh"

static const unsigned SPAN = 65536;

extern "C" __global__ void __launch_bounds__(256)
    squares(double* __restrict__ partials, const float* __restrict__ g, unsigned long long n) {
    __shared__ double scratch[32];
    unsigned long long first = (unsigned long long)blockIdx.x * SPAN, end = first + SPAN < n ? first + SPAN : n;
    float sum = 0.0f;
    for (unsigned long long i = first + threadIdx.x * 4; i < end; i += 4 * 256) {
        if (i + 4 <= end) {
            Pack<float> four = load(g + i);
            for (unsigned j = 0; j < 4; j++) sum = fmaf(four.values[j], four.values[j], sum);
        } else {
            for (unsigned long long j = i; j < end; j++) sum = fmaf(g[j], g[j], sum);
        }
    }
    double total = block_sum((double)sum, scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

// total = sum of count partial sums.
extern "C" __global__ void __launch_bounds__(256)
    finish(double* __restrict__ total, const double* __restrict__ partials, unsigned count) {
    __shared__ double scratch[32];
    double sum = 0.0;
    for (unsigned i = threadIdx.x; i < count; i += 256) sum += partials[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) *total = sum;
}
