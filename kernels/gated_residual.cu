// Gated residual: y = h + gate*u, or y = gate*u without h. Backward: du = gate*dy; the gate's gradient dy*u goes to its table.
//
// Forward and backward: a block of 8 warps covers 32 rows and one strip of columns (`modulation.cuh`), a warp 4 of the rows, a
// lane 16 bytes of each; widths that are no multiple of a pack go element by element. Shared memory: 9 KiB of nodes, and the
// weights of 32 rows.
// Bytes moved per element: forward 3*sizeof(floatX) (2 without h), backward 2; the strip of the table once a block.
// The table's gradient reads dy and u again and sums their product over rows: no intermediate of N rows. Interpolated: partial sums of
// slices of rows, then those in order; with an index: the rows of a group in order.
#include "modulation.cuh"

static const unsigned ROWS = 4; // of a warp

// finish(at, row, column, gate): for each row and pack of columns of this warp; plain(at, gate) for single elements.
template <class Finish, class Plain>
__device__ __forceinline__ void with_gates(const Modulation& m, unsigned rows, unsigned c, Finish finish, Plain plain) {
    __shared__ Stages stages;
    unsigned strips = (c + STRIP - 1) / STRIP, strip = blockIdx.x % strips, lane = threadIdx.x % 32, column = strip * STRIP + lane * EACH;
    Rows mine(blockIdx.x / strips, ROWS, rows, c);
    if (c % EACH == 0) {
        float gates[ROWS][EACH] = {};
        Interpolation<1, ROWS> interpolation(stages, m, mine, strip, strip + 1);
        if (m.weights) interpolation.add(gates);
        else add_indexed(gates, m, mine, 0, column);
#pragma unroll
        for (unsigned i = 0; i < ROWS; i++) {
            if (mine.has(i) && column < c) finish(mine.at(i, column), gates[i]);
        }
        return;
    }
#pragma unroll 1
    for (unsigned i = 0; i < ROWS && mine.has(i); i++) {
#pragma unroll 1
        for (column = strip * STRIP + lane; column < strip * STRIP + STRIP && column < c; column += 32) {
            plain(mine.at(i, column), modulation_at(m, mine.row + i, column));
        }
    }
}

// h may be null.
extern "C" __global__ void __launch_bounds__(256, 4) gated_residual_forward(
    floatX* __restrict__ y, const floatX* __restrict__ u, const floatX* __restrict__ h, const floatX* __restrict__ table,
    const float* __restrict__ nodes, const float* __restrict__ weights, unsigned columns, unsigned share, unsigned r,
    unsigned offset, unsigned rows, unsigned c) {
    Modulation m = {table, nodes, weights, columns, share, r, offset};
    auto packs = [=](unsigned long long at, const float (&gate)[EACH]) {
        float x[EACH], sum[EACH];
        read(x, u + at);
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) sum[j] = 0.0f;
        if (h) read(sum, h + at);
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) sum[j] = h ? fmaf(gate[j], x[j], sum[j]) : gate[j] * x[j];
        write(y + at, sum);
    };
    with_gates(m, rows, c, packs, [=](unsigned long long at, float gate) {
        float x = to_float(u[at]);
        y[at] = from_float<floatX>(h ? fmaf(gate, x, to_float(h[at])) : gate * x);
    });
}

extern "C" __global__ void __launch_bounds__(256, 4) gated_residual_backward(
    floatX* __restrict__ du, const floatX* __restrict__ dy, const floatX* __restrict__ table, const float* __restrict__ nodes,
    const float* __restrict__ weights, unsigned columns, unsigned share, unsigned r, unsigned offset, unsigned rows,
    unsigned c) {
    Modulation m = {table, nodes, weights, columns, share, r, offset};
    auto packs = [=](unsigned long long at, const float (&gate)[EACH]) {
        float x[EACH];
        read(x, dy + at);
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) x[j] *= gate[j];
        write(du + at, x);
    };
    with_gates(m, rows, c, packs, [=](unsigned long long at, float gate) {
        du[at] = from_float<floatX>(gate * to_float(dy[at]));
    });
}

// partials (slices, r, c): sums over slices of `each` rows of weights*dy*u.
extern "C" __global__ void __launch_bounds__(64, 8) gated_residual_sums(
    float* __restrict__ partials, const floatX* __restrict__ dy, const floatX* __restrict__ u,
    const float* __restrict__ weights, unsigned rows, unsigned each, unsigned r, unsigned c) {
    __shared__ Tiles<1> tiles;
    weighted_sums(partials, tiles, weights, rows, each, r, 0, c, [=](float (&x)[1][EACH], unsigned row, unsigned column) {
        unsigned long long at = (unsigned long long)row * c + column;
        float factor[EACH];
        if (c % EACH == 0) {
            read(x[0], dy + at);
            read(factor, u + at);
#pragma unroll
            for (unsigned j = 0; j < EACH; j++) x[0][j] *= factor[j];
        } else {
#pragma unroll
            for (unsigned j = 0; j < EACH; j++) {
                if (column + j < c) x[0][j] = to_float(dy[at + j]) * to_float(u[at + j]);
            }
        }
    });
}

// dtable (r, columns): its columns from `offset` on are the sums of the slices. One thread per node and four columns.
extern "C" __global__ void __launch_bounds__(256) gated_residual_table(
    float* __restrict__ dtable, const float* __restrict__ partials, unsigned slices, unsigned r, unsigned columns,
    unsigned offset, unsigned c) {
    unsigned quads = (c + 3) / 4, at = (unsigned)thread_index(), node = at / quads, column = at % quads * 4;
    if (node >= r) return;
    float sums[1][4];
    add_slices(sums, partials, slices, r, node, c, column);
    float* to = dtable + (unsigned long long)node * columns + offset + column;
    if (c % 4 == 0 && columns % 4 == 0 && offset % 4 == 0) {
        write(to, sums[0]);
    } else {
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            if (column + j < c) to[j] = sums[0][j];
        }
    }
}

// dtable (G, columns), each row from the `share` rows that used it: a warp for every 32 packs of a row, or 32 columns.
extern "C" __global__ void __launch_bounds__(256) gated_residual_index(
    floatX* __restrict__ dtable, const floatX* __restrict__ dy, const floatX* __restrict__ u, unsigned groups, unsigned share,
    unsigned columns, unsigned offset, unsigned c) {
    bool vector = c % EACH == 0;
    Place at = place(c, vector ? EACH : 1);
    if (at.row >= groups || at.column >= c) return;
    unsigned long long from = (unsigned long long)at.row * share * c + at.column;
    floatX* to = dtable + (unsigned long long)at.row * columns + offset + at.column;
    if (vector) {
        float sum[EACH], x[EACH], factor[EACH];
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) sum[j] = 0.0f;
#pragma unroll 2
        for (unsigned i = 0; i < share; i++) {
            read(x, dy + from + (unsigned long long)i * c);
            read(factor, u + from + (unsigned long long)i * c);
#pragma unroll
            for (unsigned j = 0; j < EACH; j++) sum[j] += x[j] * factor[j];
        }
        write_any(to, sum, columns % EACH == 0 && offset % EACH == 0);
    } else {
        float sum = 0.0f;
#pragma unroll 1
        for (unsigned i = 0; i < share; i++) sum += to_float(dy[from + (unsigned long long)i * c]) * to_float(u[from + (unsigned long long)i * c]);
        *to = from_float<floatX>(sum);
    }
}
