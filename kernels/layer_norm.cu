// Layer norm over the last dimension, fused with its affine map, adaLN modulation and a residual.
//
//   x^ = (x - mean)*rstd, rstd = 1/sqrt(var + 1e-6);  n = x^*gamma + beta;  y = [residual +] n*(1 + scale) + shift
//   dshift = dy, dscale = dy*n, dn = dy*(1 + scale), dx^ = dn*gamma, dx = rstd*(dx^ - mean(dx^) - x^*mean(dx^*x^)) [+ add]
//
// Rows of up to 1024 columns, a multiple of a pack, are read once, 16 bytes a lane, and held in registers: a block of 8 warps
// covers 32 rows forward (4 a warp), 16 backward; the table goes through shared memory in strips (`modulation.cuh`). Other rows go
// element by element, a warp for each. Bytes moved per element: forward 2*sizeof(floatX), backward 3, one more with a residual
// or an addend; the table once a block.
// Gradients of table, gamma and beta read dy and x again; nothing of N rows is kept in between. With A_j = sum of w_j*dy and
// B_j = sum of w_j*dy*x^ over the rows, where w is the weight of node j or 1:
//   dshift_j = A_j, dscale_j = gamma*B_j + beta*A_j, dbeta += A + sum of scale_j*A_j, dgamma += B + sum of scale_j*B_j
#include "modulation.cuh"

static const unsigned FORWARD_ROWS = 4, BACKWARD_ROWS = 2; // of a warp

struct Affine {
    const floatX *gamma, *beta; // null: none
    // n from x^, for a pack of columns.
    __device__ __forceinline__ void read_at(float (&scale)[EACH], float (&shift)[EACH], unsigned column, bool vector) const {
        read_any(scale, gamma + column, vector);
        read_any(shift, beta + column, vector);
    }
};

// Whether rows are held in registers.
__device__ __forceinline__ bool held(unsigned c) { return c % EACH == 0 && c <= HELD * STRIP; }

// Reads what a lane holds of ROWS rows from `row` on; what is not there is 0.
template <unsigned ROWS>
__device__ __forceinline__ void hold(Pack<floatX> (&packs)[ROWS][HELD], const floatX* x, unsigned row, unsigned rows, unsigned c) {
    unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (unsigned i = 0; i < ROWS; i++) {
#pragma unroll
        for (unsigned k = 0; k < HELD; k++) {
            unsigned column = k * STRIP + lane * EACH;
            packs[i][k].words = make_uint4(0, 0, 0, 0);
            if (row + i < rows && column < c) packs[i][k] = load(x + (unsigned long long)(row + i) * c + column);
        }
    }
}

// Moves what is held by one strip, the first to the end.
template <unsigned ROWS> __device__ __forceinline__ void turn(Pack<floatX> (&packs)[ROWS][HELD]) {
#pragma unroll
    for (unsigned i = 0; i < ROWS; i++) {
        uint4 first = packs[i][0].words;
#pragma unroll
        for (unsigned k = 1; k < HELD; k++) packs[i][k - 1].words = packs[i][k].words;
        packs[i][HELD - 1].words = first;
    }
}
template <unsigned ROWS> __device__ __forceinline__ void turn(float (&x)[ROWS][HELD][EACH]) {
#pragma unroll
    for (unsigned i = 0; i < ROWS; i++) {
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) {
            float first = x[i][0][j];
#pragma unroll
            for (unsigned k = 1; k < HELD; k++) x[i][k - 1][j] = x[i][k][j];
            x[i][HELD - 1][j] = first;
        }
    }
}

// One row, element by element: the plain way.
__device__ __forceinline__ void plain_forward(
    floatX* y, float* stats, const floatX* x, const Affine& affine, const floatX* residual, const Modulation& m, unsigned row,
    unsigned c) {
    unsigned lane = threadIdx.x % 32;
    unsigned long long start = (unsigned long long)row * c;
    float inverse = reciprocal((float)c), sum = 0.0f, squares = 0.0f;
#pragma unroll 1
    for (unsigned i = lane; i < c; i += 32) sum += to_float(x[start + i]);
    float mean = warp_sum(sum) * inverse;
#pragma unroll 1
    for (unsigned i = lane; i < c; i += 32) {
        float deviation = to_float(x[start + i]) - mean;
        squares = fmaf(deviation, deviation, squares);
    }
    float rstd = rsqrtf(warp_sum(squares) * inverse + 1e-6f);
    if (lane == 0) *(float2*)&stats[2 * (unsigned long long)row] = make_float2(mean, rstd);
#pragma unroll 1
    for (unsigned i = lane; i < c; i += 32) {
        float n = (to_float(x[start + i]) - mean) * rstd;
        if (affine.gamma) n = fmaf(n, to_float(affine.gamma[i]), to_float(affine.beta[i]));
        if (m.columns) n = fmaf(n, 1.0f + modulation_at(m, row, c + i), modulation_at(m, row, i));
        if (residual) n += to_float(residual[start + i]);
        y[start + i] = from_float<floatX>(n);
    }
    __syncwarp(); // lanes without a last column wait for the others, before the next row's sums
}

