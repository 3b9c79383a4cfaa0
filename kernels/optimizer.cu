// Optimizer step over flat buffers, in one pass: unscale, clip, update, master weights, low-precision copy, averages. Formulas: src/ops/optimizer.rs.
//
// One thread covers four neighbouring elements. Bytes moved per element with f32 master and one average: gradient 4, master
// 8, moments 16, copy sizeof(floatX), average 8. The order of operations is the CPU's, with fused multiply-adds.
#include "common.cuh"
#include "philox.cuh"

struct Numbers {
    float lr, weight_decay, grad_scale, step_size, inverse_root2, beta1, beta2, eps;
};

// rule: 0 adam, 1 adamw, 2 sgd, 3 sgd nesterov, 4 lion. decay: weight decay where it acts, else 0.
__device__ __forceinline__ float updated(
    unsigned rule, const Numbers& k, float p, float gradient, float& m, float& v, float decay) {
    float g = gradient * k.grad_scale;
    if (rule <= 1) {
        float coupled = rule == 0 ? decay : 0.0f, kept = rule == 1 ? 1.0f - k.lr * decay : 1.0f;
        g = fmaf(coupled, p, g);
        m = fmaf(1.0f - k.beta1, g - m, m);
        v = fmaf(k.beta2, v, (1.0f - k.beta2) * g * g);
        float denominator = fmaf(__fsqrt_rn(v), k.inverse_root2, k.eps);
        return fmaf(-k.step_size, __fdividef(m, denominator), p * kept);
    }
    if (rule <= 3) {
        g = fmaf(decay, p, g);
        m = fmaf(k.beta1, m, g);
        float direction = rule == 3 ? fmaf(k.beta1, m, g) : m;
        return fmaf(-k.lr, direction, p);
    }
    float c = fmaf(k.beta1, m, (1.0f - k.beta1) * g);
    float sign = c == 0.0f || c != c ? c : copysignf(1.0f, c);
    m = fmaf(k.beta2, m, (1.0f - k.beta2) * g);
    return fmaf(-k.lr, fmaf(decay, p, sign), p);
}

// Rounds up or down at random: the discarded bits are compared with `random`'s. NaN and infinity stay.
template <class T> __device__ T rounded(float x, unsigned random);
template <> __device__ __forceinline__ float rounded<float>(float x, unsigned) { return x; }
template <> __device__ __forceinline__ bf16 rounded<bf16>(float x, unsigned random) {
    unsigned bits = __float_as_uint(x);
    bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    unsigned kept = (bits >> 16) | (x != x ? 0x40u : 0u);
    bf16 y;
    y.bits = (unsigned short)(finite ? (bits + (random & 0xffffu)) >> 16 : kept);
    return y;
}
template <> __device__ __forceinline__ f16 rounded<f16>(float x, unsigned random) {
    // Adds a random part of one unit in the last place and truncates: exact for normal halves, which is where weights
    // live; smaller values fall back to nearest.
    unsigned bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
    unsigned bumped = (magnitude + (random & 0x1fffu)) & ~0x1fffu;
    bool usable = magnitude >= 0x38800000u && magnitude < 0x47800000u;
    return from_float<f16>(usable ? __uint_as_float(bumped | (bits & 0x80000000u)) : x);
}

// master, v, ema0 .. ema3 may be null. decayed: `ranges` pairs of begin and end, ascending. stochastic: round the copy at random.
extern "C" __global__ void __launch_bounds__(256) optimizer_step(
    floatX* __restrict__ params, float* __restrict__ master, float* __restrict__ m, float* __restrict__ v,
    float* __restrict__ ema0, float* __restrict__ ema1, const float* __restrict__ grads,
    const unsigned long long* __restrict__ decayed, unsigned ranges, const float* __restrict__ numbers, unsigned rule,
    float decay0, float decay1, unsigned stochastic, unsigned key0, unsigned key1, unsigned long long step,
    const unsigned long long* __restrict__ counter, unsigned long long n) {
    unsigned long long first = thread_index() * 4;
    if (first >= n || numbers[8] != 0.0f) return; // the step does not count
    Numbers k = {numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6], numbers[7]};
    uint4 words = {0, 0, 0, 0};
    if (stochastic) words = philox(philox_at(key0, key1, step, counter), first >> 34, 0, (unsigned)(first / 4));
    unsigned random[4] = {words.x, words.y, words.z, words.w};
    // The first range that ends after `first`; four elements meet the next ones by going on from it.
    unsigned low = 0, high = ranges;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (decayed[2 * middle + 1] <= first) low = middle + 1;
        else high = middle;
    }
#pragma unroll
    for (unsigned j = 0; j < 4; j++) {
        unsigned long long i = first + j;
        if (i >= n) return;
        while (low < ranges && decayed[2 * low + 1] <= i) low++;
        float decay = low < ranges && decayed[2 * low] <= i ? k.weight_decay : 0.0f;
        float moment = m[i], second = v ? v[i] : 0.0f;
        float p = updated(rule, k, master ? master[i] : to_float(params[i]), grads[i], moment, second, decay);
        m[i] = moment;
        if (v) v[i] = second;
        if (master) master[i] = p;
        floatX copy = stochastic ? rounded<floatX>(p, random[j]) : from_float<floatX>(p);
        params[i] = copy;
        float averaged = master ? p : to_float(copy);
        if (ema0) ema0[i] = fmaf(decay0, ema0[i], (1.0f - decay0) * averaged);
        if (ema1) ema1[i] = fmaf(decay1, ema1[i], (1.0f - decay1) * averaged);
    }
}

// ema = decay*ema + (1 - decay)*p, for averages beyond the two of the step; p is the master, or the parameters without one.
extern "C" __global__ void __launch_bounds__(256) average(
    float* __restrict__ ema, const float* __restrict__ master, const floatX* __restrict__ params,
    const float* __restrict__ numbers, float decay, unsigned long long n) {
    unsigned long long i = thread_index();
    if (i >= n || numbers[8] != 0.0f) return; // the step does not count
    ema[i] = fmaf(decay, ema[i], (1.0f - decay) * (master ? master[i] : to_float(params[i])));
}
