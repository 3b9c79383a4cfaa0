// Casts and scaled additions. cast: y = x in another storage type. axpy: y += a*x.
//
// One thread covers 8 elements, so that the narrower side moves 16 bytes; the last thread of a ragged tensor goes one by
// one. Bytes moved: sizeof(x) + sizeof(y), axpy 4 more. No shared memory.
#include "common.cuh"

static const unsigned EACH = 8;

template <class Y, class X> __device__ __forceinline__ void cast(Y* y, const X* x, unsigned long long n) {
    unsigned long long i = thread_index() * EACH;
    if (i + EACH <= n) {
        float values[EACH];
        for (unsigned j = 0; j < EACH; j += Pack<X>::N) {
            Pack<X> pack = load(x + i + j);
            for (unsigned k = 0; k < Pack<X>::N; k++) values[j + k] = to_float(pack.values[k]);
        }
        for (unsigned j = 0; j < EACH; j += Pack<Y>::N) {
            Pack<Y> pack;
            for (unsigned k = 0; k < Pack<Y>::N; k++) pack.values[k] = from_float<Y>(values[j + k]);
            store(y + i + j, pack);
        }
    } else {
        for (; i < n; i++) y[i] = from_float<Y>(to_float(x[i]));
    }
}

extern "C" __global__ void __launch_bounds__(256)
    cast_to_f32(float* __restrict__ y, const floatX* __restrict__ x, unsigned long long n) {
    cast(y, x, n);
}

extern "C" __global__ void __launch_bounds__(256)
    cast_from_f32(floatX* __restrict__ y, const float* __restrict__ x, unsigned long long n) {
    cast(y, x, n);
}

extern "C" __global__ void __launch_bounds__(256)
    axpy(float* __restrict__ y, const floatX* __restrict__ x, float a, unsigned long long n) {
    unsigned long long i = thread_index() * EACH;
    if (i + EACH <= n) {
        for (unsigned j = 0; j < EACH; j += Pack<floatX>::N) {
            Pack<floatX> pack = load(x + i + j);
            for (unsigned k = 0; k < Pack<floatX>::N; k += 4) {
                Pack<float> sum = load(y + i + j + k);
                for (unsigned l = 0; l < 4; l++) sum.values[l] = fmaf(a, to_float(pack.values[k + l]), sum.values[l]);
                store(y + i + j + k, sum);
            }
        }
    } else {
        for (; i < n; i++) y[i] = fmaf(a, to_float(x[i]), y[i]);
    }
}
