// The flow path: data at t = 1, noise at t = 0.  x_t = (1 - t)*noise + t*data.
//
// interpolate: one thread covers four neighbouring columns of one row: one Philox block. Noise never reaches memory. Bytes
// moved per element: 4 read (data, once for all replicas from the cache) and sizeof(floatX) written.
// draw_times: one thread per time.
#include "common.cuh"
#include "philox.cuh"

// Rows are numbered as in src/ops/flow_path.rs: row i is sample i mod B, replica i div B.
extern "C" __global__ void __launch_bounds__(256) interpolate(
    floatX* __restrict__ x_t, const float* __restrict__ data, const float* __restrict__ t, unsigned key0, unsigned key1,
    unsigned long long step, const unsigned long long* __restrict__ counter, unsigned long long first, unsigned rows,
    unsigned samples, unsigned share, unsigned d) {
    unsigned per_row = (d + 3) / 4;
    unsigned long long at = thread_index();
    unsigned long long row = at / per_row;
    if (row >= rows) return;
    unsigned column = (unsigned)(at % per_row) * 4;
    unsigned sample = (unsigned)row % samples, replica = (unsigned)row / samples;
    Philox draw = philox_at(key0, key1, step, counter);
    float noise[4];
    normals(noise, philox(draw, first + sample, replica, column / 4));
    float time = t[row / share];
    const float* y = data + (unsigned long long)sample * d + column;
    floatX* x = x_t + row * d + column;
#pragma unroll
    for (unsigned j = 0; j < 4; j++) {
        if (column + j < d) x[j] = from_float<floatX>((1.0f - time) * noise[j] + time * y[j]);
    }
}

// kind: 0 uniform, 1 stratified (a: times in the global batch, b: samples in it), 2 logit-normal (mean, deviation).
extern "C" __global__ void __launch_bounds__(256) draw_times(
    float* __restrict__ t, unsigned key0, unsigned key1, unsigned long long step,
    const unsigned long long* __restrict__ counter, unsigned long long first, unsigned times, unsigned samples,
    unsigned share, unsigned kind, unsigned long long total, unsigned long long global_samples, float mean, float deviation,
    float low, float high) {
    unsigned g = (unsigned)thread_index();
    if (g >= times) return;
    unsigned row = g * share;
    unsigned long long sample = first + row % samples;
    unsigned replica = row / samples;
    Philox draw = philox_at(key0, key1, step, counter);
    uint4 words = philox(draw, sample, replica, 0);
    float u = unit(words.x);
    if (kind == 1) {
        double stratum = (double)((replica * global_samples + sample) / share);
        double rotation = unit(philox(draw, 0xffffffffull, 0, 0).x);
        double x = (stratum + (double)u) / (double)total + rotation;
        u = (float)(x - floor(x));
    } else if (kind == 2) {
        float z[4];
        normals(z, words);
        u = 1.0f / (1.0f + expf(-(mean + deviation * z[0])));
    }
    t[g] = low + (high - low) * u;
}
