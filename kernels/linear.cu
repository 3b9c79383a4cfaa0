// The linear layer: z = x*w^T + b (+ add), y = act(z), and its gradients dx = dy*w, dw += dy^T*x, db += sum of the rows of dy.
//
// x (N, C), w (O, C), b (O), add, y, z, dy (N, O), dx (N, C); all sums in f32. Three kinds of kernels:
// - tensor cores (matmul.cuh), for 16-bit floats and for f32 rounded to tf32: linear_forward_128x128 and so on, by the block's tile;
//   _any takes rows that do not begin at multiples of 16 bytes;
// - f32 as it is (matmul_f32.cuh): linear_forward_f32_128 and so on, by the rows of the block's tile;
// - f32 activations with 16-bit weights, for the few rows of modulation tables (linear_wide.cuh): _wide.
// With `partial` each blockIdx.y sums `each` of K into that workspace, and the kernel _sum adds these up: where there are too few tiles
// for the device. Tiles are chosen in src/ops/linear/tiles.rs; all tiles of a storage type sum in the same order and give the same bits.
// A second launch bound is there where the compiler, left alone, keeps to so few registers that it spills on sm_90 or sm_120.
#include "linear_bodies.cuh"
#include "linear_epilogue.cuh"
#include "linear_wide.cuh"

// ---- forward

template <class S>
__device__ __forceinline__ void forward(
    floatX* y, floatX* z, const floatX* x, const floatX* w, const floatX* bias, const floatX* add, float* partial, unsigned each,
    unsigned kind, unsigned n, unsigned o, unsigned c) {
    Operand<floatX> a = {x, n, c}, b = {w, o, c};
    Forward<floatX> finish = {y, z, bias, add, kind, o};
    on_tensor_cores<S, true, true>(a, b, c, partial, each, nullptr, finish);
}

extern "C" __global__ void __launch_bounds__(128) linear_forward_128x128(
    floatX* __restrict__ y, floatX* __restrict__ z, const floatX* __restrict__ x, const floatX* __restrict__ w,
    const floatX* __restrict__ bias, const floatX* __restrict__ add, float* __restrict__ partial, unsigned each, unsigned kind,
    unsigned n, unsigned o, unsigned c) {
    forward<Tile128x128>(y, z, x, w, bias, add, partial, each, kind, n, o, c);
}

extern "C" __global__ void __launch_bounds__(128) linear_forward_128x64(
    floatX* __restrict__ y, floatX* __restrict__ z, const floatX* __restrict__ x, const floatX* __restrict__ w,
    const floatX* __restrict__ bias, const floatX* __restrict__ add, float* __restrict__ partial, unsigned each, unsigned kind,
    unsigned n, unsigned o, unsigned c) {
    forward<Tile128x64>(y, z, x, w, bias, add, partial, each, kind, n, o, c);
}

extern "C" __global__ void __launch_bounds__(64) linear_forward_64x64(
    floatX* __restrict__ y, floatX* __restrict__ z, const floatX* __restrict__ x, const floatX* __restrict__ w,
    const floatX* __restrict__ bias, const floatX* __restrict__ add, float* __restrict__ partial, unsigned each, unsigned kind,
    unsigned n, unsigned o, unsigned c) {
    forward<Tile64x64>(y, z, x, w, bias, add, partial, each, kind, n, o, c);
}

extern "C" __global__ void __launch_bounds__(64, 5) linear_forward_any(
    floatX* __restrict__ y, floatX* __restrict__ z, const floatX* __restrict__ x, const floatX* __restrict__ w,
    const floatX* __restrict__ bias, const floatX* __restrict__ add, float* __restrict__ partial, unsigned each, unsigned kind,
    unsigned n, unsigned o, unsigned c) {
    forward<TileAny>(y, z, x, w, bias, add, partial, each, kind, n, o, c);
}

// Adds the parts of K. A thread finishes 16 bytes of results at a time, or one result.
extern "C" __global__ void __launch_bounds__(256, 4) linear_forward_sum(
    floatX* __restrict__ y, floatX* __restrict__ z, const floatX* __restrict__ bias, const floatX* __restrict__ add,
    const float* __restrict__ partial, unsigned parts, unsigned kind, unsigned n, unsigned o) {
    Forward<floatX> finish = {y, z, bias, add, kind, o};
    sum_parts(partial, parts, n, o, finish);
}

