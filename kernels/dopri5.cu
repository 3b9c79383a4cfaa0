// The adaptive step of Dormand and Prince, with its controller in device memory: src/ops/dopri5.rs has the formulas.
//
// dopri5_stage, dopri5_accept: four elements a thread, in 16-byte accesses. dopri5_error: a block of 256 threads covers 4,096 neighbouring
// elements, 16 a thread, and adds their squares in a fixed order. dopri5_decide: one block adds the partial sums, one thread decides.
// All float. Bytes moved per element: 4*(2 + slopes) a stage, 32 the error, 16 where a step is accepted.
#include "common.cuh"
#include "reduce.cuh"

static const unsigned SPAN = 4096;

// 16 floats; the names of src/ops/dopri5.rs. Flags and counters are whole numbers.
struct Control {
    float t, h, end;
    float norm, norm_before;
    float status; // 0 running, 1 done, 2 not finite, 3 too small, 4 too many
    float accept; // the last try
    float accepted, rejected;
    float last; // the next step reaches the end
    float was_rejected;
    float unused[5];
};

__device__ __forceinline__ void add(float (&sum)[4], const float* k, float a, unsigned long long i) {
    float slope[4];
    read(slope, k + i);
#pragma unroll
    for (unsigned j = 0; j < 4; j++) sum[j] = fmaf(a, slope[j], sum[j]);
}

// y = x + h*sum of the first count slopes, each with its a; t = control.t + c*h. Slopes beyond are not read.
extern "C" __global__ void __launch_bounds__(256) dopri5_stage(
    float* __restrict__ y, float* __restrict__ t, const float* __restrict__ x, const float* __restrict__ k1,
    const float* __restrict__ k2, const float* __restrict__ k3, const float* __restrict__ k4, const float* __restrict__ k5,
    const float* __restrict__ k6, const float* __restrict__ control, unsigned count, float c, float a1, float a2, float a3,
    float a4, float a5, float a6, unsigned long long n) {
    const Control* state = (const Control*)control;
    unsigned long long i = thread_index() * 4;
    float h = state->h;
    if (i == 0) *t = fmaf(c, h, state->t);
    if (i + 4 <= n) {
        float sum[4] = {}, start[4];
        add(sum, k1, a1, i);
        if (count > 1) add(sum, k2, a2, i);
        if (count > 2) add(sum, k3, a3, i);
        if (count > 3) add(sum, k4, a4, i);
        if (count > 4) add(sum, k5, a5, i);
        if (count > 5) add(sum, k6, a6, i);
        read(start, x + i);
#pragma unroll
        for (unsigned j = 0; j < 4; j++) start[j] = fmaf(h, sum[j], start[j]);
        write(y + i, start);
        return;
    }
#pragma unroll 1
    for (; i < n; i++) {
        float sum = a1 * k1[i];
        if (count > 1) sum = fmaf(a2, k2[i], sum);
        if (count > 2) sum = fmaf(a3, k3[i], sum);
        if (count > 3) sum = fmaf(a4, k4[i], sum);
        if (count > 4) sum = fmaf(a5, k5[i], sum);
        if (count > 5) sum = fmaf(a6, k6[i], sum);
        y[i] = fmaf(h, sum, x[i]);
    }
}

// (e/scale)^2, e = h*sum; NaN where the solution is not finite.
__device__ __forceinline__ float squared(float sum, float h, float x, float y, float rtol, float atol) {
    float scale = fmaf(rtol, fmaxf(fabsf(x), fabsf(y)), atol);
    float error = h * sum * reciprocal(scale);
    return is_finite(y) ? error * error : __uint_as_float(0x7fc00000u);
}

