// Row gather: y[i] = (table[index[i]] - shift)*scale, with a cast. Backward: dtable[j] += scale * sum over i with index[i] = j
// of dy[i], rows in the order of i.
//
// Forward: one lane covers 16 bytes of floatX, or one element where d is no multiple of a pack; a warp stays in one row. Bytes
// moved per element: one element of either type.
// gather_samples: y[i] = scale*x, scale*mean or scale*(mean + exp(logvar/2)*noise) from rows [mean | logvar], perhaps mirrored: a lane as in
// the forward, of the row that is stored; its noise never reaches memory. Bytes moved per element: 4, and one or two elements of the table.
// Backward: one block for each row i and 256 columns. Only the first row with its index works; it looks through the
// later ones, 32 at a time, and adds those with the same index in order: no atomics, the same bits always. Bytes moved: dy once,
// dtable's rows twice, and the indices (4*rows) once a block, from the cache.
#include "common.cuh"
#include "philox.cuh"

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

// What becomes of one number. kind: 0 values, 1 means, 2 drawn.
__device__ __forceinline__ float sampled(float x, float log_variance, float noise, unsigned kind, float scale) {
    return (kind == 2 ? fmaf(expf(0.5f * log_variance), noise, x) : x) * scale;
}

// width: pixels across an image that may be mirrored, or 0. Row i is sample i of the batch.
extern "C" __global__ void __launch_bounds__(256) gather_samples(
    float* __restrict__ y, const floatX* __restrict__ table, const unsigned* __restrict__ index, unsigned key0, unsigned key1,
    unsigned long long step, unsigned flip0, unsigned flip1, unsigned long long flip_step, unsigned kind, unsigned width,
    unsigned rows, unsigned d, float scale) {
    bool packs = d % EACH == 0;
    unsigned each = packs ? EACH : 4;
    Place at = place(d, each);
    if (at.row >= rows) return; // whole warps
    bool mirrored = width > 0 && unit(philox(philox_at(flip0, flip1, flip_step, nullptr), at.row, 0, 0).x) < 0.5f;
    Philox draw = philox_at(key0, key1, step, nullptr);
    table += (unsigned long long)index[at.row] * (kind == 0 ? d : 2 * d);
    y += (unsigned long long)at.row * d;
    if (packs && width % EACH == 0) { // a pack's mirror image is a pack
        bool active = at.column < d;
        unsigned from = active ? at.column : 0;
        if (mirrored && active) from += width - EACH - 2 * (at.column % width);
        float x[EACH], log_variance[EACH], noise[EACH], out[EACH];
        read(x, table + from);
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) log_variance[j] = noise[j] = 0.0f;
        if (kind == 2) {
            read(log_variance, table + d + from);
            noise_at(noise, draw, at.row, 0, from);
        }
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) x[j] = sampled(x[j], log_variance[j], noise[j], kind, scale);
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) out[j] = mirrored ? x[EACH - 1 - j] : x[j];
        write_floats(y + at.column, out, active);
        return;
    }
#pragma unroll 1
    for (unsigned column = at.column; column < at.column + each && column < d; column += 4) {
        float noise[4] = {};
        if (kind == 2) noise_at(noise, draw, at.row, 0, column);
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            unsigned from = column + j;
            if (from >= d) continue;
            float log_variance = kind == 2 ? to_float(table[d + from]) : 0.0f;
            unsigned to = mirrored ? from + width - 1 - 2 * (from % width) : from;
            y[to] = sampled(to_float(table[from]), log_variance, noise[j], kind, scale);
        }
    }
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
