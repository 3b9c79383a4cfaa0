// Row gather: y[i] = (table[index[i]] - shift)*scale, with a cast. Backward: dtable[j] += scale * sum over i with index[i] = j
// of dy[i], rows in the order of i.
//
// Forward: one lane covers 16 bytes of floatX, or one element where d is no multiple of a pack; a warp stays in one row. Bytes
// moved per element: one element of either type.
// Backward: one block for each row i and 256 columns. Only the first row with its index works; it looks through the
// later ones, 32 at a time, and adds those with the same index in order: no atomics, the same bits always. Bytes moved: dy once,
// dtable's rows twice, and the indices (4*rows) once a block, from the cache.
#include "common.cuh"

__device__ __forceinline__ float mapped(float x, float shift, float scale) { return (x - shift) * scale; }

template <class T> __device__ __forceinline__ void read_row(float (&x)[EACH], const T* at, bool active);
template <> __device__ __forceinline__ void read_row<float>(float (&x)[EACH], const float* at, bool active) {
    read_floats(x, at, active);
}
template <class T> __device__ __forceinline__ void write_row(T* at, const float (&x)[EACH], bool active);
template <> __device__ __forceinline__ void write_row<float>(float* at, const float (&x)[EACH], bool active) {
    write_floats(at, x, active);
}
#if FLOATX != 0
template <> __device__ __forceinline__ void read_row<floatX>(float (&x)[EACH], const floatX* at, bool active) {
#pragma unroll
    for (unsigned j = 0; j < EACH; j++) x[j] = 0.0f;
    if (active) read(x, at);
}
template <> __device__ __forceinline__ void write_row<floatX>(floatX* at, const float (&x)[EACH], bool active) {
    if (active) write(at, x);
}
#endif

template <class Y, class X>
__device__ __forceinline__ void gather(
    Y* y, const X* table, const unsigned* index, unsigned rows, unsigned d, float shift, float scale) {
    bool vector = d % EACH == 0;
    Place at = place(d, vector ? EACH : 1);
    if (at.row >= rows) return; // whole warps
    y += (unsigned long long)at.row * d + at.column;
    table += (unsigned long long)index[at.row] * d + at.column;
    bool active = at.column < d;
    if (vector) {
        float x[EACH];
        read_row(x, table, active);
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) x[j] = mapped(x[j], shift, scale);
        write_row(y, x, active);
    } else if (active) {
        *y = from_float<Y>(mapped(to_float(*table), shift, scale));
    }
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

// Grid: rows, times the blocks of 256 columns.
extern "C" __global__ void __launch_bounds__(256) gather_backward(
    float* __restrict__ dtable, const floatX* __restrict__ dy, const unsigned* __restrict__ index, unsigned rows, unsigned d,
    float scale) {
    unsigned blocks = (d + 255) / 256, row = blockIdx.x / blocks, column = blockIdx.x % blocks * 256 + threadIdx.x;
    unsigned own = index[row], lane = threadIdx.x % 32;
    bool earlier = false;
    for (unsigned i = threadIdx.x; i < row; i += 256) earlier |= index[i] == own;
    if (__syncthreads_or(earlier)) return; // the whole block
    bool active = column < d;
    if (!active) column = d - 1; // reads dy along, so that the warp stays together
    float* at = dtable + (unsigned long long)own * d + column;
    float sum = active ? *at : 0.0f;
    for (unsigned base = row; base < rows; base += 32) {
        unsigned same = __ballot_sync(0xffffffffu, base + lane < rows && index[base + lane] == own);
        for (; same; same &= same - 1) { // the warp's lanes agree
            unsigned long long from = (unsigned long long)(base + __ffs(same) - 1) * d + column;
            sum = fmaf(scale, to_float(dy[from]), sum);
        }
    }
    if (active) *at = sum;
}
