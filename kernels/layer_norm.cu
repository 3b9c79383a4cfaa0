// Layer norm over the last dimension, fused with its affine map, adaLN modulation and a residual.
//
//   x^ = (x - mean)*rstd, rstd = 1/sqrt(var + 1e-6);  n = x^*gamma + beta;  y = [residual +] n*(1 + scale) + shift
//   dshift = dy, dscale = dy*n, dn = dy*(1 + scale), dx^ = dn*gamma, dx = rstd*(dx^ - mean(dx^) - x^*mean(dx^*x^)) [+ add]
//
// Rows whose width is a multiple of a pack are read once, 16 bytes a lane, and kept in shared memory: a block of 8 warps covers 32 rows
// forward (4 a warp), 16 backward, or fewer where they do not fit, with gamma and beta once a block; the table goes through in strips
// (`modulation.cuh`). Wider rows than fit at all are read again for each use. Other widths go element by element, a warp for each row.
// Bytes moved per element: forward 2*sizeof(floatX), backward 3, one more with a residual or an addend; the table once a block. Dynamic
// shared memory: `Shared` in src/ops/layer_norm/cuda.rs.
// Gradients of table, gamma and beta read dy and x again; nothing of N rows is kept in between. With A_j = sum of w_j*dy and
// B_j = sum of w_j*dy*x^ over the rows, where w is the weight of node j or 1:
//   dshift_j = A_j, dscale_j = gamma*B_j + beta*A_j, dbeta += A + sum of scale_j*A_j, dgamma += B + sum of scale_j*B_j
#include "held_rows.cuh"

static const unsigned FORWARD_ROWS = 4, BACKWARD_ROWS = 2; // of a warp, at most

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

// The rows of a block whose width is a multiple of a pack.
template <bool HELD>
__device__ __forceinline__ void forward_rows(
    Stages& stages, floatX* y, float* stats, const floatX* x, const Affine& affine, const floatX* residual, const Modulation& m,
    const Rows& rows) {
    const unsigned ROWS = FORWARD_ROWS;
    unsigned lane = threadIdx.x % 32, c = rows.c;
    Held<HELD, ROWS> held(rows, x, affine, m.r);
    Interpolation<2, ROWS> interpolation(stages, m, rows, 0, (c + STRIP - 1) / STRIP);
    __shared__ float2 moments[WARPS][ROWS]; // mean, rstd: eight registers less
    float inverse = reciprocal((float)c);
    held.wait();
#pragma unroll
    for (unsigned i = 0; i < ROWS; i++) {
        // Every lane must arrive at the shuffles: no lane leaves a loop before the others.
        float values[EACH], sum = 0.0f, squares = 0.0f;
        unsigned end = rows.has(i) ? c : 0;
#pragma unroll 2
        for (unsigned column = lane * EACH; column - lane * EACH < c; column += STRIP) {
            if (column >= end) continue;
            held.read_x(values, i, column);
#pragma unroll
            for (unsigned j = 0; j < EACH; j++) sum += values[j];
        }
        float mean = warp_sum(sum) * inverse;
#pragma unroll 2
        for (unsigned column = lane * EACH; column - lane * EACH < c; column += STRIP) {
            if (column >= end) continue;
            held.read_x(values, i, column);
#pragma unroll
            for (unsigned j = 0; j < EACH; j++) {
                float deviation = values[j] - mean;
                squares = fmaf(deviation, deviation, squares);
            }
        }
        float2 found = make_float2(mean, rsqrtf(warp_sum(squares) * inverse + 1e-6f));
        if (lane == 0) moments[threadIdx.x / 32][i] = found;
        if (lane == 0 && rows.has(i)) *(float2*)&stats[2 * (unsigned long long)(rows.row + i)] = found;
    }
    __syncthreads(); // these, gamma and beta are there
#pragma unroll 1
    for (unsigned strip = 0; strip * STRIP < c; strip++) { // the whole block
        unsigned column = strip * STRIP + lane * EACH;
        float values[ROWS][EACH]; // 1 + scale, then n*(1 + scale), then y
#pragma unroll
        for (unsigned i = 0; i < ROWS * EACH; i++) (&values[0][0])[i] = 1.0f;
        if (m.weights) interpolation.add(values);
        else if (m.columns) add_indexed(values, m, rows, 1, column);
        if (column < c) {
            float factor[EACH], addend[EACH], n[EACH];
            if (affine.gamma) {
                read_any(factor, held.gamma + column, held.vector);
                read_any(addend, held.beta + column, held.vector);
            }
#pragma unroll
            for (unsigned i = 0; i < ROWS; i++) {
                if (!rows.has(i)) break;
                held.read_x(n, i, column);
                float2 moment = moments[threadIdx.x / 32][i];
#pragma unroll
                for (unsigned j = 0; j < EACH; j++) {
                    n[j] = (n[j] - moment.x) * moment.y;
                    values[i][j] *= affine.gamma ? fmaf(n[j], factor[j], addend[j]) : n[j];
                }
            }
        }
        if (m.weights) interpolation.add(values);
        else if (m.columns) add_indexed(values, m, rows, 0, column);
        if (column < c) {
#pragma unroll
            for (unsigned i = 0; i < ROWS; i++) {
                if (!rows.has(i)) break;
                if (residual) {
                    float rest[EACH];
                    read(rest, residual + rows.at(i, column));
#pragma unroll
                    for (unsigned j = 0; j < EACH; j++) values[i][j] += rest[j];
                }
                write(y + rows.at(i, column), values[i]);
            }
        }
    }
}

