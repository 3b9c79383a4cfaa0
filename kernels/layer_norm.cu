// Layer norm over the last dimension, fused with its affine map, adaLN modulation and a residual.
//
//   x^ = (x - mean)*rstd, rstd = 1/sqrt(var + 1e-6);  n = x^*gamma + beta;  y = [residual +] n*(1 + scale) + shift
//   dshift = dy, dscale = dy*n, dn = dy*(1 + scale), dx^ = dn*gamma, dx = rstd*(dx^ - mean(dx^) - x^*mean(dx^*x^)) [+ add]
//
// One warp covers one row; mean and variance are taken in two passes over it (the second finds it in the cache), sums in a fixed order.
// Bytes moved per element: forward 2*sizeof(floatX), backward 3. The gradients of table, gamma and beta go through f32
// rows: dmod (N, 2C), and dn*x^, dn through column sums.
#include "modulation.cuh"

// gamma, beta, residual may be null; `columns` 0 means no modulation. stats: (N, 2) mean, rstd.
extern "C" __global__ void __launch_bounds__(256) layer_norm_forward(
    floatX* __restrict__ y, float* __restrict__ stats, const floatX* __restrict__ x, const floatX* __restrict__ gamma,
    const floatX* __restrict__ beta, const floatX* __restrict__ residual, const floatX* __restrict__ table,
    const float* __restrict__ nodes, const float* __restrict__ weights, unsigned columns, unsigned share, unsigned r,
    unsigned offset, unsigned rows, unsigned c) {
    unsigned row = (unsigned)(thread_index() / 32), lane = threadIdx.x % 32;
    if (row >= rows) return; // whole warps
    Modulation modulation = {table, nodes, weights, columns, share, r};
    unsigned long long start = (unsigned long long)row * c;
    float sum = 0.0f;
    for (unsigned i = lane; i < c; i += 32) sum += to_float(x[start + i]);
    float mean = warp_sum(sum) * __fdividef(1.0f, (float)c);
    float squares = 0.0f;
    for (unsigned i = lane; i < c; i += 32) {
        float deviation = to_float(x[start + i]) - mean;
        squares = fmaf(deviation, deviation, squares);
    }
    float rstd = rsqrtf(warp_sum(squares) * __fdividef(1.0f, (float)c) + 1e-6f);
    if (lane == 0) {
        stats[2 * (unsigned long long)row] = mean;
        stats[2 * (unsigned long long)row + 1] = rstd;
    }
    for (unsigned i = lane; i < c; i += 32) {
        float n = (to_float(x[start + i]) - mean) * rstd;
        if (gamma) n = fmaf(n, to_float(gamma[i]), to_float(beta[i]));
        if (columns) {
            float shift = modulation_at(modulation, row, offset + i), scale = modulation_at(modulation, row, offset + c + i);
            n = fmaf(n, 1.0f + scale, shift);
        }
        if (residual) n += to_float(residual[start + i]);
        y[start + i] = from_float<floatX>(n);
    }
}

// add, dmod (N, 2C), dn (N, C) may be null. dmod takes dy and dy*n; dn takes dn, for the gradients of gamma and beta.
extern "C" __global__ void __launch_bounds__(256) layer_norm_backward(
    floatX* __restrict__ dx, float* __restrict__ dmod, float* __restrict__ dn, const floatX* __restrict__ dy,
    const floatX* __restrict__ x, const float* __restrict__ stats, const floatX* __restrict__ gamma,
    const floatX* __restrict__ beta, const floatX* __restrict__ add, const floatX* __restrict__ table,
    const float* __restrict__ nodes, const float* __restrict__ weights, unsigned columns, unsigned share, unsigned r,
    unsigned offset, unsigned rows, unsigned c) {
    unsigned row = (unsigned)(thread_index() / 32), lane = threadIdx.x % 32;
    if (row >= rows) return; // whole warps
    Modulation modulation = {table, nodes, weights, columns, share, r};
    unsigned long long start = (unsigned long long)row * c;
    float mean = stats[2 * (unsigned long long)row], rstd = stats[2 * (unsigned long long)row + 1];
    float sum = 0.0f, along = 0.0f;
    for (unsigned i = lane; i < c; i += 32) {
        float g = to_float(dy[start + i]), normal = (to_float(x[start + i]) - mean) * rstd;
        float scale = columns ? modulation_at(modulation, row, offset + c + i) : 0.0f;
        if (dmod) {
            float n = gamma ? fmaf(normal, to_float(gamma[i]), to_float(beta[i])) : normal;
            dmod[2 * start + i] = g;
            dmod[2 * start + c + i] = g * n;
        }
        float d = g * (1.0f + scale);
        if (dn) dn[start + i] = d;
        if (gamma) d *= to_float(gamma[i]);
        sum += d;
        along = fmaf(d, normal, along);
    }
    float inverse = __fdividef(1.0f, (float)c);
    sum = warp_sum(sum) * inverse;
    along = warp_sum(along) * inverse;
    for (unsigned i = lane; i < c; i += 32) {
        float normal = (to_float(x[start + i]) - mean) * rstd;
        float scale = columns ? modulation_at(modulation, row, offset + c + i) : 0.0f;
        float d = to_float(dy[start + i]) * (1.0f + scale);
        if (gamma) d *= to_float(gamma[i]);
        float result = rstd * (d - sum - normal * along);
        if (add) result += to_float(add[start + i]);
        dx[start + i] = from_float<floatX>(result);
    }
}

// dgamma += sum over rows of dn*x^, dbeta += sum over rows of dn: one thread per column and slice of rows, slices in order.
// partials: (slices, 2, C).
extern "C" __global__ void __launch_bounds__(64) affine_gradient_partial(
    float* __restrict__ partials, const float* __restrict__ dn, const floatX* __restrict__ x,
    const float* __restrict__ stats, unsigned rows, unsigned each, unsigned c) {
    unsigned column = blockIdx.x * 64 + threadIdx.x, slice = blockIdx.y;
    if (column >= c) return;
    unsigned first = slice * each, end = first + each < rows ? first + each : rows;
    float dgamma = 0.0f, dbeta = 0.0f;
    for (unsigned row = first; row < end; row++) {
        unsigned long long at = (unsigned long long)row * c + column;
        float normal = (to_float(x[at]) - stats[2 * (unsigned long long)row]) * stats[2 * (unsigned long long)row + 1];
        dgamma = fmaf(dn[at], normal, dgamma);
        dbeta += dn[at];
    }
    float* out = partials + (unsigned long long)slice * 2 * c + column;
    out[0] = dgamma;
    out[c] = dbeta;
}

extern "C" __global__ void __launch_bounds__(256) affine_gradient_finish(
    float* __restrict__ dgamma, float* __restrict__ dbeta, const float* __restrict__ partials, unsigned slices, unsigned c) {
    unsigned column = (unsigned)thread_index();
    if (column >= c) return;
    float first = 0.0f, second = 0.0f;
    for (unsigned slice = 0; slice < slices; slice++) {
        const float* at = partials + (unsigned long long)slice * 2 * c + column;
        first += at[0];
        second += at[c];
    }
    dgamma[column] += first;
    dbeta[column] += second;
}
