// Hutchinson's estimate of a velocity's divergence by a central difference, and its gradient: signs e, points z + h*e and z - h*e.
//
// Signs are one random bit each, 128 of a Philox block: bit j%32 of word j/32 is column j; they are drawn where they are used and never
// stored. probe_points: one lane a column. probe_products: value_i = e.(v+ - v-)/(2h) and dv = +-scale*e/(2h), one warp a row.
// probe_gradient: dy += t*(dx+ + dx-), one lane a column. Rows 0 .. N are those with +, N .. 2N those with -. All float. Bytes moved per
// element of z: 12, 16, and 16.
#include "common.cuh"
#include "philox.cuh"
#include "reduce.cuh"

__device__ __forceinline__ float sign_of(const Philox& draw, unsigned row, unsigned column) {
    uint4 words = philox(draw, row, 0, column / 128);
    unsigned place = column % 128, which = place / 32;
    unsigned word = which == 0 ? words.x : which == 1 ? words.y : which == 2 ? words.z : words.w;
    return word >> place % 32 & 1 ? -1.0f : 1.0f;
}

extern "C" __global__ void __launch_bounds__(256) probe_points(
    float* __restrict__ points, const float* __restrict__ z, unsigned key0, unsigned key1, unsigned long long step,
    const unsigned long long* __restrict__ counter, unsigned rows, unsigned d, float h) {
    Place at = place(d, 1);
    if (at.row >= rows || at.column >= d) return;
    unsigned long long i = (unsigned long long)at.row * d + at.column, half = (unsigned long long)rows * d;
    float moved = h * sign_of(philox_at(key0, key1, step, counter), at.row, at.column);
    points[i] = z[i] + moved;
    points[half + i] = z[i] - moved;
}

// weight: 1/(2h). scale times the number at `factor`, if that is not null.
extern "C" __global__ void __launch_bounds__(256) probe_products(
    float* __restrict__ values, float* __restrict__ dv, const float* __restrict__ v, unsigned key0, unsigned key1,
    unsigned long long step, const unsigned long long* __restrict__ counter, unsigned rows, unsigned d, float weight, float scale,
    const float* __restrict__ factor) {
    unsigned row = (unsigned)(thread_index() / 32), lane = threadIdx.x % 32;
    if (row >= rows) return; // whole warps
    if (factor) scale *= *factor;
    Philox draw = philox_at(key0, key1, step, counter);
    unsigned long long start = (unsigned long long)row * d, half = (unsigned long long)rows * d;
    float sum = 0.0f;
    for (unsigned column = lane; column < d; column += 32) {
        float sign = sign_of(draw, row, column);
        unsigned long long i = start + column;
        sum = fmaf(sign, v[i] - v[half + i], sum);
        dv[i] = scale * weight * sign;
        dv[half + i] = -scale * weight * sign;
    }
    sum = warp_sum(sum);
    if (lane == 0) values[row] = sum * weight;
}

extern "C" __global__ void __launch_bounds__(256) probe_gradient(
    float* __restrict__ dy, const float* __restrict__ dx, const float* __restrict__ t, unsigned rows, unsigned d) {
    Place at = place(d, 1);
    if (at.row >= rows || at.column >= d) return;
    unsigned long long i = (unsigned long long)at.row * d + at.column, half = (unsigned long long)rows * d;
    dy[i] = fmaf(t[at.row], dx[i] + dx[half + i], dy[i]);
}
