// The linear layer in f32 arithmetic: z = x*w^T + b (+ add), y = act(z), and its gradients.
//
// A block of 256 threads covers a tile of 64 x 64 of the result; tiles of 16 of the summed dimension go through shared memory (2 x 4.2 KiB);
// a thread sums 4 x 4 results with fused multiply-adds, in the order of that dimension, so every result has the same bits
// for any M and N. Bytes moved per result: (64 + 64)/(64*64)*K elements of the operands.
#include "activation.cuh"
#include "common.cuh"

static const unsigned TILE = 64, DEPTH = 16, STRIDE = TILE + 2; // 2*k + m: no two lanes of a store meet in a bank

// Element (line, k) of an operand lies at line*line_step + k*k_step; one of the steps is 1.
template <class T> struct Operand {
    const T* data;
    unsigned lines, line_step, k_step;
};

// Copies lines `first` .. `first + TILE` and depths k0 .. k0 + DEPTH to shared memory, zero outside.
template <class T>
__device__ __forceinline__ void stage(float tile[DEPTH][STRIDE], const Operand<T>& from, unsigned first, unsigned k0, unsigned depth) {
    bool along_k = from.k_step == 1; // neighbouring threads read neighbouring elements
#pragma unroll
    for (unsigned i = 0; i < TILE * DEPTH / 256; i++) {
        unsigned at = threadIdx.x + i * 256;
        unsigned k = along_k ? at % DEPTH : at / TILE, line = along_k ? at / DEPTH : at % TILE;
        bool inside = first + line < from.lines && k0 + k < depth;
        unsigned long long index = (unsigned long long)(first + line) * from.line_step + (unsigned long long)(k0 + k) * from.k_step;
        tile[k][line] = inside ? to_float(from.data[index]) : 0.0f;
    }
}

// Calls finish(row, column, sum) for every element of this block's tile that is inside.
template <class A, class B, class Finish>
__device__ __forceinline__ void product(const Operand<A>& a, const Operand<B>& b, unsigned depth, Finish finish) {
    __shared__ float tile_a[DEPTH][STRIDE], tile_b[DEPTH][STRIDE];
    unsigned first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;
    unsigned x = threadIdx.x % 16, y = threadIdx.x / 16;
    float sums[4][4] = {};
    for (unsigned k0 = 0; k0 < depth; k0 += DEPTH) {
        stage(tile_a, a, first_row, k0, depth);
        stage(tile_b, b, first_column, k0, depth);
        __syncthreads();
#pragma unroll
        for (unsigned k = 0; k < DEPTH; k++) {
            float left[4], right[4];
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                left[i] = tile_a[k][y + 16 * i];
                right[i] = tile_b[k][x + 16 * i];
            }
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
#pragma unroll
                for (unsigned j = 0; j < 4; j++) sums[i][j] = fmaf(left[i], right[j], sums[i][j]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            unsigned row = first_row + y + 16 * i, column = first_column + x + 16 * j;
            if (row < a.lines && column < b.lines) finish(row, column, sums[i][j]);
        }
    }
}

// bias, add and z may be null.
template <class A>
__device__ __forceinline__ void forward(
    A* y, A* z, const A* x, const floatX* w, const floatX* bias, const A* add, unsigned kind, unsigned n, unsigned o, unsigned c) {
    Operand<A> rows = {x, n, c, 1};
    Operand<floatX> columns = {w, o, c, 1};
    product(rows, columns, c, [=](unsigned row, unsigned column, float sum) {
        unsigned long long at = (unsigned long long)row * o + column;
        if (bias) sum += to_float(bias[column]);
        if (add) sum += to_float(add[at]);
        if (z) z[at] = from_float<A>(sum);
        y[at] = from_float<A>(activation(kind, sum));
    });
}

extern "C" __global__ void __launch_bounds__(256) linear_forward(
    floatX* __restrict__ y, floatX* __restrict__ z, const floatX* __restrict__ x, const floatX* __restrict__ w,
    const floatX* __restrict__ bias, const floatX* __restrict__ add, unsigned kind, unsigned n, unsigned o, unsigned c) {
    forward(y, z, x, w, bias, add, kind, n, o, c);
}

// The same for f32 activations and weights of floatX: the path of the modulation tables.
extern "C" __global__ void __launch_bounds__(256) linear_forward_wide(
    float* __restrict__ y, float* __restrict__ z, const float* __restrict__ x, const floatX* __restrict__ w,
    const floatX* __restrict__ bias, const float* __restrict__ add, unsigned kind, unsigned n, unsigned o, unsigned c) {
    forward(y, z, x, w, bias, add, kind, n, o, c);
}

// z may be null. accumulate: dx += the result, summed in f32 and then stored.
template <class A>
__device__ __forceinline__ void backward_input(
    A* dx, const A* dy, const floatX* w, const A* z, unsigned kind, unsigned accumulate, unsigned n, unsigned o, unsigned c) {
    Operand<A> rows = {dy, n, o, 1};
    Operand<floatX> columns = {w, c, 1, c};
    product(rows, columns, o, [=](unsigned row, unsigned column, float sum) {
        unsigned long long at = (unsigned long long)row * c + column;
        if (z) sum *= activation_derivative(kind, to_float(z[at]));
        if (accumulate) sum += to_float(dx[at]);
        dx[at] = from_float<A>(sum);
    });
}

extern "C" __global__ void __launch_bounds__(256) linear_backward_input(
    floatX* __restrict__ dx, const floatX* __restrict__ dy, const floatX* __restrict__ w, const floatX* __restrict__ z,
    unsigned kind, unsigned accumulate, unsigned n, unsigned o, unsigned c) {
    backward_input(dx, dy, w, z, kind, accumulate, n, o, c);
}

extern "C" __global__ void __launch_bounds__(256) linear_backward_input_wide(
    float* __restrict__ dx, const float* __restrict__ dy, const floatX* __restrict__ w, const float* __restrict__ z,
    unsigned kind, unsigned accumulate, unsigned n, unsigned o, unsigned c) {
    backward_input(dx, dy, w, z, kind, accumulate, n, o, c);
}

// dw += dy^T * x.
extern "C" __global__ void __launch_bounds__(256) linear_backward_weight(
    float* __restrict__ dw, const floatX* __restrict__ dy, const floatX* __restrict__ x, unsigned n, unsigned o, unsigned c) {
    Operand<floatX> rows = {dy, o, 1, o};
    Operand<floatX> columns = {x, c, 1, c};
    product(rows, columns, n, [=](unsigned row, unsigned column, float sum) {
        dw[(unsigned long long)row * c + column] += sum;
    });
}

// db += sum over rows of dy: one warp per 32 columns, rows in order.
extern "C" __global__ void __launch_bounds__(32)
    linear_backward_bias(float* __restrict__ db, const floatX* __restrict__ dy, unsigned n, unsigned o) {
    unsigned column = (unsigned)thread_index();
    if (column >= o) return;
    float sum = 0.0f;
    for (unsigned row = 0; row < n; row++) sum += to_float(dy[(unsigned long long)row * o + column]);
    db[column] += sum;
}
