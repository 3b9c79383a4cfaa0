// What a step decides without the host: its losses, gradient norm, whether it counts, clip factor, loss scale, learning rate.
//
// One block of 256 threads each, sums in a fixed order, of pairs of f32 where a sum of many must not lose bits. Bytes moved: the row
// losses and the partial sums of squares, a few kilobytes. The state lives in device memory, so that a captured step needs
// no new arguments; it is `Control` here and in src/ops/step_control.rs.
//
//   norm = |g|/loss_scale;  trouble: a loss or a norm that is not finite (|g|^2 must stay below 3.4e38)
//   fine:     factor = min(1, clip/(norm + 1e-6)), updates += 1, and after `interval` good steps loss_scale *= growth
//   trouble:  the optimizer leaves everything as it is, loss_scale = max(loss_scale*backoff, smallest)
#include "common.cuh"
#include "pair.cuh"

struct Control {
    unsigned long long step; // the running step: what random numbers are counted by
    unsigned long long next;
    unsigned long long updates; // made so far
    unsigned long long skipped, in_a_row;
    unsigned long long good_steps; // since loss_scale moved
    float loss_scale, inverse_scale;
    float used_scale, lr; // of the last step
    unsigned trouble, unused; // of the last step: 0 none, 1 loss, 2 gradient
    Pair norm;
    Pair losses[8]; // the total, then its parts
    // For the optimizer: lr, weight decay, factor of gradients, lr/(1 - beta1^t), 1/sqrt(1 - beta2^t), beta1, beta2, eps, skip.
    float numbers[16];
};

// Begins the next step.
extern "C" __global__ void __launch_bounds__(32) step_begin(unsigned long long* __restrict__ state) {
    Control* control = (Control*)state;
    if (threadIdx.x < 8) control->losses[threadIdx.x] = pair(0.0f, 0.0f);
    if (threadIdx.x == 0) {
        control->step = control->next;
        control->next = control->step + 1;
    }
}

// losses[slot] += factor * sum of n row losses, losses[0] += weight times that; slot 0 is the total alone. Factors are pairs.
extern "C" __global__ void __launch_bounds__(256) step_add_loss(
    unsigned long long* __restrict__ state, const float* __restrict__ rows, unsigned n, unsigned slot, float factor,
    float factor_low, float weight, float weight_low) {
    __shared__ Pair scratch[32];
    Pair sum = pair(0.0f, 0.0f);
    for (unsigned i = threadIdx.x; i < n; i += 256) sum = sum + rows[i];
    sum = block_sum(sum, scratch) * pair(factor, factor_low);
    if (threadIdx.x > 0) return;
    Control* control = (Control*)state;
    if (slot > 0) control->losses[slot] = control->losses[slot] + sum;
    control->losses[0] = control->losses[0] + sum * pair(weight, weight_low);
}

// Adds a number that the host knows: losses[slot] += value, losses[0] += weight*value. Pairs.
extern "C" __global__ void __launch_bounds__(32) step_add_value(
    unsigned long long* __restrict__ state, unsigned slot, float value, float value_low, float weight, float weight_low) {
    if (threadIdx.x > 0) return;
    Control* control = (Control*)state;
    Pair number = pair(value, value_low);
    control->losses[slot] = control->losses[slot] + number;
    control->losses[0] = control->losses[0] + number * pair(weight, weight_low);
}

// squares: partial sums of the gradients' squares. rates: the learning rate of each step; corrections: 1/(1 - beta1^t) and
// 1/sqrt(1 - beta2^t) of each update t from 1; past their ends the last ones stay. interval 0: no loss scaling.
extern "C" __global__ void __launch_bounds__(256) step_decide(
    unsigned long long* __restrict__ state, const float* __restrict__ squares, unsigned blocks,
    const float* __restrict__ rates, unsigned long long rate_count, const float* __restrict__ corrections,
    unsigned long long correction_count, float clip, float weight_decay, float beta1, float beta2, float eps, float growth,
    float backoff, float smallest, unsigned interval) {
    __shared__ Pair scratch[32];
    Pair sum = sum_of_pairs((const Pair*)squares, blocks, scratch);
    if (threadIdx.x > 0) return;
    Control* control = (Control*)state;
    float inverse = control->inverse_scale;
    Pair norm = square_root(sum) * inverse;
    unsigned trouble = !is_finite(control->losses[0].high) ? 1 : !is_finite(norm.high) ? 2 : 0;
    control->norm = norm;
    control->trouble = trouble;
    control->used_scale = control->loss_scale;
    unsigned long long step = control->step < rate_count ? control->step : rate_count - 1;
    float lr = rates[step];
    control->lr = lr;
    float factor = clip > 0.0f ? fminf(__fdividef(clip, norm.high + 1e-6f), 1.0f) : 1.0f;
    unsigned long long update = control->updates < correction_count ? control->updates : correction_count - 1;
    control->numbers[0] = lr;
    control->numbers[1] = weight_decay;
    control->numbers[2] = factor * inverse;
    control->numbers[3] = lr * corrections[2 * update];
    control->numbers[4] = corrections[2 * update + 1];
    control->numbers[5] = beta1;
    control->numbers[6] = beta2;
    control->numbers[7] = eps;
    control->numbers[8] = trouble ? 1.0f : 0.0f;
    float scale = control->loss_scale;
    if (trouble) {
        control->skipped += 1;
        control->in_a_row += 1;
        if (interval) {
            control->loss_scale = fmaxf(scale * backoff, smallest);
            control->good_steps = 0;
        }
    } else {
        control->updates += 1;
        control->in_a_row = 0;
        if (interval && ++control->good_steps >= interval) {
            if (scale * growth <= 3.402823466e38f) control->loss_scale = scale * growth;
            control->good_steps = 0;
        }
    }
    // Exact for powers of two, which scales are unless their settings are not; one step of Newton mends the rest.
    float now = control->loss_scale, quick;
    asm("rcp.approx.f32 %0, %1;" : "=f"(quick) : "f"(now));
    control->inverse_scale = fmaf(quick, fmaf(-now, quick, 1.0f), quick);
}
