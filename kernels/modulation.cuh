// Modulation tables: where layer norm takes shift and scale, and the gated residual its gate. A table has one row per distinct
// condition; rows of the batch are mapped to it by index (row / share) or, with `weights`, as a combination of its r rows.
#pragma once
#include "common.cuh"
#include "reduce.cuh"

// Without weights `table` is (G, columns) of floatX; with them `nodes` is (r, columns) of float and weights (N, r).
struct Modulation {
    const floatX* table;
    const float* nodes;
    const float* weights;
    unsigned columns, share, r;
};

// The value in a column of the table for a row of the batch. The sum goes over the nodes in order.
__device__ __forceinline__ float modulation_at(const Modulation& m, unsigned row, unsigned column) {
    if (!m.weights) return to_float(m.table[(unsigned long long)(row / m.share) * m.columns + column]);
    const float* w = m.weights + (unsigned long long)row * m.r;
    const float* at = m.nodes + column;
    float sum = 0.0f;
    for (unsigned j = 0; j < m.r; j++) sum = fmaf(w[j], at[(unsigned long long)j * m.columns], sum);
    return sum;
}
