// Dot products of rows: y_i = sum_j a_ij*b_ij, all float.
//
// One warp covers one row, 16 bytes of each operand a lane where d allows it, else one element a lane; the row's sum is taken
// over the warp in a fixed order. Bytes moved per element: 8. No shared memory.
#include "common.cuh"
#include "reduce.cuh"

extern "C" __global__ void __launch_bounds__(256) row_dot(
    float* __restrict__ y, const float* __restrict__ a, const float* __restrict__ b, unsigned rows, unsigned d) {
    unsigned row = (unsigned)(thread_index() / 32), lane = threadIdx.x % 32;
    if (row >= rows) return; // whole warps
    unsigned long long start = (unsigned long long)row * d;
    a += start, b += start;
    float sum = 0.0f;
    if (d % 4 == 0) {
#pragma unroll 4
        for (unsigned column = lane * 4; column < d; column += 128) {
            float left[4], right[4];
            read(left, a + column);
            read(right, b + column);
#pragma unroll
            for (unsigned j = 0; j < 4; j++) sum = fmaf(left[j], right[j], sum);
        }
    } else {
        for (unsigned column = lane; column < d; column += 32) sum = fmaf(a[column], b[column], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) y[row] = sum;
}