extern "C" __global__ void __launch_bounds__(256) dopri5_error(
    float* __restrict__ partials, const float* __restrict__ x, const float* __restrict__ y, const float* __restrict__ k1,
    const float* __restrict__ k3, const float* __restrict__ k4, const float* __restrict__ k5, const float* __restrict__ k6,
    const float* __restrict__ k7, const float* __restrict__ control, float e1, float e3, float e4, float e5, float e6, float e7,
    float rtol, float atol, unsigned long long n) {
    __shared__ float scratch[32];
    float h = ((const Control*)control)->h, total = 0.0f;
    unsigned long long first = (unsigned long long)blockIdx.x * SPAN;
    unsigned long long end = first + SPAN < n ? first + SPAN : n;
#pragma unroll 1
    for (unsigned long long i = first + 4 * threadIdx.x; i < end; i += 4 * 256) {
        if (i + 4 <= end) {
            float sum[4] = {}, from[4], to[4];
            add(sum, k1, e1, i);
            add(sum, k3, e3, i);
            add(sum, k4, e4, i);
            add(sum, k5, e5, i);
            add(sum, k6, e6, i);
            add(sum, k7, e7, i);
            read(from, x + i);
            read(to, y + i);
#pragma unroll
            for (unsigned j = 0; j < 4; j++) total += squared(sum[j], h, from[j], to[j], rtol, atol);
        } else {
#pragma unroll 1
            for (unsigned long long j = i; j < end; j++) {
                float sum = fmaf(e7, k7[j], fmaf(e6, k6[j], fmaf(e5, k5[j], fmaf(e4, k4[j], fmaf(e3, k3[j], e1 * k1[j])))));
                total += squared(sum, h, x[j], y[j], rtol, atol);
            }
        }
    }
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

// x^p of a number that is not negative; 0 stays 0.
__device__ __forceinline__ float power(float x, float p) {
    float logarithm, result;
    asm("lg2.approx.f32 %0, %1;" : "=f"(logarithm) : "f"(x));
    asm("ex2.approx.f32 %0, %1;" : "=f"(result) : "f"(p * logarithm));
    return result;
}

// Chooses the next step, where h is wanted: `limited` in src/ops/dopri5.rs.
__device__ __forceinline__ void choose(Control* state, float h) {
    float rest = state->end - state->t;
    bool last = 1.01f * fabsf(h) >= fabsf(rest);
    state->last = last ? 1.0f : 0.0f;
    state->h = last ? rest : __fsub_rn(__fadd_rn(state->t, h), state->t);
}

extern "C" __global__ void __launch_bounds__(256) dopri5_decide(
    float* __restrict__ control, const float* __restrict__ partials, unsigned count, float share, float smallest,
    unsigned tries) {
    __shared__ float scratch[32];
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < count; i += 256) sum += partials[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x > 0) return;
    Control* state = (Control*)control;
    state->accept = 0.0f;
    if (state->status != 0.0f) return;
    float norm = square_root(sum * share);
    state->norm = norm;
    if (!is_finite(norm)) {
        state->status = 2.0f;
        return;
    }
    float of_norm = power(norm, 0.17f), divisor;
    bool accept = norm <= 1.0f;
    if (accept) {
        divisor = of_norm * reciprocal(0.9f * power(state->norm_before, 0.04f));
        divisor = fminf(fmaxf(divisor, state->was_rejected != 0.0f ? 1.0f : 0.1f), 5.0f);
        state->norm_before = fmaxf(norm, 1e-4f);
        state->t = state->last != 0.0f ? state->end : __fadd_rn(state->t, state->h);
        state->accept = 1.0f;
        state->was_rejected = 0.0f;
        state->accepted += 1.0f;
    } else {
        divisor = fminf(of_norm * (1.0f / 0.9f), 5.0f);
        state->was_rejected = 1.0f;
        state->rejected += 1.0f;
    }
    if (accept && state->last != 0.0f) {
        state->status = 1.0f;
        state->h = 0.0f;
        return;
    }
    choose(state, state->h * reciprocal(divisor));
    if (state->last == 0.0f && fabsf(state->h) < smallest) state->status = 3.0f;
    else if (state->accepted + state->rejected >= (float)tries) state->status = 4.0f;
}

// x = y and first = last, if the step was accepted.
extern "C" __global__ void __launch_bounds__(256) dopri5_accept(
    float* __restrict__ x, float* __restrict__ first, const float* __restrict__ y, const float* __restrict__ last,
    const float* __restrict__ control, unsigned long long n) {
    if (((const Control*)control)->accept == 0.0f) return;
    unsigned long long i = thread_index() * 4;
    if (i + 4 <= n) {
        float values[4], slopes[4];
        read(values, y + i);
        read(slopes, last + i);
        write(x + i, values);
        write(first + i, slopes);
        return;
    }
#pragma unroll 1
    for (; i < n; i++) {
        x[i] = y[i];
        first[i] = last[i];
    }
}
