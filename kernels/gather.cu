// Row gather: y[i] = (table[index[i]] - shift)*scale, with a cast. Backward: dtable[j] += scale * sum over i with index[i] = j
// of dy[i], rows in the order of i.
//
// Forward: one thread covers one element; neighbouring threads read neighbouring columns. Bytes moved per element: one element of either type.
// Backward: one thread covers one column and goes through the rows in order: no atomics, the same bits always.
#include "common.cuh"

template <class Y, class X>
__device__ __forceinline__ void gather(
    Y* y, const X* table, const unsigned* index, unsigned rows, unsigned d, float shift, float scale) {
    unsigned long long at = thread_index();
    if (at >= (unsigned long long)rows * d) return;
    unsigned row = (unsigned)(at / d), column = (unsigned)(at % d);
    y[at] = from_float<Y>((to_float(table[(unsigned long long)index[row] * d + column]) - shift) * scale);
}

extern "C" __global__ void __launch_bounds__(256) gather_forward(
    floatX* __restrict__ y, const floatX* __restrict__ table, const unsigned* __restrict__ index, unsigned rows, unsigned d,
    float shift, float scale) {
    gather(y, table, index, rows, d, shift, scale);
}

extern "C" __global__ void __launch_bounds__(256) gather_from_f32(
    floatX* __restrict__ y, const float* __restrict__ table, const unsigned* __restrict__ index, unsigned rows, unsigned d,
    float shift, float scale) {
    gather(y, table, index, rows, d, shift, scale);
}

extern "C" __global__ void __launch_bounds__(256) gather_to_f32(
    float* __restrict__ y, const floatX* __restrict__ table, const unsigned* __restrict__ index, unsigned rows, unsigned d,
    float shift, float scale) {
    gather(y, table, index, rows, d, shift, scale);
}

extern "C" __global__ void __launch_bounds__(256) gather_backward(
    float* __restrict__ dtable, const floatX* __restrict__ dy, const unsigned* __restrict__ index, unsigned rows, unsigned d,
    float scale) {
    unsigned column = (unsigned)thread_index();
    if (column >= d) return;
    for (unsigned row = 0; row < rows; row++) {
        float* at = dtable + (unsigned long long)index[row] * d + column;
        *at = fmaf(scale, to_float(dy[(unsigned long long)row * d + column]), *at);
    }
}
