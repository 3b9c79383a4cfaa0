// Barycentric weights of r Chebyshev nodes at each t (Berrut and Trefethen 2004), in pairs of f32 and rounded once: t - t_k cancels near a
// node, where the weights must come out as 0 and 1.
//
// One thread covers one row. Nodes and signs are pairs (r each) from the host. Bytes moved: 4*r a row.
#include "common.cuh"
#include "pair.cuh"

// c_k/(t - t_k), the denominator not zero.
__device__ __forceinline__ Pair term(float t, Pair node, Pair sign) {
    return sign * reciprocal(-node + t);
}

extern "C" __global__ void __launch_bounds__(128) chebyshev_weights(
    float* __restrict__ weights, const float* __restrict__ t, const float* __restrict__ nodes,
    const float* __restrict__ signs, unsigned rows, unsigned r) {
    unsigned row = (unsigned)thread_index();
    if (row >= rows) return;
    float time = t[row];
    const Pair *node = (const Pair*)nodes, *sign = (const Pair*)signs;
    Pair sum = pair(0.0f, 0.0f);
    unsigned hit = r;
    for (unsigned k = 0; k < r; k++) {
        if (node[k].high == time && node[k].low == 0.0f) hit = k;
        else sum = sum + term(time, node[k], sign[k]);
    }
    Pair inverse = reciprocal(sum);
    float* w = weights + (unsigned long long)row * r;
    for (unsigned k = 0; k < r; k++) {
        w[k] = hit < r ? (k == hit ? 1.0f : 0.0f) : (term(time, node[k], sign[k]) * inverse).high;
    }
}
