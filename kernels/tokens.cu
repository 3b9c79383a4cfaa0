// Tokens of two kinds in one sequence: joined, taken out, and the gradient of tokens that all samples share.
//
// join_tokens: sample n of y is [a's tokens | b's tokens]; either may be the same for all samples (its stride is 0), or absent, which
// makes zeros. take_tokens: y[n] = tokens first .. first + count of x[n]. A lane covers 16 bytes of a row of y, or one element where a
// row is no multiple of that. Bytes moved per element: one read, one written.
// sum_tokens: dtable[j] += sum over samples n of dy[n][first + j]. One block for each row of the table and 32 packs of columns; its
// eight warps take every eighth sample, in order, then the eight sums are added in order: no atomics, the same bits always. Bytes
// moved: those tokens of dy once.
// A table may start anywhere in a flat buffer.
#include "common.cuh"
#include "table_sums.cuh"

__device__ __forceinline__ void copy_pack(floatX* y, const floatX* x, bool vector, bool wide) {
    if (!vector) {
        *y = *x;
        return;
    }
    float values[EACH];
    read_any(values, x, wide);
    write(y, values);
}

// a, b: rows of sample n begin at n*a_step, n*b_step; null for zeros. y: (samples*(a_tokens + b_tokens), c).
extern "C" __global__ void __launch_bounds__(256) join_tokens(
    floatX* __restrict__ y, const floatX* __restrict__ a, const floatX* __restrict__ b, unsigned samples, unsigned a_tokens,
    unsigned b_tokens, unsigned a_step, unsigned b_step, unsigned c) {
    bool vector = c % EACH == 0;
    unsigned tokens = a_tokens + b_tokens;
    Place at = place(c, vector ? EACH : 1);
    if (at.row >= samples * tokens || at.column >= c) return;
    unsigned sample = at.row / tokens, token = at.row % tokens;
    bool first = token < a_tokens;
    const floatX* from = first ? a : b;
    y += (unsigned long long)at.row * c + at.column;
    if (!from) {
        if (vector) {
            float zeros[EACH] = {};
            write(y, zeros);
        } else {
            *y = from_float<floatX>(0.0f);
        }
        return;
    }
    unsigned long long row = (unsigned long long)sample * (first ? a_step : b_step) + (first ? token : token - a_tokens);
    copy_pack(y, from + row * c + at.column, vector, aligned(from));
}

// x: (samples*tokens, c), y: (samples*count, c).
extern "C" __global__ void __launch_bounds__(256) take_tokens(
    floatX* __restrict__ y, const floatX* __restrict__ x, unsigned samples, unsigned tokens, unsigned first, unsigned count,
    unsigned c) {
    bool vector = c % EACH == 0;
    Place at = place(c, vector ? EACH : 1);
    if (at.row >= samples * count || at.column >= c) return;
    unsigned long long row = (unsigned long long)(at.row / count) * tokens + first + at.row % count;
    copy_pack(y + (unsigned long long)at.row * c + at.column, x + row * c + at.column, vector, true);
}

extern "C" __global__ void __launch_bounds__(256) sum_tokens(
    float* __restrict__ dtable, const floatX* __restrict__ dy, unsigned samples, unsigned tokens, unsigned first, unsigned c) {
    unsigned strips = (c + 32 * EACH - 1) / (32 * EACH), own = blockIdx.x / strips, strip = blockIdx.x % strips * 32 * EACH;
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = strip + lane * EACH;
    float sum[EACH] = {};
    for (unsigned n = warp; n < samples; n += WARPS) {
        add_row(sum, dy + ((unsigned long long)n * tokens + first + own) * c, column, c);
    }
    add_warp_sums(dtable + (unsigned long long)own * c, sum, strip, c);
}