// gamma, beta, residual may be null; `columns` 0 means no modulation. stats: (N, 2) mean, rstd.
extern "C" __global__ void __launch_bounds__(256) layer_norm_forward(
    floatX* __restrict__ y, float* __restrict__ stats, const floatX* __restrict__ x, const floatX* __restrict__ gamma,
    const floatX* __restrict__ beta, const floatX* __restrict__ residual, const floatX* __restrict__ table,
    const float* __restrict__ nodes, const float* __restrict__ weights, unsigned columns, unsigned share, unsigned r,
    unsigned offset, unsigned rows, unsigned c) {
    const unsigned ROWS = FORWARD_ROWS;
    __shared__ Stages<2, ROWS> stages;
    Modulation m = {table, nodes, weights, columns, share, r, offset};
    Affine affine = {gamma, beta};
    unsigned first = blockIdx.x * WARPS * ROWS, row = first + threadIdx.x / 32 * ROWS, lane = threadIdx.x % 32;
    if (!held(c)) {
#pragma unroll 1
        for (unsigned i = 0; i < ROWS && row + i < rows; i++) plain_forward(y, stats, x, affine, residual, m, row + i, c);
        return;
    }
    Interpolation<2, ROWS> interpolation(stages, m, first, rows, c, 0, (c + STRIP - 1) / STRIP);
    bool vector = aligned(gamma) && aligned(beta);
    Pack<floatX> packs[ROWS][HELD];
    hold(packs, x, row, rows, c);
    float mean[ROWS], rstd[ROWS], inverse = reciprocal((float)c);
#pragma unroll
    for (unsigned i = 0; i < ROWS; i++) {
        float sum = 0.0f, squares = 0.0f;
#pragma unroll
        for (unsigned k = 0; k < HELD; k++) {
#pragma unroll
            for (unsigned j = 0; j < EACH; j++) sum += to_float(packs[i][k].values[j]);
        }
        mean[i] = warp_sum(sum) * inverse;
#pragma unroll
        for (unsigned k = 0; k < HELD; k++) {
            if (k * STRIP + lane * EACH < c) {
#pragma unroll
                for (unsigned j = 0; j < EACH; j++) {
                    float deviation = to_float(packs[i][k].values[j]) - mean[i];
                    squares = fmaf(deviation, deviation, squares);
                }
            }
        }
        rstd[i] = rsqrtf(warp_sum(squares) * inverse + 1e-6f);
        if (lane == 0 && row + i < rows) *(float2*)&stats[2 * (unsigned long long)(row + i)] = make_float2(mean[i], rstd[i]);
    }
#pragma unroll 1
    for (unsigned k = 0; k * STRIP < c; k++) { // the whole block; what is held goes round: registers cannot be indexed
        unsigned column = k * STRIP + lane * EACH;
        float values[2][ROWS][EACH]; // shift, scale
        if (weights) interpolation.next(values);
        else if (columns) indexed(values, m, row, rows, c, column);
        if (column < c) {
            float factor[EACH], addend[EACH];
            if (gamma) affine.read_at(factor, addend, column, vector);
#pragma unroll
            for (unsigned i = 0; i < ROWS; i++) {
                if (row + i >= rows) break;
                unsigned long long at = (unsigned long long)(row + i) * c + column;
                float n[EACH], rest[EACH];
                if (residual) read(rest, residual + at);
#pragma unroll
                for (unsigned j = 0; j < EACH; j++) {
                    n[j] = (to_float(packs[i][0].values[j]) - mean[i]) * rstd[i];
                    if (gamma) n[j] = fmaf(n[j], factor[j], addend[j]);
                    if (columns) n[j] = fmaf(n[j], 1.0f + values[1][i][j], values[0][i][j]);
                    if (residual) n[j] += rest[j];
                }
                write(y + at, n);
            }
        }
        turn(packs);
    }
}

