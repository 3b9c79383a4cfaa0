// The flow-matching loss of both stages: residual r = v - (data - noise), row loss w(t)*(|r|^2 - c), dv = scale*w(t)*r, in one pass.
//
// One warp covers one row, 16 bytes of v a lane where d allows it, else the four columns of a Philox block, one by one; the
// row's sum is taken over the warp in a fixed order. Noise is drawn again, never read. Bytes moved per element: v, data (4, once
// for all replicas from the cache), dv; 4 bytes a row of losses.
// latent_gradient: dy = unscale * sum over replicas of (t*dx_t - dv), replicas in order.
#include "common.cuh"
#include "philox.cuh"
#include "reduce.cuh"

// w(t): 0 uniform, 1 likelihood t/(1-t), 2 KL t^2/(1-t); t is clipped from above, and NaN stays NaN.
__device__ __forceinline__ float weight_at(unsigned kind, float clip, float t) {
    if (kind == 0) return 1.0f;
    float clipped = t > clip ? clip : t;
    return __fdividef(kind == 1 ? clipped : clipped * clipped, 1.0f - clipped);
}

// dv may be null: then only losses are computed. factor, which may be null too, multiplies scale: the loss scale.
extern "C" __global__ void __launch_bounds__(256) flow_loss(
    float* __restrict__ loss, floatX* __restrict__ dv, const floatX* __restrict__ v, const float* __restrict__ data,
    const float* __restrict__ t, unsigned key0, unsigned key1, unsigned long long step,
    const unsigned long long* __restrict__ counter, unsigned long long first, unsigned rows, unsigned samples,
    unsigned share, unsigned d, unsigned weight, float clip, unsigned control_variate, float scale,
    const float* __restrict__ factor) {
    unsigned row = (unsigned)(thread_index() / 32), lane = threadIdx.x % 32;
    if (row >= rows) return; // whole warps
    unsigned sample = row % samples, replica = row / samples;
    Philox draw = philox_at(key0, key1, step, counter);
    float time = t[row / share];
    float w = weight_at(weight, clip, time), slope = (factor ? scale * *factor : scale) * w;
    const float* y = data + (unsigned long long)sample * d;
    v += (unsigned long long)row * d;
    if (dv) dv += (unsigned long long)row * d;
    float sum = 0.0f, noise_sum = 0.0f;
    if (d % EACH == 0) {
        for (unsigned base = 0; base < d; base += 32 * EACH) {
            unsigned column = base + lane * EACH;
            bool active = column < d;
            float target[EACH], r[EACH], noise[EACH];
            read_floats(target, y + column, active);
            if (active) {
                read(r, v + column);
                noise_at(noise, draw, first + sample, replica, column);
#pragma unroll
                for (unsigned j = 0; j < EACH; j++) {
                    r[j] -= target[j] - noise[j];
                    sum = fmaf(r[j], r[j], sum);
                    noise_sum = fmaf(noise[j], noise[j], noise_sum);
                    r[j] *= slope;
                }
                if (dv) write(dv + column, r);
            }
        }
    } else {
        for (unsigned column = lane * 4; column < d; column += 128) {
            float noise[4];
            noise_at(noise, draw, first + sample, replica, column);
#pragma unroll
            for (unsigned j = 0; j < 4; j++) {
                if (column + j < d) {
                    float r = to_float(v[column + j]) - (y[column + j] - noise[j]);
                    sum = fmaf(r, r, sum);
                    noise_sum = fmaf(noise[j], noise[j], noise_sum);
                    if (dv) dv[column + j] = from_float<floatX>(slope * r);
                }
            }
        }
    }
    sum = warp_sum(sum);
    if (control_variate) {
        float spread = (1.0f - time) * (1.0f - time) + time * time;
        sum -= warp_sum(noise_sum) + (float)d * (__fdividef(1.0f, spread) - 1.0f);
    }
    if (lane == 0) loss[row] = w * sum;
}

// dx_t may be null: the detached gradient. A warp for every 32 packs of a row, or 32 columns where d is no multiple of a pack.
extern "C" __global__ void __launch_bounds__(256) latent_gradient(
    float* __restrict__ dy, const floatX* __restrict__ dv, const floatX* __restrict__ dx_t, const float* __restrict__ t,
    unsigned samples, unsigned replicas, unsigned share, unsigned d, float unscale) {
    bool vector = d % EACH == 0;
    Place at = place(d, vector ? EACH : 1);
    if (at.row >= samples) return; // whole warps
    unsigned long long i = (unsigned long long)at.row * d + at.column, step = (unsigned long long)samples * d;
    bool active = at.column < d;
    if (vector) {
        float sum[EACH];
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) sum[j] = 0.0f;
        if (active) {
            const floatX *g_at = dv + i, *slope_at = dx_t + i;
#pragma unroll 2
            for (unsigned row = at.row; row < samples * replicas; row += samples) {
                float g[EACH], slope[EACH];
                read(g, g_at);
                if (dx_t) read(slope, slope_at);
                float time = t[row / share];
#pragma unroll
                for (unsigned j = 0; j < EACH; j++) sum[j] = fmaf(unscale, dx_t ? fmaf(time, slope[j], -g[j]) : -g[j], sum[j]);
                g_at += step, slope_at += step;
            }
        }
        write_floats(dy + i, sum, active);
    } else if (active) {
        float sum = 0.0f;
        for (unsigned replica = 0; replica < replicas; replica++) {
            unsigned long long from = i + replica * step;
            float g = -to_float(dv[from]), time = t[(replica * samples + at.row) / share];
            sum = fmaf(unscale, dx_t ? fmaf(time, to_float(dx_t[from]), g) : g, sum);
        }
        dy[i] = sum;
    }
}
