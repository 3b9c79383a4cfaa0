// Optimizer step over flat buffers, in one pass: unscale, clip, update, master weights, low-precision copy, averages. Formulas: src/ops/optimizer.rs.
//
// One thread covers four neighbouring elements, 16 bytes of each buffer of floats; all are loaded before the first is used. Bytes
// moved per element with f32 master and one average: gradient 4, master 8, moments 16, copy sizeof(floatX), average 8. The order
// of operations is the CPU's, with fused multiply-adds.
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
        float denominator = fmaf(square_root(v), k.inverse_root2, k.eps);
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

// Four neighbouring elements of a buffer, or the `count` that there are.
__device__ __forceinline__ void read_four(float (&x)[4], const float* at, unsigned count) {
    if (count == 4) {
        read(x, at);
    } else {
#pragma unroll
        for (unsigned j = 0; j < 4; j++) x[j] = j < count ? at[j] : 0.0f;
    }
}
__device__ __forceinline__ void write_four(float* at, const float (&x)[4], unsigned count) {
    if (count == 4) {
        write(at, x);
    } else {
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            if (j < count) at[j] = x[j];
        }
    }
}

#if FLOATX != 0
// The same for 16-bit numbers: accesses of 8 bytes, beside 16 of everything else.
union Half4 {
    uint2 words;
    floatX values[4];
    __device__ Half4() {}
};
__device__ __forceinline__ void read_four(float (&x)[4], const floatX* at, unsigned count) {
    Half4 four;
    if (count == 4) {
        four.words = *(const uint2*)at;
#pragma unroll
        for (unsigned j = 0; j < 4; j++) x[j] = to_float(four.values[j]);
    } else {
#pragma unroll
        for (unsigned j = 0; j < 4; j++) x[j] = j < count ? to_float(at[j]) : 0.0f;
    }
}
__device__ __forceinline__ void write_four(floatX* at, const floatX (&x)[4], unsigned count) {
    Half4 four;
#pragma unroll
    for (unsigned j = 0; j < 4; j++) four.values[j] = x[j];
    if (count == 4) {
        *(uint2*)at = four.words;
    } else {
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            if (j < count) at[j] = x[j];
        }
    }
}
#endif

// The first range that ends after element i.
__device__ __forceinline__ unsigned first_range(const unsigned long long* decayed, unsigned ranges, unsigned long long i) {
    unsigned low = 0, high = ranges;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (decayed[2 * middle + 1] <= i) low = middle + 1;
        else high = middle;
    }
    return low;
}

// ema = keep*ema + (1 - keep)*p.
__device__ __forceinline__ void averaged(float (&ema)[4], const float (&p)[4], float keep) {
#pragma unroll
    for (unsigned j = 0; j < 4; j++) ema[j] = fmaf(keep, ema[j], (1.0f - keep) * p[j]);
}

// master, v, ema0, ema1 may be null. decayed: `ranges` pairs of begin and end, ascending. stochastic: round the copy at random.
extern "C" __global__ void __launch_bounds__(256, 4) optimizer_step(
    floatX* __restrict__ params, float* __restrict__ master, float* __restrict__ m, float* __restrict__ v,
    float* __restrict__ ema0, float* __restrict__ ema1, const float* __restrict__ grads,
    const unsigned long long* __restrict__ decayed, unsigned ranges, const float* __restrict__ numbers, unsigned rule,
    float decay0, float decay1, unsigned stochastic, unsigned key0, unsigned key1, unsigned long long step,
    const unsigned long long* __restrict__ counter, unsigned long long n) {
    unsigned long long first = thread_index() * 4;
    if (first >= n || numbers[8] != 0.0f) return; // the step does not count
    unsigned count = n - first < 4 ? (unsigned)(n - first) : 4;
    float p[4], gradient[4], moment[4], second[4] = {}, average0[4], average1[4];
    read_four(gradient, grads + first, count);
    read_four(moment, m + first, count);
    if (v) read_four(second, v + first, count);
    if (master) read_four(p, master + first, count);
    else read_four(p, params + first, count);
    if (ema0) read_four(average0, ema0 + first, count);
    if (ema1) read_four(average1, ema1 + first, count);
    float4 low = ((const float4*)numbers)[0], high = ((const float4*)numbers)[1];
    Numbers k = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    // The first range that ends behind `first`, begin and end; four elements meet the next ones by going on from it.
    const ulonglong2 *range = (const ulonglong2*)decayed + first_range(decayed, ranges, first), *last = (const ulonglong2*)decayed + ranges;
    ulonglong2 ends = range < last ? *range : make_ulonglong2(n, n);
#pragma unroll
    for (unsigned j = 0; j < 4; j++) {
        while (ends.y <= first + j && range < last) ends = ++range < last ? *range : make_ulonglong2(n, n);
        float decay = ends.x <= first + j && first + j < n ? k.weight_decay : 0.0f;
        p[j] = updated(rule, k, p[j], gradient[j], moment[j], second[j], decay);
    }
    write_four(m + first, moment, count);
    if (v) write_four(v + first, second, count);
    if (master) write_four(master + first, p, count);
    floatX copy[4];
    if (stochastic) {
        uint4 words = philox(philox_at(key0, key1, step, counter), first >> 34, 0, (unsigned)(first / 4));
        copy[0] = rounded<floatX>(p[0], words.x), copy[1] = rounded<floatX>(p[1], words.y);
        copy[2] = rounded<floatX>(p[2], words.z), copy[3] = rounded<floatX>(p[3], words.w);
    } else {
#pragma unroll
        for (unsigned j = 0; j < 4; j++) copy[j] = from_float<floatX>(p[j]);
    }
    write_four(params + first, copy, count);
#pragma unroll
    for (unsigned j = 0; j < 4; j++) p[j] = master ? p[j] : to_float(copy[j]);
    if (ema0) {
        averaged(average0, p, decay0);
        write_four(ema0 + first, average0, count);
    }
    if (ema1) {
        averaged(average1, p, decay1);
        write_four(ema1 + first, average1, count);
    }
}

// ema = decay*ema + (1 - decay)*p, for averages beyond the two of the step; p is the master, or the parameters without one.
extern "C" __global__ void __launch_bounds__(256) average(
    float* __restrict__ ema, const float* __restrict__ master, const floatX* __restrict__ params,
    const float* __restrict__ numbers, float decay, unsigned long long n) {
    unsigned long long first = thread_index() * 4;
    if (first >= n || numbers[8] != 0.0f) return; // the step does not count
    unsigned count = n - first < 4 ? (unsigned)(n - first) : 4;
    float p[4], sum[4];
    read_four(sum, ema + first, count);
    if (master) read_four(p, master + first, count);
    else read_four(p, params + first, count);
    averaged(sum, p, decay);
    write_four(ema + first, sum, count);
}
