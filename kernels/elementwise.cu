// Casts and scaled additions. cast: y = x in another storage type. axpy: y += a*x.
//
// One thread covers the elements of one 16-byte access of the narrower side; two lanes share the wider side's, so that every
// access moves whole sectors. The last elements of a ragged tensor go one by one. Bytes moved: sizeof(x) + sizeof(y), axpy 4
// more. No shared memory.
#include "common.cuh"

template <class Y, class X, unsigned N> __device__ __forceinline__ void cast_rest(Y* y, const X* x, unsigned long long i, unsigned long long n) {
#pragma unroll 1
    for (unsigned j = 0; j < N && i + j < n; j++) y[i + j] = from_float<Y>(to_float(x[i + j]));
}

// Whether this thread's pack lies in a pair of packs that is whole. The grid's last threads may lie behind the end.
template <unsigned N> __device__ __forceinline__ bool whole_pair(unsigned long long i, unsigned long long n) {
    return (i / (2 * N) + 1) * (2 * N) <= n;
}

extern "C" __global__ void __launch_bounds__(256)
    cast_to_f32(float* __restrict__ y, const floatX* __restrict__ x, unsigned long long n) {
    unsigned long long i = thread_index() * EACH;
    bool active = whole_pair<EACH>(i, n);
    float values[EACH];
#pragma unroll
    for (unsigned j = 0; j < EACH; j++) values[j] = 0.0f;
    if (active) read(values, x + i);
    write_floats(y + i, values, active);
    if (!active) cast_rest<float, floatX, EACH>(y, x, i, n);
}

extern "C" __global__ void __launch_bounds__(256)
    cast_from_f32(floatX* __restrict__ y, const float* __restrict__ x, unsigned long long n) {
    unsigned long long i = thread_index() * EACH;
    bool active = whole_pair<EACH>(i, n);
    float values[EACH];
    read_floats(values, x + i, active);
    if (active) write(y + i, values);
    if (!active) cast_rest<floatX, float, EACH>(y, x, i, n);
}

// y may start anywhere in a flat buffer: then all elements go one by one.
extern "C" __global__ void __launch_bounds__(256)
    axpy(float* __restrict__ y, const floatX* __restrict__ x, float a, unsigned long long n) {
    unsigned long long i = thread_index() * EACH;
    bool active = aligned(y) && aligned(x) && whole_pair<EACH>(i, n);
    float sum[EACH], addend[EACH];
    read_floats(sum, y + i, active);
    if (active) {
        read(addend, x + i);
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) sum[j] = fmaf(a, addend[j], sum[j]);
    }
    write_floats(y + i, sum, active);
    if (!active) {
#pragma unroll 1
        for (unsigned j = 0; j < EACH && i + j < n; j++) y[i + j] = fmaf(a, to_float(x[i + j]), y[i + j]);
    }
}
