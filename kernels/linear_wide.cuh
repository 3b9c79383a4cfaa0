// Matrix products of f32 activations and 16-bit weights, for the few rows of modulation tables: fused multiply-adds, nothing rounded.
//
// A block of 256 threads covers a tile of 64 x 64 of the result; tiles of 16 of the summed dimension go through shared memory (2 x 4.2 KiB);
// a thread sums 4 x 4 results in the order of that dimension. Bytes moved per result: (4 + 2)/64*K.
#pragma once
#include "common.cuh"

static const unsigned WIDE_TILE = 64, WIDE_DEPTH = 16, WIDE_STRIDE = WIDE_TILE + 2; // 2*k + line: no two lanes of a store meet in a bank

// Element (line, k) of an operand lies at line*line_step + k*k_step; one of the steps is 1.
template <class T> struct WideOperand {
    const T* data;
    unsigned lines, line_step, k_step;
};

// Copies lines `first` .. `first + TILE` and depths k0 .. k0 + DEPTH to shared memory, zero outside.
template <class T>
__device__ __forceinline__ void stage(
    float tile[WIDE_DEPTH][WIDE_STRIDE], const WideOperand<T>& from, unsigned first, unsigned k0, unsigned depth) {
    bool along_k = from.k_step == 1; // neighbouring threads read neighbouring elements
#pragma unroll
    for (unsigned i = 0; i < WIDE_TILE * WIDE_DEPTH / 256; i++) {
        unsigned at = threadIdx.x + i * 256;
        unsigned k = along_k ? at % WIDE_DEPTH : at / WIDE_TILE, line = along_k ? at / WIDE_DEPTH : at % WIDE_TILE;
        bool inside = first + line < from.lines && k0 + k < depth;
        unsigned long long index = (unsigned long long)(first + line) * from.line_step + (unsigned long long)(k0 + k) * from.k_step;
        tile[k][line] = inside ? to_float(from.data[index]) : 0.0f;
    }
}

// Gives each result of this block's tile to `finish`, as write_sums in matmul.cuh does.
template <class B, class Finish>
__device__ __forceinline__ void wide_product(const WideOperand<float>& a, const WideOperand<B>& b, unsigned depth, const Finish& finish) {
    __shared__ float tile_a[WIDE_DEPTH][WIDE_STRIDE], tile_b[WIDE_DEPTH][WIDE_STRIDE];
    unsigned first_row = blockIdx.y * WIDE_TILE, first_column = blockIdx.x * WIDE_TILE;
    unsigned x = threadIdx.x % 16, y = threadIdx.x / 16;
    float sums[4][4] = {};
#pragma unroll 1
    for (unsigned k0 = 0; k0 < depth; k0 += WIDE_DEPTH) {
        stage(tile_a, a, first_row, k0, depth);
        stage(tile_b, b, first_column, k0, depth);
        __syncthreads();
#pragma unroll
        for (unsigned k = 0; k < WIDE_DEPTH; k++) {
            float left[4], right[4];
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                left[i] = tile_a[k][y + 16 * i];
                right[i] = tile_b[k][x + 16 * i];
            }
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
#pragma unroll
                for (unsigned j = 0; j < 4; j++) sums[i][j] = fmaf(left[i], right[j], sums[i][j]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            unsigned row = first_row + y + 16 * i, column = first_column + x + 16 * j;
            float one[1] = {sums[i][j]};
            if (row < a.lines && column < b.lines) finish.template take<1>(row, column, one);
        }
    }
}
