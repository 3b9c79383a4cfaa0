// A linear layer and the gated residual behind it, in one kernel: y = h + gate*(x*w^T + bias). `linear_gate.cuh` has the epilogue; tiles,
// arithmetic and parts of K are those of the linear layer's forward (linear.cu), whose kernels stay as small as they are.
//
// x (N, C), w (O, C), bias (O), h, y, u (N, O); u, which may be null, is x*w^T + bias. The table has `columns`, the gates begin at `offset`.
#include "linear_bodies.cuh"
#include "linear_gate.cuh"

extern "C" __global__ void __launch_bounds__(128) linear_gated_128x128(
    floatX* __restrict__ y, floatX* __restrict__ u, const floatX* __restrict__ x, const floatX* __restrict__ w,
    const floatX* __restrict__ bias, const floatX* __restrict__ h, const floatX* __restrict__ table,
    const float* __restrict__ nodes, const float* __restrict__ weights, float* __restrict__ partial, unsigned each,
    unsigned columns, unsigned share, unsigned r, unsigned offset, unsigned n, unsigned o, unsigned c) {
    Modulation gate = {table, nodes, weights, columns, share, r, offset};
    Gated finish = {y, u, bias, h, gate, o};
    Operand<floatX> a = {x, n, c}, b = {w, o, c};
    on_tensor_cores<Tile128x128, true, true>(a, b, c, partial, each, nullptr, finish);
}

extern "C" __global__ void __launch_bounds__(128) linear_gated_128x64(
    floatX* __restrict__ y, floatX* __restrict__ u, const floatX* __restrict__ x, const floatX* __restrict__ w,
    const floatX* __restrict__ bias, const floatX* __restrict__ h, const floatX* __restrict__ table,
    const float* __restrict__ nodes, const float* __restrict__ weights, float* __restrict__ partial, unsigned each,
    unsigned columns, unsigned share, unsigned r, unsigned offset, unsigned n, unsigned o, unsigned c) {
    Modulation gate = {table, nodes, weights, columns, share, r, offset};
    Gated finish = {y, u, bias, h, gate, o};
    Operand<floatX> a = {x, n, c}, b = {w, o, c};
    on_tensor_cores<Tile128x64, true, true>(a, b, c, partial, each, nullptr, finish);
}

extern "C" __global__ void __launch_bounds__(64) linear_gated_64x64(
    floatX* __restrict__ y, floatX* __restrict__ u, const floatX* __restrict__ x, const floatX* __restrict__ w,
    const floatX* __restrict__ bias, const floatX* __restrict__ h, const floatX* __restrict__ table,
    const float* __restrict__ nodes, const float* __restrict__ weights, float* __restrict__ partial, unsigned each,
    unsigned columns, unsigned share, unsigned r, unsigned offset, unsigned n, unsigned o, unsigned c) {
    Modulation gate = {table, nodes, weights, columns, share, r, offset};
    Gated finish = {y, u, bias, h, gate, o};
    Operand<floatX> a = {x, n, c}, b = {w, o, c};
    on_tensor_cores<Tile64x64, true, true>(a, b, c, partial, each, nullptr, finish);
}

extern "C" __global__ void __launch_bounds__(64, 5) linear_gated_any(
    floatX* __restrict__ y, floatX* __restrict__ u, const floatX* __restrict__ x, const floatX* __restrict__ w,
    const floatX* __restrict__ bias, const floatX* __restrict__ h, const floatX* __restrict__ table,
    const float* __restrict__ nodes, const float* __restrict__ weights, float* __restrict__ partial, unsigned each,
    unsigned columns, unsigned share, unsigned r, unsigned offset, unsigned n, unsigned o, unsigned c) {
    Modulation gate = {table, nodes, weights, columns, share, r, offset};
    Gated finish = {y, u, bias, h, gate, o};
    Operand<floatX> a = {x, n, c}, b = {w, o, c};
    on_tensor_cores<TileAny, true, true>(a, b, c, partial, each, nullptr, finish);
}

// Adds the parts of K, as linear_forward_sum.
extern "C" __global__ void __launch_bounds__(256, 4) linear_gated_sum(
    floatX* __restrict__ y, floatX* __restrict__ u, const floatX* __restrict__ bias, const floatX* __restrict__ h,
    const floatX* __restrict__ table, const float* __restrict__ nodes, const float* __restrict__ weights,
    const float* __restrict__ partial, unsigned parts, unsigned columns, unsigned share, unsigned r, unsigned offset, unsigned n,
    unsigned o) {
    Modulation gate = {table, nodes, weights, columns, share, r, offset};
    Gated finish = {y, u, bias, h, gate, o};
    sum_parts(partial, parts, n, o, finish);
}

#if FLOATX == 0
extern "C" __global__ void __launch_bounds__(256) linear_gated_f32_128(
    float* __restrict__ y, float* __restrict__ u, const float* __restrict__ x, const float* __restrict__ w,
    const float* __restrict__ bias, const float* __restrict__ h, const float* __restrict__ table,
    const float* __restrict__ nodes, const float* __restrict__ weights, float* __restrict__ partial, unsigned each,
    unsigned columns, unsigned share, unsigned r, unsigned offset, unsigned n, unsigned o, unsigned c) {
    Modulation gate = {table, nodes, weights, columns, share, r, offset};
    Gated finish = {y, u, bias, h, gate, o};
    Operand<floatX> a = {x, n, c}, b = {w, o, c};
    in_f32<FloatShape<128>, true, true>(a, b, c, partial, each, nullptr, finish);
}

extern "C" __global__ void __launch_bounds__(128) linear_gated_f32_64(
    float* __restrict__ y, float* __restrict__ u, const float* __restrict__ x, const float* __restrict__ w,
    const float* __restrict__ bias, const float* __restrict__ h, const float* __restrict__ table,
    const float* __restrict__ nodes, const float* __restrict__ weights, float* __restrict__ partial, unsigned each,
    unsigned columns, unsigned share, unsigned r, unsigned offset, unsigned n, unsigned o, unsigned c) {
    Modulation gate = {table, nodes, weights, columns, share, r, offset};
    Gated finish = {y, u, bias, h, gate, o};
    Operand<floatX> a = {x, n, c}, b = {w, o, c};
    in_f32<FloatShape<64>, true, true>(a, b, c, partial, each, nullptr, finish);
}

extern "C" __global__ void __launch_bounds__(64) linear_gated_f32_32(
    float* __restrict__ y, float* __restrict__ u, const float* __restrict__ x, const float* __restrict__ w,
    const float* __restrict__ bias, const float* __restrict__ h, const float* __restrict__ table,
    const float* __restrict__ nodes, const float* __restrict__ weights, float* __restrict__ partial, unsigned each,
    unsigned columns, unsigned share, unsigned r, unsigned offset, unsigned n, unsigned o, unsigned c) {
    Modulation gate = {table, nodes, weights, columns, share, r, offset};
    Gated finish = {y, u, bias, h, gate, o};
    Operand<floatX> a = {x, n, c}, b = {w, o, c};
    in_f32<FloatShape<32>, true, true>(a, b, c, partial, each, nullptr, finish);
}
#endif