extern "C" __global__ void __launch_bounds__(256) linear_forward_wide(
    float* __restrict__ y, float* __restrict__ z, const float* __restrict__ x, const floatX* __restrict__ w,
    const floatX* __restrict__ bias, const float* __restrict__ add, unsigned kind, unsigned n, unsigned o, unsigned c) {
    WideOperand<float> a = {x, n, c, 1};
    WideOperand<floatX> b = {w, o, c, 1};
    Forward<float> finish = {y, z, bias, add, kind, o};
    wide_product(a, b, c, finish);
}

// ---- input gradient

template <class S>
__device__ __forceinline__ void backward_input(
    floatX* dx, const floatX* dy, const floatX* w, const floatX* z, float* partial, unsigned each, unsigned kind, unsigned accumulate,
    unsigned n, unsigned o, unsigned c) {
    Operand<floatX> a = {dy, n, o}, b = {w, c, c};
    BackwardInput<floatX> finish = {dx, z, kind, accumulate, c};
    on_tensor_cores<S, true, false>(a, b, o, partial, each, nullptr, finish);
}

extern "C" __global__ void __launch_bounds__(128) linear_backward_input_128x128(
    floatX* __restrict__ dx, const floatX* __restrict__ dy, const floatX* __restrict__ w, const floatX* __restrict__ z,
    float* __restrict__ partial, unsigned each, unsigned kind, unsigned accumulate, unsigned n, unsigned o, unsigned c) {
    backward_input<Tile128x128>(dx, dy, w, z, partial, each, kind, accumulate, n, o, c);
}

extern "C" __global__ void __launch_bounds__(128) linear_backward_input_128x64(
    floatX* __restrict__ dx, const floatX* __restrict__ dy, const floatX* __restrict__ w, const floatX* __restrict__ z,
    float* __restrict__ partial, unsigned each, unsigned kind, unsigned accumulate, unsigned n, unsigned o, unsigned c) {
    backward_input<Tile128x64>(dx, dy, w, z, partial, each, kind, accumulate, n, o, c);
}

extern "C" __global__ void __launch_bounds__(64) linear_backward_input_64x64(
    floatX* __restrict__ dx, const floatX* __restrict__ dy, const floatX* __restrict__ w, const floatX* __restrict__ z,
    float* __restrict__ partial, unsigned each, unsigned kind, unsigned accumulate, unsigned n, unsigned o, unsigned c) {
    backward_input<Tile64x64>(dx, dy, w, z, partial, each, kind, accumulate, n, o, c);
}

extern "C" __global__ void __launch_bounds__(64, 4) linear_backward_input_any(
    floatX* __restrict__ dx, const floatX* __restrict__ dy, const floatX* __restrict__ w, const floatX* __restrict__ z,
    float* __restrict__ partial, unsigned each, unsigned kind, unsigned accumulate, unsigned n, unsigned o, unsigned c) {
    backward_input<TileAny>(dx, dy, w, z, partial, each, kind, accumulate, n, o, c);
}

// As linear_forward_sum.
extern "C" __global__ void __launch_bounds__(256, 4) linear_backward_input_sum(
    floatX* __restrict__ dx, const floatX* __restrict__ z, const float* __restrict__ partial, unsigned parts, unsigned kind,
    unsigned accumulate, unsigned n, unsigned c) {
    BackwardInput<floatX> finish = {dx, z, kind, accumulate, c};
    sum_parts(partial, parts, n, c, finish);
}

extern "C" __global__ void __launch_bounds__(256) linear_backward_input_wide(
    float* __restrict__ dx, const float* __restrict__ dy, const floatX* __restrict__ w, const float* __restrict__ z, unsigned kind,
    unsigned accumulate, unsigned n, unsigned o, unsigned c) {
    WideOperand<float> a = {dy, n, o, 1};
    WideOperand<floatX> b = {w, c, 1, c};
    BackwardInput<float> finish = {dx, z, kind, accumulate, c};
    wide_product(a, b, o, finish);
}

