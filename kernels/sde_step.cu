// One step of a stochastic sampler: x = a*x + b*v + c*noise, all float; nothing is drawn when c is 0.
//
// One lane covers the four columns of a Philox block, in one access where d is a multiple of 4; a warp stays in one row. Noise never reaches memory.
// Bytes moved per element: 12. No shared memory.
#include "common.cuh"
#include "philox.cuh"

// Rows are numbered as in src/ops/flow_path.rs: row i is sample i mod B, replica i div B.
extern "C" __global__ void __launch_bounds__(256) sde_step(
    float* __restrict__ x, const float* __restrict__ v, unsigned key0, unsigned key1, unsigned long long step,
    const unsigned long long* __restrict__ counter, unsigned long long first, unsigned rows, unsigned samples, unsigned d,
    float a, float b, float c) {
    Place where = place(d, 4);
    unsigned row = where.row, column = where.column;
    if (row >= rows || column >= d) return;
    unsigned long long at = (unsigned long long)row * d + column;
    float noise[4] = {};
    if (c != 0.0f) noise_at(noise, philox_at(key0, key1, step, counter), first + row % samples, row / samples, column);
    if (d % 4 == 0) {
        float state[4], slope[4];
        read(state, x + at);
        read(slope, v + at);
#pragma unroll
        for (unsigned j = 0; j < 4; j++) state[j] = fmaf(c, noise[j], fmaf(b, slope[j], a * state[j]));
        write(x + at, state);
    } else {
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            if (column + j < d) x[at + j] = fmaf(c, noise[j], fmaf(b, v[at + j], a * x[at + j]));
        }
    }
}
