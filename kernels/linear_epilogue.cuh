// What becomes of the sums of a linear layer's three products: bias, activation and its derivative, and where results go.
//
// take<N> gets N neighbours of a row: W, which are 16 bytes of what is written, or 4, where all rows begin at multiples of 16 bytes
// (`wide`); else 1.
#pragma once
#include "activation.cuh"
#include "common.cuh"

// True for null.
__device__ __forceinline__ bool is_aligned(const void* at) { return (unsigned long long)at % 16 == 0; }

// W neighbours of 16 bytes or more, of 8, or one, and what moves them.
template <class T, unsigned W> struct Row {
    static const unsigned BYTES = W * sizeof(T), WORDS = BYTES % 16 == 0 ? 16 : BYTES % 8 == 0 ? 8 : sizeof(T);
    union {
        T values[W];
        uint4 sixteen[BYTES % 16 == 0 ? BYTES / 16 : 1];
        uint2 eight;
    };
    __device__ Row() {}
};

template <unsigned W, class T> __device__ __forceinline__ void read_floats(float (&values)[W], const T* at) {
    Row<T, W> row;
    if (row.WORDS == 16) {
#pragma unroll
        for (unsigned i = 0; i < row.BYTES / 16; i++) row.sixteen[i] = ((const uint4*)at)[i];
    } else if (row.WORDS == 8) {
        row.eight = *(const uint2*)at;
    } else {
        row.values[0] = *at;
    }
#pragma unroll
    for (unsigned i = 0; i < W; i++) values[i] = to_float(row.values[i]);
}
template <unsigned W, class T> __device__ __forceinline__ void write_floats(T* at, const float (&values)[W]) {
    Row<T, W> row;
#pragma unroll
    for (unsigned i = 0; i < W; i++) row.values[i] = from_float<T>(values[i]);
    if (row.WORDS == 16) {
#pragma unroll
        for (unsigned i = 0; i < row.BYTES / 16; i++) ((uint4*)at)[i] = row.sixteen[i];
    } else if (row.WORDS == 8) {
        *(uint2*)at = row.eight;
    } else {
        *at = row.values[0];
    }
}

// The kind is the same for all: one branch for all values.
template <unsigned W> __device__ __forceinline__ void activate(unsigned kind, float (&values)[W]) {
    if (kind == 1) {
#pragma unroll
        for (unsigned i = 0; i < W; i++) values[i] = activation(1, values[i]);
    } else if (kind == 2) {
#pragma unroll
        for (unsigned i = 0; i < W; i++) values[i] = activation(2, values[i]);
    }
}
template <unsigned W> __device__ __forceinline__ void multiply_by_slope(unsigned kind, float (&values)[W], const float (&z)[W]) {
    if (kind == 1) {
#pragma unroll
        for (unsigned i = 0; i < W; i++) values[i] *= activation_derivative(1, z[i]);
    } else if (kind == 2) {
#pragma unroll
        for (unsigned i = 0; i < W; i++) values[i] *= activation_derivative(2, z[i]);
    }
}

// z = sum + bias (+ add), y = act(z); bias, add and z may be null.
template <class A> struct Forward {
    static const unsigned W = Pack<A>::N;
    A *y, *z;
    const floatX* bias;
    const A* add;
    unsigned kind, columns;

    __device__ __forceinline__ bool wide() const {
        return columns % W == 0 && is_aligned(y) && is_aligned(z) && is_aligned(bias) && is_aligned(add);
    }

    template <unsigned N> __device__ __forceinline__ void take(unsigned row, unsigned column, float (&sums)[N]) const {
        unsigned long long at = (unsigned long long)row * columns + column;
        float other[N];
        if (bias) {
            read_floats(other, bias + column);
#pragma unroll
            for (unsigned i = 0; i < N; i++) sums[i] += other[i];
        }
        if (add) {
            read_floats(other, add + at);
#pragma unroll
            for (unsigned i = 0; i < N; i++) sums[i] += other[i];
        }
        if (z) write_floats(z + at, sums);
        activate(kind, sums);
        write_floats(y + at, sums);
    }
};

// dx = sum, times act'(z) if there is z; accumulate: dx += that, summed in f32 and then stored.
template <class A> struct BackwardInput {
    static const unsigned W = Pack<A>::N;
    A* dx;
    const A* z;
    unsigned kind, accumulate, columns;

    __device__ __forceinline__ bool wide() const { return columns % W == 0 && is_aligned(dx) && is_aligned(z); }

    template <unsigned N> __device__ __forceinline__ void take(unsigned row, unsigned column, float (&sums)[N]) const {
        unsigned long long at = (unsigned long long)row * columns + column;
        float other[N];
        if (z && kind) {
            read_floats(other, z + at);
            multiply_by_slope(kind, sums, other);
        }
        if (accumulate) {
            read_floats(other, dx + at);
#pragma unroll
            for (unsigned i = 0; i < N; i++) sums[i] += other[i];
        }
        write_floats(dx + at, sums);
    }
};

// dw += sum.
struct BackwardWeight {
    static const unsigned W = 4;
    float* dw;
    unsigned columns;

    __device__ __forceinline__ bool wide() const { return columns % W == 0 && is_aligned(dw); }

    template <unsigned N> __device__ __forceinline__ void take(unsigned row, unsigned column, float (&sums)[N]) const {
        unsigned long long at = (unsigned long long)row * columns + column;
        float other[N];
        read_floats(other, dw + at);
#pragma unroll
        for (unsigned i = 0; i < N; i++) sums[i] += other[i];
        write_floats(dw + at, sums);
    }
};

// A part of K is summed by each blockIdx.y: its sums go to a workspace (parts, rows, columns), as they are.
struct Partial {
    static const unsigned W = 4;
    float* at;
    unsigned columns;

    __device__ __forceinline__ bool wide() const { return columns % W == 0; }

    template <unsigned N> __device__ __forceinline__ void take(unsigned row, unsigned column, float (&sums)[N]) const {
        write_floats(at + (unsigned long long)row * columns + column, sums);
    }
};

// Adds the parts of K in their order, and finishes: a thread four neighbours, or four single results if rows do not begin at multiples
// of 16 bytes. A grid of at least rows*columns/4 threads; rows*columns below 2^32.
template <unsigned N, class Finish>
__device__ __forceinline__ void add_parts(const float* partial, unsigned parts, unsigned rows, unsigned columns, const Finish& finish) {
    unsigned results = rows * columns;
    unsigned long long threads = (unsigned long long)gridDim.x * blockDim.x;
#pragma unroll 1
    for (unsigned turn = 0; turn < 4 / N; turn++) {
        unsigned long long at = (turn * threads + thread_index()) * N;
        if (at >= results) return;
        float sums[N] = {}, other[N];
#pragma unroll 4
        for (unsigned part = 0; part < parts; part++) {
            read_floats(other, partial + (unsigned long long)part * results + at);
#pragma unroll
            for (unsigned i = 0; i < N; i++) sums[i] += other[i];
        }
        finish.template take<N>((unsigned)at / columns, (unsigned)at % columns, sums);
    }
}
template <class Finish>
__device__ __forceinline__ void sum_parts(const float* partial, unsigned parts, unsigned rows, unsigned columns, const Finish& finish) {
    if (finish.wide()) add_parts<4>(partial, parts, rows, columns, finish);
    else add_parts<1>(partial, parts, rows, columns, finish);
}