// ---- weight gradient, with that of the bias unless db is null. With `partial`, db is its part of the workspace, (parts, O).

template <class S>
__device__ __forceinline__ void backward_weight(
    float* dw, float* db, const floatX* dy, const floatX* x, float* partial, unsigned each, unsigned n, unsigned o, unsigned c) {
    Operand<floatX> a = {dy, o, o}, b = {x, c, c};
    BackwardWeight finish = {dw, c};
    on_tensor_cores<S, false, false>(a, b, n, partial, each, db, finish);
}

extern "C" __global__ void __launch_bounds__(128) linear_backward_weight_128x128(
    float* __restrict__ dw, float* __restrict__ db, const floatX* __restrict__ dy, const floatX* __restrict__ x,
    float* __restrict__ partial, unsigned each, unsigned n, unsigned o, unsigned c) {
    backward_weight<Tile128x128>(dw, db, dy, x, partial, each, n, o, c);
}

extern "C" __global__ void __launch_bounds__(128) linear_backward_weight_128x64(
    float* __restrict__ dw, float* __restrict__ db, const floatX* __restrict__ dy, const floatX* __restrict__ x,
    float* __restrict__ partial, unsigned each, unsigned n, unsigned o, unsigned c) {
    backward_weight<Tile128x64>(dw, db, dy, x, partial, each, n, o, c);
}

extern "C" __global__ void __launch_bounds__(64) linear_backward_weight_64x64(
    float* __restrict__ dw, float* __restrict__ db, const floatX* __restrict__ dy, const floatX* __restrict__ x,
    float* __restrict__ partial, unsigned each, unsigned n, unsigned o, unsigned c) {
    backward_weight<Tile64x64>(dw, db, dy, x, partial, each, n, o, c);
}

extern "C" __global__ void __launch_bounds__(64, 5) linear_backward_weight_any(
    float* __restrict__ dw, float* __restrict__ db, const floatX* __restrict__ dy, const floatX* __restrict__ x,
    float* __restrict__ partial, unsigned each, unsigned n, unsigned o, unsigned c) {
    backward_weight<TileAny>(dw, db, dy, x, partial, each, n, o, c);
}

// Adds the parts of the batch. db and its parts may be null.
extern "C" __global__ void __launch_bounds__(256, 4) linear_backward_weight_sum(
    float* __restrict__ dw, float* __restrict__ db, const float* __restrict__ partial, const float* __restrict__ partial_db,
    unsigned parts, unsigned o, unsigned c) {
    BackwardWeight finish = {dw, c};
    sum_parts(partial, parts, o, c, finish);
#pragma unroll 1
    for (unsigned row = (unsigned)thread_index(); db && row < o; row += gridDim.x * blockDim.x) {
        float sum = 0.0f;
        for (unsigned part = 0; part < parts; part++) sum += partial_db[(unsigned long long)part * o + row];
        db[row] += sum;
    }
}

// ---- the three in f32, by rows of the block's tile of 128 columns

#if FLOATX == 0
template <class S>
__device__ __forceinline__ void forward_f32(
    float* y, float* z, const float* x, const float* w, const float* bias, const float* add, float* partial, unsigned each,
    unsigned kind, unsigned n, unsigned o, unsigned c) {
    Operand<float> a = {x, n, c}, b = {w, o, c};
    Forward<float> finish = {y, z, bias, add, kind, o};
    in_f32<S, true, true>(a, b, c, partial, each, nullptr, finish);
}
template <class S>
__device__ __forceinline__ void backward_input_f32(
    float* dx, const float* dy, const float* w, const float* z, float* partial, unsigned each, unsigned kind, unsigned accumulate,
    unsigned n, unsigned o, unsigned c) {
    Operand<float> a = {dy, n, o}, b = {w, c, c};
    BackwardInput<float> finish = {dx, z, kind, accumulate, c};
    in_f32<S, true, false>(a, b, o, partial, each, nullptr, finish);
}
template <class S>
__device__ __forceinline__ void backward_weight_f32(
    float* dw, float* db, const float* dy, const float* x, float* partial, unsigned each, unsigned n, unsigned o, unsigned c) {
    Operand<float> a = {dy, o, o}, b = {x, c, c};
    BackwardWeight finish = {dw, c};
    in_f32<S, false, false>(a, b, n, partial, each, db, finish);
}

