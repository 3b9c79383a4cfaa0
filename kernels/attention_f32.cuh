// What the kernels of attention in f32 share: tiles of 32 rows of a head, products of two of them, and the way out.
//
// 128 threads as 8 x 16: thread (y, x) has rows y, y + 8, y + 16, y + 24 of a block's 32. Of a product of 32 x 32 it has columns x and
// x + 16, of WIDTH columns 2*x, 2*x + 1 and every 32nd behind. Rows of shared memory are WIDTH + 4 words apart, so that eight lanes that
// read 16 bytes of neighbouring rows meet in no bank. Fused multiply-adds, sums over columns in order.
#pragma once
#include "attention.cuh"

#if FLOATX == 0

static const unsigned FLOAT_ROWS = 32, TURNED_ROW = 36, TURNED_WORDS = FLOAT_ROWS * TURNED_ROW;

// Words of a tile.
template <unsigned WIDTH> struct FloatTile {
    static const unsigned STRIDE = WIDTH + 4, WORDS = FLOAT_ROWS * STRIDE;
    static_assert(WIDTH % 32 == 0, "a warp copies 32 columns");
};

__device__ __forceinline__ unsigned row_of_thread(unsigned i) { return threadIdx.x / 16 + 8 * i; }

// Copies 32 rows from `first` on; zeros where there are none. 4 bytes at a time: K may be odd in units of 16 bytes.
template <unsigned WIDTH>
__device__ __forceinline__ void copy_tile(float* tile, const HeadRows<const float>& from, unsigned first) {
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned to = shared_address(tile + warp * FloatTile<WIDTH>::STRIDE + lane);
    const float* at = from.data + (first + warp) * from.step + lane;
#pragma unroll 1
    for (unsigned row = warp; row < FLOAT_ROWS; row += 4) {
#pragma unroll
        for (unsigned column = 0; column < WIDTH; column += 32) {
            copy_async<4>(to + column * 4, at + column, first + row < from.rows && lane + column < from.columns);
        }
        to += 4 * FloatTile<WIDTH>::STRIDE * 4;
        at += 4 * from.step;
    }
}

// sums += a * b^T: of rows of `a` and rows of `b`.
template <unsigned WIDTH>
__device__ __forceinline__ void multiply_rows(float (&sums)[4][2], const float* a, const float* b) {
    const unsigned STRIDE = FloatTile<WIDTH>::STRIDE;
    a += threadIdx.x / 16 * STRIDE;
    b += threadIdx.x % 16 * STRIDE;
#pragma unroll 4
    for (unsigned k = 0; k < WIDTH; k += 4) {
        float4 y[2] = {*(const float4*)(b + k), *(const float4*)(b + 16 * STRIDE + k)};
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            float4 x = *(const float4*)(a + 8 * i * STRIDE + k);
#pragma unroll
            for (unsigned j = 0; j < 2; j++) {
                sums[i][j] = fmaf(x.x, y[j].x, sums[i][j]);
                sums[i][j] = fmaf(x.y, y[j].y, sums[i][j]);
                sums[i][j] = fmaf(x.z, y[j].z, sums[i][j]);
                sums[i][j] = fmaf(x.w, y[j].w, sums[i][j]);
            }
        }
    }
}

// Puts a product of 32 x 32 down by columns, for multiply_turned. A warp reads only what it wrote itself.
__device__ __forceinline__ void turn(float* turned, const float (&values)[4][2]) {
#pragma unroll
    for (unsigned j = 0; j < 2; j++) {
        float* at = turned + (threadIdx.x % 16 + 16 * j) * TURNED_ROW + threadIdx.x / 16 * 4;
        *(float4*)at = make_float4(values[0][j], values[1][j], values[2][j], values[3][j]);
    }
}

// sums += p * b: of a product that turn() put down, and a tile's rows.
template <unsigned WIDTH>
__device__ __forceinline__ void multiply_turned(float (&sums)[4][WIDTH / 16], const float* turned, const float* b) {
    turned += threadIdx.x / 16 * 4;
    b += threadIdx.x % 16 * 2;
#pragma unroll 4
    for (unsigned k = 0; k < FLOAT_ROWS; k++) {
        float4 four = *(const float4*)(turned + k * TURNED_ROW);
        float x[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (unsigned j = 0; j < WIDTH / 32; j++) {
            float2 y = *(const float2*)(b + k * FloatTile<WIDTH>::STRIDE + 32 * j);
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                sums[i][2 * j] = fmaf(x[i], y.x, sums[i][2 * j]);
                sums[i][2 * j + 1] = fmaf(x[i], y.y, sums[i][2 * j + 1]);
            }
        }
    }
}

// The largest, or the sum, over the 16 threads of the same rows. All lanes must arrive.
__device__ __forceinline__ float row_max(float x) {
#pragma unroll
    for (int lanes = 8; lanes > 0; lanes /= 2) x = fmaxf(x, shuffle_xor(x, lanes));
    return x;
}
__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
    for (int lanes = 8; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
    return x;
}

// Writes rows `first` + row_of_thread(i), times `factors`. K is even: a thread's columns go in twos.
template <unsigned WIDTH>
__device__ __forceinline__ void write_rows(
    const HeadRows<float>& to, unsigned first, const float (&sums)[4][WIDTH / 16], const float (&factors)[4]) {
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = first + row_of_thread(i);
        if (row >= to.rows) continue;
        float* at = to.data + row * to.step + threadIdx.x % 16 * 2;
#pragma unroll
        for (unsigned j = 0; j < WIDTH / 32; j++) {
            if (threadIdx.x % 16 * 2 + 32 * j >= to.columns) continue;
            *(float2*)(at + 32 * j) = make_float2(sums[i][2 * j] * factors[i], sums[i][2 * j + 1] * factors[i]);
        }
    }
}

#endif
