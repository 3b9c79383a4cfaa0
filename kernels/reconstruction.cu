// Distance to a constant target, loss and gradient in one pass. L2: row loss |x_hat - x|^2, dx_hat = 2*scale*(x_hat - x); L1: sum of
// |x_hat - x|, scale*sign(x_hat - x).
//
// One warp covers one row, 16 bytes of x_hat a lane where d allows it, else one element a lane; the row's sum is taken over the
// warp in a fixed order. Bytes moved per element: 4 + 2*sizeof(floatX).
#include "common.cuh"
#include "reduce.cuh"

// Makes the gradient of a residual r, times scale, and adds its loss.
__device__ __forceinline__ float distance(float r, bool l1, float scale, float& sum) {
    if (l1) {
        sum += fabsf(r);
        return r > 0.0f ? scale : r < 0.0f ? -scale : scale * r; // 0, or NaN
    }
    sum = fmaf(r, r, sum);
    return 2.0f * scale * r;
}

// factor may be null; it multiplies scale: the loss scale.
extern "C" __global__ void __launch_bounds__(256) reconstruction(
    float* __restrict__ loss, floatX* __restrict__ dx_hat, const floatX* __restrict__ x_hat, const float* __restrict__ x,
    unsigned rows, unsigned d, unsigned l1, float scale, const float* __restrict__ factor) {
    unsigned row = (unsigned)(thread_index() / 32), lane = threadIdx.x % 32;
    if (row >= rows) return; // whole warps
    if (factor) scale *= *factor;
    unsigned long long start = (unsigned long long)row * d;
    x_hat += start, x += start, dx_hat += start;
    float sum = 0.0f;
    if (d % EACH == 0) {
#pragma unroll 2
        for (unsigned base = 0; base < d; base += 32 * EACH) {
            unsigned column = base + lane * EACH;
            bool active = column < d;
            float r[EACH], target[EACH];
            read_floats(target, x + column, active);
            if (active) {
                read(r, x_hat + column);
#pragma unroll
                for (unsigned j = 0; j < EACH; j++) {
                    r[j] = distance(r[j] - target[j], l1, scale, sum);
                }
                write(dx_hat + column, r);
            }
        }
    } else {
        for (unsigned column = lane; column < d; column += 32) {
            float r = distance(to_float(x_hat[column]) - x[column], l1, scale, sum);
            dx_hat[column] = from_float<floatX>(r);
        }
    }
    sum = warp_sum(sum);
    if (lane == 0) loss[row] = sum;
}