extern "C" __global__ void __launch_bounds__(256) linear_forward_f32_128(
    float* __restrict__ y, float* __restrict__ z, const float* __restrict__ x, const float* __restrict__ w,
    const float* __restrict__ bias, const float* __restrict__ add, float* __restrict__ partial, unsigned each, unsigned kind,
    unsigned n, unsigned o, unsigned c) {
    forward_f32<FloatShape<128>>(y, z, x, w, bias, add, partial, each, kind, n, o, c);
}

extern "C" __global__ void __launch_bounds__(128) linear_forward_f32_64(
    float* __restrict__ y, float* __restrict__ z, const float* __restrict__ x, const float* __restrict__ w,
    const float* __restrict__ bias, const float* __restrict__ add, float* __restrict__ partial, unsigned each, unsigned kind,
    unsigned n, unsigned o, unsigned c) {
    forward_f32<FloatShape<64>>(y, z, x, w, bias, add, partial, each, kind, n, o, c);
}

extern "C" __global__ void __launch_bounds__(64) linear_forward_f32_32(
    float* __restrict__ y, float* __restrict__ z, const float* __restrict__ x, const float* __restrict__ w,
    const float* __restrict__ bias, const float* __restrict__ add, float* __restrict__ partial, unsigned each, unsigned kind,
    unsigned n, unsigned o, unsigned c) {
    forward_f32<FloatShape<32>>(y, z, x, w, bias, add, partial, each, kind, n, o, c);
}

extern "C" __global__ void __launch_bounds__(256) linear_backward_input_f32_128(
    float* __restrict__ dx, const float* __restrict__ dy, const float* __restrict__ w, const float* __restrict__ z,
    float* __restrict__ partial, unsigned each, unsigned kind, unsigned accumulate, unsigned n, unsigned o, unsigned c) {
    backward_input_f32<FloatShape<128>>(dx, dy, w, z, partial, each, kind, accumulate, n, o, c);
}

extern "C" __global__ void __launch_bounds__(128) linear_backward_input_f32_64(
    float* __restrict__ dx, const float* __restrict__ dy, const float* __restrict__ w, const float* __restrict__ z,
    float* __restrict__ partial, unsigned each, unsigned kind, unsigned accumulate, unsigned n, unsigned o, unsigned c) {
    backward_input_f32<FloatShape<64>>(dx, dy, w, z, partial, each, kind, accumulate, n, o, c);
}

extern "C" __global__ void __launch_bounds__(64) linear_backward_input_f32_32(
    float* __restrict__ dx, const float* __restrict__ dy, const float* __restrict__ w, const float* __restrict__ z,
    float* __restrict__ partial, unsigned each, unsigned kind, unsigned accumulate, unsigned n, unsigned o, unsigned c) {
    backward_input_f32<FloatShape<32>>(dx, dy, w, z, partial, each, kind, accumulate, n, o, c);
}

extern "C" __global__ void __launch_bounds__(256) linear_backward_weight_f32_128(
    float* __restrict__ dw, float* __restrict__ db, const float* __restrict__ dy, const float* __restrict__ x,
    float* __restrict__ partial, unsigned each, unsigned n, unsigned o, unsigned c) {
    backward_weight_f32<FloatShape<128>>(dw, db, dy, x, partial, each, n, o, c);
}

extern "C" __global__ void __launch_bounds__(128) linear_backward_weight_f32_64(
    float* __restrict__ dw, float* __restrict__ db, const float* __restrict__ dy, const float* __restrict__ x,
    float* __restrict__ partial, unsigned each, unsigned n, unsigned o, unsigned c) {
    backward_weight_f32<FloatShape<64>>(dw, db, dy, x, partial, each, n, o, c);
}

extern "C" __global__ void __launch_bounds__(64) linear_backward_weight_f32_32(
    float* __restrict__ dw, float* __restrict__ db, const float* __restrict__ dy, const float* __restrict__ x,
    float* __restrict__ partial, unsigned each, unsigned n, unsigned o, unsigned c) {
    backward_weight_f32<FloatShape<32>>(dw, db, dy, x, partial, each, n, o, c);
}
#endif
