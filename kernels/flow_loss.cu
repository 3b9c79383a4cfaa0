// The flow-matching loss of both stages: residual r = v - (data - noise), row loss w(t)*(|r|^2 - c), dv = scale*w(t)*r, in one pass.
//
// One warp covers one row, lane by lane four neighbouring columns (one Philox block) at a time; the row's sum is taken
// over the warp in a fixed order. Noise is drawn again, never read. Bytes moved per element: v, data (4, once for all
// replicas from the cache), dv; 4 bytes a row of losses.
// latent_gradient: dy = unscale * sum over replicas of (t*dx_t - dv), one thread per element, replicas in order.
#include "common.cuh"
#include "philox.cuh"
#include "reduce.cuh"

// w(t): 0 uniform, 1 likelihood t/(1-t), 2 KL t^2/(1-t); t is clipped from above, and NaN stays NaN.
__device__ __forceinline__ float weight_at(unsigned kind, float clip, float t) {
    if (kind == 0) return 1.0f;
    float clipped = t > clip ? clip : t;
    return (kind == 1 ? clipped : clipped * clipped) / (1.0f - clipped);
}

// dv may be null: then only losses are computed.
extern "C" __global__ void __launch_bounds__(256) flow_loss(
    float* __restrict__ loss, floatX* __restrict__ dv, const floatX* __restrict__ v, const float* __restrict__ data,
    const float* __restrict__ t, unsigned key0, unsigned key1, unsigned long long step,
    const unsigned long long* __restrict__ counter, unsigned long long first, unsigned rows, unsigned samples,
    unsigned share, unsigned d, unsigned weight, float clip, unsigned control_variate, float scale) {
    unsigned row = (unsigned)(thread_index() / 32), lane = threadIdx.x % 32;
    if (row >= rows) return; // whole warps
    unsigned sample = row % samples, replica = row / samples;
    Philox draw = philox_at(key0, key1, step, counter);
    float time = t[row / share];
    float w = weight_at(weight, clip, time);
    const float* y = data + (unsigned long long)sample * d;
    unsigned long long start = (unsigned long long)row * d;
    float sum = 0.0f, noise_sum = 0.0f;
    for (unsigned column = lane * 4; column < d; column += 128) {
        float noise[4];
        normals(noise, philox(draw, first + sample, replica, column / 4));
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            if (column + j < d) {
                float r = to_float(v[start + column + j]) - (y[column + j] - noise[j]);
                sum = fmaf(r, r, sum);
                noise_sum = fmaf(noise[j], noise[j], noise_sum);
                if (dv) dv[start + column + j] = from_float<floatX>(scale * w * r);
            }
        }
    }
    sum = warp_sum(sum);
    if (control_variate) {
        float spread = (1.0f - time) * (1.0f - time) + time * time;
        sum -= warp_sum(noise_sum) + (float)d * (1.0f / spread - 1.0f);
    }
    if (lane == 0) loss[row] = w * sum;
}

// dx_t may be null: the detached gradient.
extern "C" __global__ void __launch_bounds__(256) latent_gradient(
    float* __restrict__ dy, const floatX* __restrict__ dv, const floatX* __restrict__ dx_t, const float* __restrict__ t,
    unsigned samples, unsigned replicas, unsigned share, unsigned d, float unscale) {
    unsigned long long at = thread_index();
    if (at >= (unsigned long long)samples * d) return;
    unsigned sample = (unsigned)(at / d);
    float sum = 0.0f;
    for (unsigned replica = 0; replica < replicas; replica++) {
        unsigned row = replica * samples + sample;
        unsigned long long i = at + (unsigned long long)replica * samples * d;
        float g = dx_t ? fmaf(t[row / share], to_float(dx_t[i]), -to_float(dv[i])) : -to_float(dv[i]);
        sum = fmaf(unscale, g, sum);
    }
    dy[at] = sum;
}
