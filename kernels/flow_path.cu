// The flow path: data at t = 1, noise at t = 0.  x_t = (1 - t)*noise + t*data.
//
// interpolate: one lane covers 16 bytes of x_t, or the four columns of a Philox block one by one where d is no multiple of a
// pack; a warp stays in one row. Noise never reaches memory. Bytes moved per element: 4 read (data, once for all replicas from
// the cache) and sizeof(floatX) written.
// draw_times: one thread per time.
#include "common.cuh"
#include "philox.cuh"

// Rows are numbered as in src/ops/flow_path.rs: row i is sample i mod B, replica i div B.
extern "C" __global__ void __launch_bounds__(256) interpolate(
    floatX* __restrict__ x_t, const float* __restrict__ data, const float* __restrict__ t, unsigned key0, unsigned key1,
    unsigned long long step, const unsigned long long* __restrict__ counter, unsigned long long first, unsigned rows,
    unsigned samples, unsigned share, unsigned d) {
    bool vector = d % EACH == 0;
    Place at = place(d, vector ? EACH : 4);
    if (at.row >= rows) return; // whole warps
    unsigned sample = at.row % samples, replica = at.row / samples;
    Philox draw = philox_at(key0, key1, step, counter);
    float time = t[at.row / share];
    const float* y = data + (unsigned long long)sample * d + at.column;
    floatX* x = x_t + (unsigned long long)at.row * d + at.column;
    if (vector) {
        bool active = at.column < d;
        float values[EACH], noise[EACH];
        read_floats(values, y, active);
        if (!active) return;
        noise_at(noise, draw, first + sample, replica, at.column);
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) values[j] = (1.0f - time) * noise[j] + time * values[j];
        write(x, values);
    } else if (at.column < d) {
        float noise[4];
        noise_at(noise, draw, first + sample, replica, at.column);
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            if (at.column + j < d) x[j] = from_float<floatX>((1.0f - time) * noise[j] + time * y[j]);
        }
    }
}

// The fraction of (stratum + u)/total + rotation, for u and rotation that are multiples k and k' of 2^-24: exact in integers, of
// which (stratum*2^24 + k + k'*total) mod total*2^24 is left; then divided by total*2^24, to a unit in the last place.
__device__ __forceinline__ float stratified(unsigned stratum, unsigned total, unsigned word, unsigned rotation) {
    unsigned long long circle = (unsigned long long)total << 24;
    unsigned long long at = ((unsigned long long)stratum << 24) + (word >> 8) + (unsigned long long)(rotation >> 8) * total;
    if (at >= circle) at -= circle;
    float dividend = (float)at * (1.0f / 16777216.0f), divisor = (float)total;
    float inverse = __fdividef(1.0f, divisor), quotient = dividend * inverse;
    return fmaf(fmaf(-quotient, divisor, dividend), inverse, quotient);
}

// The time below which the share u of a piecewise linear density lies: the inverse of its integral, which is a parabola in each cell.
// cells (count + 1, 4): the share below, t, the density there, and twice its slope up to the next; the last entry is the end.
__device__ __forceinline__ float quantile(const float* __restrict__ cells, unsigned count, float u) {
    unsigned cell = 0;
    for (unsigned end = count; end - cell > 1;) {
        unsigned middle = cell + (end - cell) / 2;
        bool beyond = cells[4 * middle] <= u;
        cell = beyond ? middle : cell, end = beyond ? end : middle;
    }
    float at[4];
    read(at, cells + 4 * cell);
    float rest = u - at[0];
    if (rest <= 0.0f) return at[1];
    float root = square_root(fmaxf(fmaf(at[2], at[2], at[3] * rest), 0.0f));
    return fminf(at[1] + __fdividef(2.0f * rest, at[2] + root), cells[4 * cell + 5]);
}

// kind: 0 uniform, 1 stratified (total: times in the global batch), 2 logit-normal (mean, deviation), 3 stratified under a density
// (cells, count; null otherwise). Of the stratum of row i only the remainder by total counts: (replica*global + offset + sample)/share,
// where the host has reduced offset.
extern "C" __global__ void __launch_bounds__(256) draw_times(
    float* __restrict__ t, const float* __restrict__ cells, unsigned key0, unsigned key1, unsigned long long step,
    const unsigned long long* __restrict__ counter, unsigned long long first, unsigned times, unsigned samples,
    unsigned share, unsigned kind, unsigned total, unsigned global, unsigned offset, unsigned count, float mean, float deviation,
    float low, float high) {
    unsigned g = (unsigned)thread_index();
    if (g >= times) return;
    unsigned row = g * share;
    unsigned sample = row % samples, replica = row / samples;
    Philox draw = philox_at(key0, key1, step, counter);
    uint4 words = philox(draw, first + sample, replica, 0);
    float u = unit(words.x);
    if (kind == 1 || kind == 3) {
        unsigned stratum = (replica * global + offset + sample) / share % total;
        u = stratified(stratum, total, words.x, philox(draw, 0xffffffffull, 0, 0).x);
    } else if (kind == 2) {
        float z[4];
        normals(z, words);
        u = __fdividef(1.0f, 1.0f + expf(-(mean + deviation * z[0])));
    }
    t[g] = kind == 3 ? quantile(cells, count, u) : low + (high - low) * u;
}
