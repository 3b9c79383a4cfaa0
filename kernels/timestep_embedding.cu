// Sinusoidal timestep embedding: e(t) = [cos(s*t*w), sin(s*t*w)], w_i = 10000^(-i/half), half = h/2; an odd h ends in a zero.
//
// One thread covers one frequency of one row. The frequencies come from the host, where they are computed in double precision.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) timestep_embedding(
    floatX* __restrict__ e, const float* __restrict__ t, const float* __restrict__ frequencies, unsigned rows, unsigned h,
    float time_scale) {
    unsigned half = h / 2, per_row = half + h % 2;
    unsigned long long at = thread_index();
    if (at >= (unsigned long long)rows * per_row) return;
    unsigned row = (unsigned)(at / per_row), i = (unsigned)(at % per_row);
    floatX* out = e + (unsigned long long)row * h;
    if (i == half) {
        out[2 * half] = from_float<floatX>(0.0f);
        return;
    }
    float sine, cosine;
    sin_cos(t[row] * time_scale * frequencies[i], sine, cosine);
    out[i] = from_float<floatX>(cosine);
    out[half + i] = from_float<floatX>(sine);
}