// One row, element by element: the plain way. m: the scale.
__device__ __forceinline__ void plain_backward(
    floatX* dx, const floatX* dy, const floatX* x, const float* stats, const floatX* gamma, const floatX* add,
    const Modulation& m, unsigned row, unsigned c) {
    unsigned lane = threadIdx.x % 32;
    unsigned long long start = (unsigned long long)row * c;
    float2 saved = *(const float2*)&stats[2 * (unsigned long long)row];
    float mean = saved.x, rstd = saved.y, inverse = reciprocal((float)c), sum = 0.0f, along = 0.0f;
#pragma unroll 1
    for (unsigned pass = 0; pass < 2; pass++) {
    #pragma unroll 1
    for (unsigned i = lane; i < c; i += 32) {
            float normal = (to_float(x[start + i]) - mean) * rstd;
            float d = to_float(dy[start + i]) * (1.0f + (m.columns ? modulation_at(m, row, i) : 0.0f));
            if (gamma) d *= to_float(gamma[i]);
            if (pass == 0) {
                sum += d;
                along = fmaf(d, normal, along);
            } else {
                float result = rstd * (d - sum - normal * along);
                if (add) result += to_float(add[start + i]);
                dx[start + i] = from_float<floatX>(result);
            }
        }
        if (pass == 0) sum = warp_sum(sum) * inverse, along = warp_sum(along) * inverse;
    }
    __syncwarp(); // as above
}

// gamma, add may be null.
extern "C" __global__ void __launch_bounds__(256) layer_norm_backward(
    floatX* __restrict__ dx, const floatX* __restrict__ dy, const floatX* __restrict__ x, const float* __restrict__ stats,
    const floatX* __restrict__ gamma, const floatX* __restrict__ add, const floatX* __restrict__ table,
    const float* __restrict__ nodes, const float* __restrict__ weights, unsigned columns, unsigned share, unsigned r,
    unsigned offset, unsigned rows, unsigned c) {
    const unsigned ROWS = BACKWARD_ROWS;
    __shared__ Stages<1, ROWS> stages;
    Modulation m = {table, nodes, weights, columns, share, r, offset + c}; // the scale
    unsigned first = blockIdx.x * WARPS * ROWS, row = first + threadIdx.x / 32 * ROWS, lane = threadIdx.x % 32;
    if (!held(c)) {
#pragma unroll 1
        for (unsigned i = 0; i < ROWS && row + i < rows; i++) plain_backward(dx, dy, x, stats, gamma, add, m, row + i, c);
        return;
    }
    Interpolation<1, ROWS> interpolation(stages, m, first, rows, c, 0, (c + STRIP - 1) / STRIP);
    bool vector = aligned(gamma);
    Pack<floatX> packs[ROWS][HELD];
    hold(packs, x, row, rows, c);
    float mean[ROWS], rstd[ROWS], sum[ROWS], along[ROWS], d[ROWS][HELD][EACH], inverse = reciprocal((float)c);
#pragma unroll
    for (unsigned i = 0; i < ROWS; i++) {
        float2 saved = make_float2(0.0f, 0.0f);
        if (row + i < rows) saved = *(const float2*)&stats[2 * (unsigned long long)(row + i)];
        mean[i] = saved.x, rstd[i] = saved.y, sum[i] = 0.0f, along[i] = 0.0f;
    }
    // What is held goes round as it is used, so that registers are not indexed: after HELD turns it lies as before.
#pragma unroll 1
    for (unsigned k = 0; k < HELD; k++) {
        unsigned column = k * STRIP + lane * EACH;
        if (k * STRIP < c) { // the whole block
            float scale[1][ROWS][EACH], g[ROWS][EACH], factor[EACH];
#pragma unroll
            for (unsigned i = 0; i < ROWS; i++) {
#pragma unroll
                for (unsigned j = 0; j < EACH; j++) g[i][j] = 0.0f;
                if (row + i < rows && column < c) read(g[i], dy + (unsigned long long)(row + i) * c + column);
            }
            if (weights) interpolation.next(scale);
            else if (columns) indexed(scale, m, row, rows, c, column);
            if (gamma && column < c) read_any(factor, gamma + column, vector);
#pragma unroll
            for (unsigned i = 0; i < ROWS; i++) {
#pragma unroll
                for (unsigned j = 0; j < EACH; j++) {
                    float normal = (to_float(packs[i][0].values[j]) - mean[i]) * rstd[i];
                    if (columns) g[i][j] *= 1.0f + scale[0][i][j];
                    if (gamma) g[i][j] *= factor[j];
                    d[i][0][j] = g[i][j];
                    if (column < c) {
                        sum[i] += g[i][j];
                        along[i] = fmaf(g[i][j], normal, along[i]);
                    }
                }
            }
        }
        turn(packs);
        turn(d);
    }
#pragma unroll
    for (unsigned i = 0; i < ROWS; i++) sum[i] = warp_sum(sum[i]) * inverse, along[i] = warp_sum(along[i]) * inverse;
#pragma unroll
    for (unsigned k = 0; k < HELD; k++) {
        unsigned column = k * STRIP + lane * EACH;
        if (column < c) {
#pragma unroll
            for (unsigned i = 0; i < ROWS; i++) {
                if (row + i >= rows) break;
                unsigned long long at = (unsigned long long)(row + i) * c + column;
                float result[EACH], addend[EACH];
                if (add) read(addend, add + at);
#pragma unroll
                for (unsigned j = 0; j < EACH; j++) {
                    float normal = (to_float(packs[i][k].values[j]) - mean[i]) * rstd[i];
                    result[j] = rstd[i] * (d[i][k][j] - sum[i] - normal * along[i]);
                    if (add) result[j] += addend[j];
                }
                write(dx + at, result);
            }
        }
    }
}

