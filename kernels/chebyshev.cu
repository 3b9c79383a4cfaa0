// Barycentric weights of r Chebyshev nodes at each t (Berrut and Trefethen 2004), in f64 and rounded once: they must be exact
// where t hits a node, and their quotient loses digits near one.
//
// One thread covers one row. nodes and signs (r each) come from the host. f64 by purpose: r divisions a row, a thousandth of
// a step's work.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(128) chebyshev_weights(
    float* __restrict__ weights, const float* __restrict__ t, const double* __restrict__ nodes,
    const double* __restrict__ signs, unsigned rows, unsigned r) {
    unsigned row = (unsigned)thread_index();
    if (row >= rows) return;
    double time = t[row], sum = 0.0;
    unsigned hit = r;
    for (unsigned k = 0; k < r; k++) {
        if (nodes[k] == time) hit = k;
        sum += signs[k] / (time - nodes[k]);
    }
    float* w = weights + (unsigned long long)row * r;
    for (unsigned k = 0; k < r; k++) {
        w[k] = hit < r ? (k == hit ? 1.0f : 0.0f) : (float)(signs[k] / (time - nodes[k]) / sum);
    }
}
