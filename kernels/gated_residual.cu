// Gated residual: y = h + gate*u, or y = gate*u without h. Backward: du = gate*dy; the gate's gradient dy*u goes to its table.
//
// One thread per element. Bytes moved per element: forward 3*sizeof(floatX), backward 2 (frozen) or 3.
// The table's gradient has kernels of its own in modulation.cu, which read dgate = dy*u that the backward leaves in f32.
#include "modulation.cuh"

// h may be null.
extern "C" __global__ void __launch_bounds__(256) gated_residual_forward(
    floatX* __restrict__ y, const floatX* __restrict__ u, const floatX* __restrict__ h, const floatX* __restrict__ table,
    const float* __restrict__ nodes, const float* __restrict__ weights, unsigned columns, unsigned share, unsigned r,
    unsigned offset, unsigned rows, unsigned c) {
    unsigned long long at = thread_index();
    if (at >= (unsigned long long)rows * c) return;
    Modulation modulation = {table, nodes, weights, columns, share, r};
    float gate = modulation_at(modulation, (unsigned)(at / c), offset + (unsigned)(at % c));
    float value = to_float(u[at]);
    y[at] = from_float<floatX>(h ? fmaf(gate, value, to_float(h[at])) : gate * value);
}

// u and dgate may be null: a frozen network.
extern "C" __global__ void __launch_bounds__(256) gated_residual_backward(
    floatX* __restrict__ du, float* __restrict__ dgate, const floatX* __restrict__ dy, const floatX* __restrict__ u,
    const floatX* __restrict__ table, const float* __restrict__ nodes, const float* __restrict__ weights, unsigned columns,
    unsigned share, unsigned r, unsigned offset, unsigned rows, unsigned c) {
    unsigned long long at = thread_index();
    if (at >= (unsigned long long)rows * c) return;
    Modulation modulation = {table, nodes, weights, columns, share, r};
    float gate = modulation_at(modulation, (unsigned)(at / c), offset + (unsigned)(at % c));
    float g = to_float(dy[at]);
    du[at] = from_float<floatX>(gate * g);
    if (dgate) dgate[at] = g * to_float(u[at]);
}
