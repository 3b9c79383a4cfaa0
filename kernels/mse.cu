// Mean squared error against a constant target: row loss |x_hat - x|^2 and dx_hat = scale*(x_hat - x), in one pass.
//
// One warp covers one row; its sum is taken over the warp in a fixed order. Bytes moved per element: 4 + 2*sizeof(floatX).
#include "common.cuh"
#include "reduce.cuh"

extern "C" __global__ void __launch_bounds__(256) mse(
    float* __restrict__ loss, floatX* __restrict__ dx_hat, const floatX* __restrict__ x_hat, const float* __restrict__ x,
    unsigned rows, unsigned d, float scale) {
    unsigned row = (unsigned)(thread_index() / 32), lane = threadIdx.x % 32;
    if (row >= rows) return; // whole warps
    unsigned long long start = (unsigned long long)row * d;
    float sum = 0.0f;
    for (unsigned column = lane; column < d; column += 32) {
        float r = to_float(x_hat[start + column]) - x[start + column];
        sum = fmaf(r, r, sum);
        dx_hat[start + column] = from_float<floatX>(scale * r);
    }
    sum = warp_sum(sum);
    if (lane == 0) loss[row] = sum;
}
