// Sinusoidal timestep embedding: e(t) = [cos(s*t*w), sin(s*t*w)], w_i = 10000^(-i/half), half = h/2; an odd h ends in a zero.
//
// One lane covers the frequencies of 16 bytes of either half, or one where half is no multiple of a pack; a warp stays in one
// row. The frequencies come from the host, where they are computed in double precision. Bytes moved: sizeof(floatX) per element.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) timestep_embedding(
    floatX* __restrict__ e, const float* __restrict__ t, const float* __restrict__ frequencies, unsigned rows, unsigned h,
    float time_scale) {
    unsigned half = h / 2, per_row = half + h % 2;
    bool vector = h % (2 * EACH) == 0;
    Place at = place(per_row, vector ? EACH : 1);
    if (at.row >= rows) return; // whole warps
    floatX* out = e + (unsigned long long)at.row * h;
    float time = t[at.row] * time_scale;
    if (vector) {
        bool active = at.column < half;
        float angle[EACH], sine[EACH], cosine[EACH];
        read_floats(angle, frequencies + at.column, active);
        if (!active) return;
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) sin_cos(time * angle[j], sine[j], cosine[j]);
        write(out + at.column, cosine);
        write(out + half + at.column, sine);
    } else if (at.column < half) {
        float sine, cosine;
        sin_cos(time * frequencies[at.column], sine, cosine);
        out[at.column] = from_float<floatX>(cosine);
        out[half + at.column] = from_float<floatX>(sine);
    } else if (at.column < per_row) {
        out[2 * half] = from_float<floatX>(0.0f);
    }
}
