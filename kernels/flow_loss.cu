// The flow-matching loss of both stages: residual r = v - (data - noise), row loss w(t)*(|r|^2 - c), dv = scale*w(t)*r, in one pass;
// or, for a gradient that stays with the target, dv = scale*w(t)*(r - a*noise): flow_loss.cuh, src/ops/flow_loss.rs.
//
// One warp covers one row, 16 bytes of v a lane where d allows it, else the four columns of a Philox block, one by one; the
// row's sum is taken over the warp in a fixed order. Noise is drawn again, never read. Bytes moved per element: v, data (4, once
// for all replicas from the cache), dv; 4 bytes a row of losses.
// latent_gradient: dy = unscale * sum over replicas of (t*dx_t - dv), replicas in order.
#include "common.cuh"
#include "flow_loss.cuh"
#include "reduce.cuh"

// Blocks of a multiprocessor; with a fifth, registers of sm_120 are spilled.
#if __CUDA_ARCH__ >= 1200
#define BLOCKS 4
#else
#define BLOCKS 5
#endif

// dv may be null: then only losses are computed. factor, which may be null too, multiplies scale: the loss scale. table (knots) is null
// but for weights of a table.
extern "C" __global__ void __launch_bounds__(256, BLOCKS) flow_loss(
    float* __restrict__ loss, floatX* __restrict__ dv, const floatX* __restrict__ v, const float* __restrict__ data,
    const float* __restrict__ t, const float* __restrict__ table, unsigned key0, unsigned key1, unsigned long long step,
    const unsigned long long* __restrict__ counter, unsigned long long first, unsigned rows, unsigned samples,
    unsigned share, unsigned d, unsigned weight, float number, unsigned knots, unsigned variates, float scale,
    const float* __restrict__ factor) {
    unsigned row = (unsigned)(thread_index() / 32), lane = threadIdx.x % 32;
    if (row >= rows) return; // whole warps
    Philox draw = philox_at(key0, key1, step, counter);
    FlowTarget target = {data, t, draw, first, samples, share, d, {weight, number, table, knots}, variates};
    FlowRow at = target.row(row);
    float slope = (factor ? scale * *factor : scale) * at.weight;
    v += (unsigned long long)row * d;
    if (dv) dv += (unsigned long long)row * d;
    float sum = 0.0f, noise_sum = 0.0f;
    if (d % EACH == 0) {
        for (unsigned base = 0; base < d; base += 32 * EACH) {
            unsigned column = base + lane * EACH;
            bool active = column < d;
            float r[EACH];
            if (active) read(r, v + column);
            target.residual(r, at, column, active, true, sum, noise_sum);
            if (!active || !dv) continue;
#pragma unroll
            for (unsigned j = 0; j < EACH; j++) r[j] *= slope;
            write(dv + column, r);
        }
    } else {
        for (unsigned column = lane * 4; column < d; column += 128) {
            float r[4];
#pragma unroll
            for (unsigned j = 0; j < 4; j++) r[j] = column + j < d ? to_float(v[column + j]) : 0.0f;
            target.residual(r, at, column, true, false, sum, noise_sum);
#pragma unroll
            for (unsigned j = 0; j < 4; j++) {
                if (dv && column + j < d) dv[column + j] = from_float<floatX>(slope * r[j]);
            }
        }
    }
    sum = warp_sum(sum);
    if (target.has_control_variate()) noise_sum = warp_sum(noise_sum);
    if (lane == 0) loss[row] = target.loss(at, sum, noise_sum);
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
