// The guided velocity: v = s*weak + w*(strong - s*weak), row by row; s = 1, or <strong, weak>/(|weak|^2 + 1e-8) of the row (CFG-Zero*).
//
// One warp covers one row, 16 bytes of strong and weak a lane where d allows it, else one element a lane; a row is read again from
// the cache after its sums, which are taken over the warp in a fixed order. Bytes moved per element: 4 + 2*sizeof(floatX). No
// shared memory.
#include "common.cuh"
#include "reduce.cuh"

__device__ __forceinline__ float guided(float strong, float weak, float s, float w) {
    weak *= s;
    return fmaf(w, strong - weak, weak);
}

extern "C" __global__ void __launch_bounds__(256) guidance(
    float* __restrict__ v, const floatX* __restrict__ strong, const floatX* __restrict__ weak, unsigned rows, unsigned d,
    float w, unsigned projected) {
    unsigned row = (unsigned)(thread_index() / 32), lane = threadIdx.x % 32;
    if (row >= rows) return; // whole warps
    unsigned long long start = (unsigned long long)row * d;
    v += start, strong += start, weak += start;
    bool vector = d % EACH == 0;
    float s = 1.0f;
    if (projected) {
        float product = 0.0f, square = 0.0f;
        if (vector) {
#pragma unroll 2
            for (unsigned column = lane * EACH; column < d; column += 32 * EACH) {
                float a[EACH], b[EACH];
                read(a, strong + column);
                read(b, weak + column);
#pragma unroll
                for (unsigned j = 0; j < EACH; j++) {
                    product = fmaf(a[j], b[j], product);
                    square = fmaf(b[j], b[j], square);
                }
            }
        } else {
            for (unsigned column = lane; column < d; column += 32) {
                float a = to_float(strong[column]), b = to_float(weak[column]);
                product = fmaf(a, b, product);
                square = fmaf(b, b, square);
            }
        }
        s = warp_sum(product) * reciprocal(warp_sum(square) + 1e-8f);
    }
    if (vector) {
#pragma unroll 2
        for (unsigned base = 0; base < d; base += 32 * EACH) { // all lanes: they share their accesses to v
            unsigned column = base + lane * EACH;
            bool active = column < d;
            float a[EACH], b[EACH];
#pragma unroll
            for (unsigned j = 0; j < EACH; j++) a[j] = 0.0f;
            if (active) {
                read(a, strong + column);
                read(b, weak + column);
#pragma unroll
                for (unsigned j = 0; j < EACH; j++) a[j] = guided(a[j], b[j], s, w);
            }
            write_floats(v + column, a, active);
        }
    } else {
        for (unsigned column = lane; column < d; column += 32) {
            v[column] = guided(to_float(strong[column]), to_float(weak[column]), s, w);
        }
    }
}