// partials (slices, 2, r + plain, c): A and B over slices of `each` rows, for dy*(1 + scale) where the scale has an index; such a table
// has r = 0 here, and `columns` 0 means no index.
extern "C" __global__ void __launch_bounds__(64, 8) layer_norm_sums(
    float* __restrict__ partials, const floatX* __restrict__ dy, const floatX* __restrict__ x, const float* __restrict__ stats,
    const floatX* __restrict__ table, const float* __restrict__ weights, unsigned columns, unsigned share, unsigned r,
    unsigned plain, unsigned offset, unsigned rows, unsigned each, unsigned c) {
    __shared__ Tiles<2> tiles;
    bool vector = columns % EACH == 0 && offset % EACH == 0;
    weighted_sums(partials, tiles, weights, rows, each, r, plain, c, [=](float (&out)[2][EACH], unsigned row, unsigned column) {
        unsigned long long at = (unsigned long long)row * c + column;
        float2 saved = *(const float2*)&stats[2 * (unsigned long long)row];
        const floatX* scale_at = table + (unsigned long long)(row / share) * columns + offset + c + column;
        if (c % EACH == 0) {
            float scale[EACH];
            read(out[0], dy + at);
            read(out[1], x + at);
            if (columns) read_any(scale, scale_at, vector);
#pragma unroll
            for (unsigned j = 0; j < EACH; j++) {
                if (columns) out[0][j] *= 1.0f + scale[j];
                out[1][j] = out[0][j] * ((out[1][j] - saved.x) * saved.y);
            }
        } else {
#pragma unroll
            for (unsigned j = 0; j < EACH; j++) {
                if (column + j < c) {
                    out[0][j] = to_float(dy[at + j]) * (columns ? 1.0f + to_float(scale_at[j]) : 1.0f);
                    out[1][j] = out[0][j] * ((to_float(x[at + j]) - saved.x) * saved.y);
                }
            }
        }
    });
}

static const unsigned FINISH_LINES = 32; // lines that a block of 256 threads adds at a time, for 32 columns

