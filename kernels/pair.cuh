// Numbers of 48 bits: the unevaluated sum of two floats, `low` at most half a unit in the last place of `high` (Dekker 1971; Shewchuk
// 1997). For long sums and near cancellations; cards for training have a 32nd or 64th of their f32 units for f64. The host's side is
// `split` and `join` in src/float.rs; in arrays a pair is two floats.
//
// Range of f32: what overflows is infinite or NaN, never finite. Intrinsics are used where a contraction would lose the error.
#pragma once
#include "reduce.cuh"

struct __align__(8) Pair {
    float high, low;
};

__device__ __forceinline__ Pair pair(float high, float low) {
    Pair p = {high, low};
    return p;
}

// a + b as it is, if |a| >= |b|. The error of an infinite sum is nothing, or Inf would become NaN.
__device__ __forceinline__ Pair ordered_sum(float a, float b) {
    float sum = __fadd_rn(a, b), error = __fsub_rn(b, __fsub_rn(sum, a));
    return pair(sum, is_finite(sum) ? error : 0.0f);
}

// a + b as it is (Knuth).
__device__ __forceinline__ Pair exact_sum(float a, float b) {
    float sum = __fadd_rn(a, b), of_b = __fsub_rn(sum, a);
    float error = __fadd_rn(__fsub_rn(a, __fsub_rn(sum, of_b)), __fsub_rn(b, of_b));
    return pair(sum, is_finite(sum) ? error : 0.0f);
}

// a * b as it is.
__device__ __forceinline__ Pair exact_product(float a, float b) {
    float product = __fmul_rn(a, b), error = fmaf(a, b, -product);
    return pair(product, is_finite(product) ? error : 0.0f);
}

// Errors of sums and products: some units of 2^-47.
__device__ __forceinline__ Pair operator+(Pair a, Pair b) {
    Pair high = exact_sum(a.high, b.high), low = exact_sum(a.low, b.low);
    high = ordered_sum(high.high, __fadd_rn(high.low, low.high));
    return ordered_sum(high.high, __fadd_rn(high.low, low.low));
}
__device__ __forceinline__ Pair operator+(Pair a, float b) {
    Pair sum = exact_sum(a.high, b);
    return ordered_sum(sum.high, __fadd_rn(sum.low, a.low));
}
__device__ __forceinline__ Pair operator*(Pair a, Pair b) {
    Pair product = exact_product(a.high, b.high);
    return ordered_sum(product.high, fmaf(a.high, b.low, fmaf(a.low, b.high, product.low)));
}
__device__ __forceinline__ Pair operator*(Pair a, float b) { return a * pair(b, 0.0f); }
__device__ __forceinline__ Pair operator-(Pair a) { return pair(-a.high, -a.low); }

// 1/a: two steps of Newton, the first to f32.
__device__ __forceinline__ Pair reciprocal(Pair a) {
    float quick = reciprocal(a.high);
    Pair rest = -(a * quick) + 1.0f;
    return ordered_sum(quick, quick * rest.high);
}

// The root of zero or a positive number; other numbers stay as they are.
__device__ __forceinline__ Pair square_root(Pair a) {
    if (!(a.high > 0.0f) || !is_finite(a.high)) return a;
    float guess = square_root(a.high);
    Pair rest = a + -exact_product(guess, guess);
    return ordered_sum(guess, 0.5f * rest.high * reciprocal(guess));
}

__device__ __forceinline__ Pair shuffle_xor(Pair x, int lanes) { return pair(shuffle_xor(x.high, lanes), shuffle_xor(x.low, lanes)); }

// The sum of `count` pairs, by a block of 256 threads.
__device__ __forceinline__ Pair sum_of_pairs(const Pair* pairs, unsigned count, Pair* scratch) {
    Pair sum = pair(0.0f, 0.0f);
    for (unsigned i = threadIdx.x; i < count; i += 256) sum = sum + pairs[i];
    return block_sum(sum, scratch);
}
