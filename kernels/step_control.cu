// What a step decides without the host: its losses, gradient norm, whether it counts, clip factor, loss scale, learning rate.
//
// One block of 256 threads each, sums in a fixed order, f64 where a sum of many f32 must not lose bits. Bytes moved: the row losses
// and the partial sums of squares, a few kilobytes. The state lives in device memory, so that a captured step needs
// no new arguments; it is `Control` here and in src/ops/step_control.rs.
//
//   norm = |g|/loss_scale;  trouble: a loss or a norm that is not finite
//   fine:     factor = min(1, clip/(norm + 1e-6)), updates += 1, and after `interval` good steps loss_scale *= growth
//   trouble:  the optimizer leaves everything as it is, loss_scale = max(loss_scale*backoff, smallest)
#include "common.cuh"
#include "reduce.cuh"

struct Control {
    unsigned long long step; // the running step: what random numbers are counted by
    unsigned long long next;
    unsigned long long updates; // made so far
    unsigned long long skipped, in_a_row;
    unsigned long long good_steps; // since loss_scale moved
    float loss_scale, inverse_scale;
    float used_scale, lr; // of the last step
    unsigned trouble, unused; // of the last step: 0 none, 1 loss, 2 gradient
    double norm;
    double losses[8]; // the total, then its parts
    // For the optimizer: lr, weight decay, factor of gradients, lr/(1 - beta1^t), 1/sqrt(1 - beta2^t), beta1, beta2, eps, skip.
    float numbers[16];
};

// Begins the next step.
extern "C" __global__ void __launch_bounds__(32) step_begin(unsigned long long* __restrict__ state) {
    Control* control = (Control*)state;
    if (threadIdx.x < 8) control->losses[threadIdx.x] = 0.0;
    if (threadIdx.x == 0) {
        control->step = control->next;
        control->next = control->step + 1;
    }
}

// losses[slot] += factor * sum of n row losses, losses[0] += weight times that; slot 0 is the total alone.
extern "C" __global__ void __launch_bounds__(256) step_add_loss(
    unsigned long long* __restrict__ state, const float* __restrict__ rows, unsigned n, unsigned slot, double factor,
    double weight) {
    __shared__ double scratch[32];
    double sum = 0.0;
    for (unsigned i = threadIdx.x; i < n; i += 256) sum += rows[i];
    sum = block_sum(sum, scratch) * factor;
    if (threadIdx.x > 0) return;
    Control* control = (Control*)state;
    if (slot > 0) control->losses[slot] += sum;
    control->losses[0] += weight * sum;
}

// Adds a number that the host knows: losses[slot] += value, losses[0] += weight*value.
extern "C" __global__ void __launch_bounds__(32)
    step_add_value(unsigned long long* __restrict__ state, unsigned slot, double value, double weight) {
    if (threadIdx.x > 0) return;
    Control* control = (Control*)state;
    control->losses[slot] += value;
    control->losses[0] += weight * value;
}

__device__ __forceinline__ bool finite(double x) {
    return (__double_as_longlong(x) & 0x7ff0000000000000ll) != 0x7ff0000000000000ll;
}

// The square root of a positive normal number to a few units of 2^-48: fast root and reciprocal of the mantissa in f32, one step of
// Newton in f64.
__device__ __forceinline__ double root(double x) {
    if (!(x > 0.0)) return x; // zero, NaN
    long long bits = __double_as_longlong(x);
    long long exponent = ((bits >> 52) - 1023) & ~1ll;
    double mantissa = __longlong_as_double(bits - (exponent << 52)); // in [1, 4)
    float guess, reciprocal;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(guess) : "f"((float)mantissa));
    asm("rcp.approx.f32 %0, %1;" : "=f"(reciprocal) : "f"(guess));
    double y = guess;
    y = fma(0.5 * (mantissa - y * y), (double)reciprocal, y);
    return y * __longlong_as_double((exponent / 2 + 1023) << 52);
}

// squares: partial sums of the gradients' squares. rates: the learning rate of each step; corrections: 1/(1 - beta1^t) and
// 1/sqrt(1 - beta2^t) of each update t from 1; past their ends the last ones stay. interval 0: no loss scaling.
extern "C" __global__ void __launch_bounds__(256) step_decide(
    unsigned long long* __restrict__ state, const double* __restrict__ squares, unsigned blocks,
    const float* __restrict__ rates, unsigned long long rate_count, const float* __restrict__ corrections,
    unsigned long long correction_count, float clip, float weight_decay, float beta1, float beta2, float eps, float growth,
    float backoff, float smallest, unsigned interval) {
    __shared__ double scratch[32];
    double sum = 0.0;
    for (unsigned i = threadIdx.x; i < blocks; i += 256) sum += squares[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x > 0) return;
    Control* control = (Control*)state;
    float inverse = control->inverse_scale;
    double norm = (finite(sum) ? root(sum) : sum) * inverse;
    unsigned trouble = !finite(control->losses[0]) ? 1 : !finite(norm) ? 2 : 0;
    control->norm = norm;
    control->trouble = trouble;
    control->used_scale = control->loss_scale;
    unsigned long long step = control->step < rate_count ? control->step : rate_count - 1;
    float lr = rates[step];
    control->lr = lr;
    float factor = clip > 0.0f ? fminf(__fdividef(clip, (float)norm + 1e-6f), 1.0f) : 1.0f;
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