// The gradients from the sums of the slices. dtable (r, columns) may be null, and so may dgamma and dbeta, to which is
// added.
extern "C" __global__ void __launch_bounds__(256) layer_norm_gradients(
    float* __restrict__ dtable, float* __restrict__ dgamma, float* __restrict__ dbeta, const float* __restrict__ partials,
    const floatX* __restrict__ gamma, const floatX* __restrict__ beta, const float* __restrict__ nodes, unsigned slices,
    unsigned r, unsigned columns, unsigned offset, unsigned c) {
    __shared__ float first[FINISH_LINES][33], second[FINISH_LINES][33];
    unsigned quad = threadIdx.x % 8, slot = threadIdx.x / 8, column = blockIdx.x * 32 + quad * 4;
    unsigned lines = r + (dgamma ? 1 : 0), own = blockIdx.x * 32 + threadIdx.x; // the column that a thread of the first warp adds
    bool vector = c % 4 == 0 && columns % 4 == 0 && offset % 4 == 0;
    float gamma_sum = 0.0f, beta_sum = 0.0f;
    for (unsigned base = 0; base < lines; base += FINISH_LINES) {
        unsigned line = base + slot;
        if (line < lines && column < c) {
            float sums[2][4];
            add_slices(sums, partials, slices, lines, line, c, column);
            float dscale[4];
#pragma unroll
            for (unsigned j = 0; j < 4; j++) {
                first[slot][quad * 4 + j] = sums[0][j];
                second[slot][quad * 4 + j] = sums[1][j];
                bool inside = gamma && column + j < c;
                dscale[j] = inside ? fmaf(to_float(gamma[column + j]), sums[1][j], to_float(beta[column + j]) * sums[0][j]) : sums[1][j];
            }
            if (dtable && line < r) {
                float* to = dtable + (unsigned long long)line * columns + offset + column;
                if (vector) {
                    write(to, sums[0]);
                    write(to + c, dscale);
                } else {
#pragma unroll
                    for (unsigned j = 0; j < 4; j++) {
                        if (column + j < c) to[j] = sums[0][j], to[c + j] = dscale[j];
                    }
                }
            }
        }
        __syncthreads();
        if (dgamma && threadIdx.x < 32 && own < c) {
            for (unsigned k = 0; k < FINISH_LINES && base + k < lines; k++) {
                float scale = base + k < r ? nodes[(unsigned long long)(base + k) * columns + offset + c + own] : 1.0f;
                beta_sum = fmaf(scale, first[k][threadIdx.x], beta_sum);
                gamma_sum = fmaf(scale, second[k][threadIdx.x], gamma_sum);
            }
        }
        __syncthreads();
    }
    if (dgamma && threadIdx.x < 32 && own < c) {
        dgamma[own] += gamma_sum;
        dbeta[own] += beta_sum;
    }
}

// dtable (G, columns), each row from the `share` rows that used it: a warp for every 32 packs of a row, or 32 columns.
extern "C" __global__ void __launch_bounds__(256, 4) layer_norm_index(
    floatX* __restrict__ dtable, const floatX* __restrict__ dy, const floatX* __restrict__ x, const float* __restrict__ stats,
    const floatX* __restrict__ gamma, const floatX* __restrict__ beta, unsigned groups, unsigned share, unsigned columns,
    unsigned offset, unsigned c) {
    bool vector = c % EACH == 0;
    Place at = place(c, vector ? EACH : 1);
    if (at.row >= groups || at.column >= c) return;
    unsigned row = at.row * share;
    unsigned long long from = (unsigned long long)row * c + at.column;
    floatX* to = dtable + (unsigned long long)at.row * columns + offset + at.column;
    if (vector) {
        float shift[EACH], scale[EACH], factor[EACH], addend[EACH], g[EACH], normal[EACH];
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) shift[j] = 0.0f, scale[j] = 0.0f;
        if (gamma) {
            read_any(factor, gamma + at.column, aligned(gamma));
            read_any(addend, beta + at.column, aligned(beta));
        }
        for (unsigned i = 0; i < share; i++) {
            float2 saved = *(const float2*)&stats[2 * (unsigned long long)(row + i)];
            read(g, dy + from + (unsigned long long)i * c);
            read(normal, x + from + (unsigned long long)i * c);
#pragma unroll
            for (unsigned j = 0; j < EACH; j++) {
                float n = (normal[j] - saved.x) * saved.y;
                shift[j] += g[j];
                scale[j] = fmaf(g[j], gamma ? fmaf(n, factor[j], addend[j]) : n, scale[j]);
            }
        }
        bool whole = columns % EACH == 0 && offset % EACH == 0;
        write_any(to, shift, whole);
        write_any(to + c, scale, whole);
    } else {
        float shift = 0.0f, scale = 0.0f;
#pragma unroll 1
        for (unsigned i = 0; i < share; i++) {
            float2 saved = *(const float2*)&stats[2 * (unsigned long long)(row + i)];
            float g = to_float(dy[from + (unsigned long long)i * c]);
            float n = (to_float(x[from + (unsigned long long)i * c]) - saved.x) * saved.y;
            if (gamma) n = fmaf(n, to_float(gamma[at.column]), to_float(beta[at.column]));
            shift += g;
            scale = fmaf(g, n, scale);
        }
        to[0] = from_float<floatX>(shift);
        to[c] = from_float<floatX>(scale);
    }
}
