// The sliced Wasserstein-2 distance of n rows from m*n targets: directions, targets, sorting, and what is left between equal ranks.
//
// slice_directions: theta_p = normals/|normals|, drawn anew in every step; one warp a direction. draw_rows: rows of a table at random, with
// replacement; one lane a column.
// Sorting is bitonic (Batcher 1968), of 64-bit keys: a float as an unsigned number of the same order, then its column, so that equal
// values keep their order and all keys differ. A row is padded to a power of two `width` with keys above all others. Chunks of 2048
// keys are sorted in shared memory (16 KiB), by blocks of 1024 threads with two keys each; for longer rows, steps of 2048 and more go
// through global memory (sort_across), the rest of each stage through shared memory again (sort_within). Bytes moved: 16 a key and pass.
// slice_residuals: with a_i the value of rank i and b_ij the m targets of ranks m*i .., delta = scale*(a_i - mean_j b_ij) at the column of
// a_i, and the mean of (a_i - b_ij)^2; one block a direction, sums in a fixed order.
#include "common.cuh"
#include "philox.cuh"
#include "reduce.cuh"

typedef unsigned long long Key;

static const unsigned CHUNK = 2048;

extern "C" __global__ void __launch_bounds__(256) slice_directions(
    float* __restrict__ theta, unsigned key0, unsigned key1, unsigned long long step, const unsigned long long* __restrict__ counter,
    unsigned count, unsigned d) {
    unsigned number = (unsigned)(thread_index() / 32), lane = threadIdx.x % 32;
    if (number >= count) return; // whole warps
    Philox draw = philox_at(key0, key1, step, counter);
    float sum = 0.0f, noise[4];
    for (unsigned column = lane * 4; column < d; column += 128) {
        noise_at(noise, draw, number, 0, column);
#pragma unroll
        for (unsigned j = 0; j < 4; j++) sum = column + j < d ? fmaf(noise[j], noise[j], sum) : sum;
    }
    sum = warp_sum(sum);
    float inverse = sum > 0.0f ? reciprocal(square_root(sum)) : 0.0f;
    theta += (unsigned long long)number * d;
    for (unsigned column = lane * 4; column < d; column += 128) {
        noise_at(noise, draw, number, 0, column);
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            if (column + j < d) theta[column + j] = sum > 0.0f ? noise[j] * inverse : column + j == 0 ? 1.0f : 0.0f;
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) draw_rows(
    float* __restrict__ x, const float* __restrict__ table, unsigned key0, unsigned key1, unsigned long long step,
    const unsigned long long* __restrict__ counter, unsigned rows, unsigned table_rows, unsigned d) {
    Place at = place(d, 1);
    if (at.row >= rows || at.column >= d) return;
    unsigned from = __umulhi(philox(philox_at(key0, key1, step, counter), at.row, 0, 0).x, table_rows);
    x[(unsigned long long)at.row * d + at.column] = table[(unsigned long long)from * d + at.column];
}

// A float as an unsigned number of the same order, and back; NaN lies at the ends.
__device__ __forceinline__ unsigned ordered(float x) {
    unsigned bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float value_of(Key key) {
    unsigned bits = (unsigned)(key >> 32);
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

// Exchanges two keys that are not in the wanted order.
__device__ __forceinline__ void exchange(Key& a, Key& b, bool ascending) {
    if ((a > b) == ascending) {
        Key held = a;
        a = b;
        b = held;
    }
}

// The first of the pair that a thread compares at a stride of 2^n.
__device__ __forceinline__ unsigned first_of(unsigned pair, unsigned stride) { return 2 * pair - (pair & (stride - 1)); }

// The steps of stage `stage` from `stride` down, of a chunk of `count` keys whose place in its row is `start`. All threads must arrive.
__device__ __forceinline__ void steps(Key* chunk, unsigned count, unsigned start, unsigned stage, unsigned stride) {
    for (; stride > 0; stride /= 2) {
        __syncthreads();
        if (2 * threadIdx.x < count) {
            unsigned at = first_of(threadIdx.x, stride);
            exchange(chunk[at], chunk[at + stride], ((start + at) & stage) == 0);
        }
    }
}

// keys (P, width) of values (P, n): each chunk sorted, every other one downwards. One block a chunk.
extern "C" __global__ void __launch_bounds__(1024)
    sort_chunks(unsigned long long* __restrict__ keys, const float* __restrict__ values, unsigned n, unsigned width) {
    __shared__ Key chunk[CHUNK];
    unsigned count = width < CHUNK ? width : CHUNK, chunks = width / count;
    unsigned row = blockIdx.x / chunks, start = blockIdx.x % chunks * count;
    const float* from = values + (unsigned long long)row * n;
    for (unsigned i = threadIdx.x; i < count; i += 1024) {
        unsigned column = start + i;
        chunk[i] = column < n ? (Key)ordered(from[column]) << 32 | column : ~0ull;
    }
    for (unsigned stage = 2; stage <= count; stage *= 2) steps(chunk, count, start, stage, stage / 2);
    __syncthreads();
    keys += (unsigned long long)row * width + start;
    for (unsigned i = threadIdx.x; i < count; i += 1024) keys[i] = chunk[i];
}

// One step of a stage, at a stride of at least a chunk. One thread a pair of keys, pairs: width/2 in each row.
extern "C" __global__ void __launch_bounds__(256)
    sort_across(unsigned long long* __restrict__ keys, unsigned long long pairs, unsigned width, unsigned stage, unsigned stride) {
    unsigned long long i = thread_index();
    if (i >= pairs) return;
    unsigned half = width / 2, pair = (unsigned)i & (half - 1), at = first_of(pair, stride); // a power of two
    Key* row = keys + 2 * (i - pair);
    Key a = row[at], b = row[at + stride];
    exchange(a, b, (at & stage) == 0);
    row[at] = a;
    row[at + stride] = b;
}

// The steps of a stage that stay inside of chunks. One block a chunk; rows are at least two chunks wide.
extern "C" __global__ void __launch_bounds__(1024)
    sort_within(unsigned long long* __restrict__ keys, unsigned width, unsigned stage) {
    __shared__ Key chunk[CHUNK];
    unsigned chunks = width / CHUNK, start = blockIdx.x % chunks * CHUNK;
    keys += (unsigned long long)(blockIdx.x / chunks) * width + start;
    for (unsigned i = threadIdx.x; i < CHUNK; i += 1024) chunk[i] = keys[i];
    steps(chunk, CHUNK, start, stage, CHUNK / 2);
    __syncthreads();
    for (unsigned i = threadIdx.x; i < CHUNK; i += 1024) keys[i] = chunk[i];
}

// delta (P, n), means (P); a (P, width), of n values, and b (P, target_width), of n*each, sorted. scale times the number at `factor`, if
// that is not null.
extern "C" __global__ void __launch_bounds__(256) slice_residuals(
    float* __restrict__ delta, float* __restrict__ means, const unsigned long long* __restrict__ a,
    const unsigned long long* __restrict__ b, unsigned n, unsigned width, unsigned target_width, unsigned each, float scale,
    const float* __restrict__ factor) {
    __shared__ float scratch[32];
    if (factor) scale *= *factor;
    a += (unsigned long long)blockIdx.x * width;
    b += (unsigned long long)blockIdx.x * target_width;
    delta += (unsigned long long)blockIdx.x * n;
    float share = __fdividef(1.0f, (float)each), squares = 0.0f;
    for (unsigned i = threadIdx.x; i < n; i += 256) {
        Key key = a[i];
        float value = value_of(key), sum = 0.0f;
        for (unsigned j = 0; j < each; j++) {
            float apart = value - value_of(b[(unsigned long long)i * each + j]);
            sum += apart;
            squares = fmaf(apart, apart, squares);
        }
        delta[(unsigned)key] = scale * (sum * share);
    }
    squares = block_sum(squares, scratch);
    if (threadIdx.x == 0) means[blockIdx.x] = squares * (share * __fdividef(1.0f, (float)n));
}
