// Label embedding and position rows.
//
// embedding_forward: y[i] = table[chosen[i]], chosen[i] = labels[i mod B], or the null row K where this row's draw says so. A lane
// covers 16 bytes of a row, or one element where a row is no multiple of that. Bytes moved per element: one read, one written.
// embedding_backward: dtable[k] += sum over i with chosen[i] = k of dy[i]. One block for each row of the table and 32 packs of
// columns: its eight warps take 32 rows in turn, each adds those of its own in order, then the eight sums are added in order: no
// atomics, the same bits always. Bytes moved: dy once, chosen (4*rows) once a block, from the cache; up to 9 KiB of shared memory.
// add_rows: h[i] += rows[i mod T], a lane as in the forward.
// Table and rows may start anywhere in a flat buffer.
#include "common.cuh"
#include "philox.cuh"
#include "table_sums.cuh"

// Row numbers are kept as floats, which are exact below 2^24. A label is dropped when its draw is below `drop`; rows are numbered as in
// src/ops/flow_path.rs.
extern "C" __global__ void __launch_bounds__(256) embedding_forward(
    floatX* __restrict__ y, float* __restrict__ chosen, const floatX* __restrict__ table, const unsigned* __restrict__ labels,
    unsigned key0, unsigned key1, unsigned long long step, const unsigned long long* __restrict__ counter,
    unsigned long long first, float drop, unsigned none, unsigned rows, unsigned samples, unsigned c) {
    bool vector = c % EACH == 0, wide = aligned(table);
    Place at = place(c, vector ? EACH : 1);
    if (at.row >= rows || at.column >= c) return;
    unsigned sample = at.row % samples, label = labels[sample];
    if (drop > 0.0f) {
        Philox draw = philox_at(key0, key1, step, counter);
        if (unit(philox(draw, first + sample, at.row / samples, 0).x) < drop) label = none;
    }
    if (at.column == 0) chosen[at.row] = (float)label;
    table += (unsigned long long)label * c + at.column;
    y += (unsigned long long)at.row * c + at.column;
    if (vector) {
        float x[EACH];
        read_any(x, table, wide);
        write(y, x);
    } else {
        *y = *table;
    }
}

extern "C" __global__ void __launch_bounds__(256) embedding_backward(
    float* __restrict__ dtable, const floatX* __restrict__ dy, const float* __restrict__ chosen, unsigned rows, unsigned c) {
    unsigned strips = (c + 32 * EACH - 1) / (32 * EACH), own = blockIdx.x / strips, strip = blockIdx.x % strips * 32 * EACH;
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = strip + lane * EACH;
    bool found = false;
    float sum[EACH] = {};
    for (unsigned chunk = 0; chunk < rows; chunk += WARPS * 32) { // the same for all, so that warps stay together
        unsigned base = chunk + warp * 32;
        unsigned same = __ballot_sync(0xffffffffu, base + lane < rows && chosen[base + lane] == (float)own);
        found |= same != 0;
        for (; same; same &= same - 1) { // the warp's lanes agree
            add_row(sum, dy + (unsigned long long)(base + __ffs(same) - 1) * c, column, c);
        }
    }
    if (!__syncthreads_or(found)) return; // the whole block
    add_warp_sums(dtable + (unsigned long long)own * c, sum, strip, c);
}

// h (N, C), rows (T, C).
extern "C" __global__ void __launch_bounds__(256) add_rows(
    floatX* __restrict__ h, const floatX* __restrict__ rows, unsigned n, unsigned t, unsigned c) {
    bool vector = c % EACH == 0, wide = aligned(rows);
    Place at = place(c, vector ? EACH : 1);
    if (at.row >= n || at.column >= c) return;
    h += (unsigned long long)at.row * c + at.column;
    rows += (unsigned long long)(at.row % t) * c + at.column;
    if (vector) {
        float x[EACH], y[EACH];
        read(x, h);
        read_any(y, rows, wide);
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) x[j] += y[j];
        write(h, x);
    } else {
        *h = from_float<floatX>(to_float(*h) + to_float(*rows));
    }
}