// gamma, beta, residual may be null; `columns` 0 means no modulation. stats: (N, 2) mean, rstd. `each` rows a warp.
extern "C" __global__ void __launch_bounds__(256, 3) layer_norm_forward(
    floatX* __restrict__ y, float* __restrict__ stats, const floatX* __restrict__ x, const floatX* __restrict__ gamma,
    const floatX* __restrict__ beta, const floatX* __restrict__ residual, const floatX* __restrict__ table,
    const float* __restrict__ nodes, const float* __restrict__ weights, unsigned columns, unsigned share, unsigned r,
    unsigned offset, unsigned each, unsigned rows, unsigned c) {
    __shared__ Stages stages;
    Modulation m = {table, nodes, weights, columns, share, r, offset};
    Affine affine = {gamma, beta};
    Rows mine(blockIdx.x, each, rows, c);
    forward_rows<true>(stages, y, stats, x, affine, residual, m, mine);
}

// As layer_norm_forward, for rows that do not fit or have no whole packs.
extern "C" __global__ void __launch_bounds__(256, 2) layer_norm_forward_any(
    floatX* __restrict__ y, float* __restrict__ stats, const floatX* __restrict__ x, const floatX* __restrict__ gamma,
    const floatX* __restrict__ beta, const floatX* __restrict__ residual, const floatX* __restrict__ table,
    const float* __restrict__ nodes, const float* __restrict__ weights, unsigned columns, unsigned share, unsigned r,
    unsigned offset, unsigned rows, unsigned c) {
    __shared__ Stages stages;
    Modulation m = {table, nodes, weights, columns, share, r, offset};
    Affine affine = {gamma, beta};
    Rows mine(blockIdx.x, FORWARD_ROWS, rows, c);
    if (c % EACH == 0) return forward_rows<false>(stages, y, stats, x, affine, residual, m, mine);
#pragma unroll 1
    for (unsigned i = 0; mine.has(i); i++) plain_forward(y, stats, x, affine, residual, m, mine.row + i, c);
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

// As forward_rows. m: the scale.
template <bool HELD>
__device__ __forceinline__ void backward_rows(
    Stages& stages, floatX* dx, const floatX* dy, const floatX* x, const float* stats, const floatX* gamma, const floatX* add,
    const Modulation& m, const Rows& rows) {
    const unsigned ROWS = BACKWARD_ROWS;
    unsigned lane = threadIdx.x % 32, c = rows.c, strips = (c + STRIP - 1) / STRIP;
    Affine affine = {gamma, nullptr};
    Held<HELD, ROWS> held(rows, x, affine, m.r);
    Interpolation<1, ROWS> interpolation(stages, m, rows, 0, strips, HELD ? 1 : 2);
    // d = dy*(1 + scale)*gamma of a strip; the whole block.
    auto gradient = [&](float (&d)[ROWS][EACH], unsigned column) {
        float g[ROWS][EACH];
#pragma unroll
        for (unsigned i = 0; i < ROWS; i++) {
#pragma unroll
            for (unsigned j = 0; j < EACH; j++) d[i][j] = 1.0f, g[i][j] = 0.0f;
            if (rows.has(i) && column < c) read(g[i], dy + rows.at(i, column));
        }
        if (m.weights) interpolation.add(d);
        else if (m.columns) add_indexed(d, m, rows, 0, column);
        float factor[EACH];
        if (gamma && column < c) read_any(factor, held.gamma + column, held.vector);
#pragma unroll
        for (unsigned i = 0; i < ROWS; i++) {
#pragma unroll
            for (unsigned j = 0; j < EACH; j++) {
                d[i][j] *= g[i][j];
                if (gamma) d[i][j] *= factor[j];
            }
        }
    };
    float mean[ROWS], rstd[ROWS], sum[ROWS] = {}, along[ROWS] = {}, inverse = reciprocal((float)c);
#pragma unroll
    for (unsigned i = 0; i < ROWS; i++) {
        float2 saved = rows.has(i) ? *(const float2*)&stats[2 * (unsigned long long)(rows.row + i)] : make_float2(0.0f, 0.0f);
        mean[i] = saved.x, rstd[i] = saved.y;
    }
    held.wait();
    __syncthreads(); // gamma is there
#pragma unroll 1
    for (unsigned strip = 0; strip < strips; strip++) {
        unsigned column = strip * STRIP + lane * EACH;
        float d[ROWS][EACH], normal[EACH];
        gradient(d, column);
        if (column >= c) continue;
#pragma unroll
        for (unsigned i = 0; i < ROWS; i++) {
            if (!rows.has(i)) break;
            held.read_x(normal, i, column);
            if (HELD) held.write_d(d[i], i, column);
#pragma unroll
            for (unsigned j = 0; j < EACH; j++) {
                sum[i] += d[i][j];
                along[i] = fmaf(d[i][j], (normal[j] - mean[i]) * rstd[i], along[i]);
            }
        }
    }
#pragma unroll
    for (unsigned i = 0; i < ROWS; i++) sum[i] = warp_sum(sum[i]) * inverse, along[i] = warp_sum(along[i]) * inverse;
#pragma unroll 1
    for (unsigned strip = 0; strip < strips; strip++) {
        unsigned column = strip * STRIP + lane * EACH;
        float d[ROWS][EACH], normal[EACH], addend[EACH];
        if (!HELD) gradient(d, column);
        if (column >= c) continue;
#pragma unroll
        for (unsigned i = 0; i < ROWS; i++) {
            if (!rows.has(i)) break;
            held.read_x(normal, i, column);
            if (HELD) held.read_d(d[i], i, column);
            if (add) read(addend, add + rows.at(i, column));
#pragma unroll
            for (unsigned j = 0; j < EACH; j++) {
                d[i][j] = rstd[i] * (d[i][j] - sum[i] - (normal[j] - mean[i]) * rstd[i] * along[i]);
                if (add) d[i][j] += addend[j];
            }
            write(dx + rows.at(i, column), d[i]);
        }
    }
}

// gamma, add may be null; the rest as forward.
extern "C" __global__ void __launch_bounds__(256, 3) layer_norm_backward(
    floatX* __restrict__ dx, const floatX* __restrict__ dy, const floatX* __restrict__ x, const float* __restrict__ stats,
    const floatX* __restrict__ gamma, const floatX* __restrict__ add, const floatX* __restrict__ table,
    const float* __restrict__ nodes, const float* __restrict__ weights, unsigned columns, unsigned share, unsigned r,
    unsigned offset, unsigned each, unsigned rows, unsigned c) {
    __shared__ Stages stages;
    Modulation m = {table, nodes, weights, columns, share, r, offset + c}; // the scale
    Rows mine(blockIdx.x, each, rows, c);
    backward_rows<true>(stages, dx, dy, x, stats, gamma, add, m, mine);
}

extern "C" __global__ void __launch_bounds__(256, 2) layer_norm_backward_any(
    floatX* __restrict__ dx, const floatX* __restrict__ dy, const floatX* __restrict__ x, const float* __restrict__ stats,
    const floatX* __restrict__ gamma, const floatX* __restrict__ add, const floatX* __restrict__ table,
    const float* __restrict__ nodes, const float* __restrict__ weights, unsigned columns, unsigned share, unsigned r,
    unsigned offset, unsigned rows, unsigned c) {
    __shared__ Stages stages;
    Modulation m = {table, nodes, weights, columns, share, r, offset + c};
    Rows mine(blockIdx.x, BACKWARD_ROWS, rows, c);
    if (c % EACH == 0) return backward_rows<false>(stages, dx, dy, x, stats, gamma, add, m, mine);
#pragma unroll 1
    for (unsigned i = 0; mine.has(i); i++) plain_backward(dx, dy, x, stats, gamma, add, m, mine.row + i, c);
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
