// The end of a sum over rows for a strip of columns: the sums of a block's eight warps, added in order to a row of f32.
#pragma once
#include "modulation.cuh"

// The place of float j of the pack of a lane: as in modulation.cuh, so that neither the packs' writers nor the readers of single
// columns meet in a bank.
__device__ __forceinline__ unsigned cell(unsigned lane, unsigned j) { return j / 4 * PLANE + lane * 4 + j % 4; }

// Adds a row (c) to the sums of this lane, from its column on.
__device__ __forceinline__ void add_row(float (&sum)[EACH], const floatX* row, unsigned column, unsigned c) {
    if (c % EACH == 0) {
        if (column >= c) return;
        float x[EACH];
        read(x, row + column);
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) sum[j] += x[j];
    } else {
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) {
            if (column + j < c) sum[j] += to_float(row[column + j]);
        }
    }
}

// `sum`: of the columns that this lane has of the 32 packs from `strip` on; to (c) gets those of all eight warps. All threads of the
// block must arrive.
__device__ __forceinline__ void add_warp_sums(float* to, const float (&sum)[EACH], unsigned strip, unsigned c) {
    __shared__ __align__(16) float sums[WARPS][QUARTERS * PLANE];
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (unsigned j = 0; j < EACH; j += 4) write(&sums[warp][cell(lane, j)], *(const float(*)[4])(sum + j));
    __syncthreads();
    unsigned column = strip + threadIdx.x;
    if (threadIdx.x >= 32 * EACH || column >= c) return;
    float total = 0.0f;
#pragma unroll
    for (unsigned w = 0; w < WARPS; w++) total += sums[w][cell(threadIdx.x / EACH, threadIdx.x % EACH)];
    to[column] += total;
}
