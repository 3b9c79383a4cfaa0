// The gated residual at the end of a linear layer: y = h + gate*u of u = sum + bias. gate is that of `gated_residual.cu`, and so is the
// order of its sum over nodes; u is not rounded before it is used, and written only where a backward needs it.
//
// On tensor cores a block evaluates the gates of its tile from shared memory, in the place of the operands: the strip of up to 16 nodes and
// the weights of its rows; a lane does four rows of a pack of columns at a time. Elsewhere nodes and weights are read through the cache.
// Bytes moved per result: h, y (and u), sizeof(floatX) each; the strip and the weights once a tile.
#pragma once
#include "linear_epilogue.cuh"
#include "matmul.cuh"
#include "modulation.cuh"

struct Gated {
    static const unsigned W = EACH;
    floatX *y, *u; // u may be null
    const floatX *bias, *h;
    Modulation gate;
    unsigned columns;

    __device__ __forceinline__ bool wide() const {
        bool table = gate.columns % W == 0 && gate.offset % W == 0 && is_aligned(gate.table) && is_aligned(gate.nodes);
        return table && columns % W == 0 && is_aligned(y) && is_aligned(u) && is_aligned(bias) && is_aligned(h);
    }

    // Adds nodes `node` and on to the gates of COUNT rows that lie `step` apart, of those that there are.
    template <unsigned COUNT, unsigned N>
    __device__ __forceinline__ void
    add_nodes(float (&gates)[COUNT][N], unsigned node, unsigned row, unsigned step, unsigned rows, unsigned column) const {
#pragma unroll 2
        for (; node < gate.r; node++) {
            float x[N];
            read_floats(x, gate.nodes + (unsigned long long)node * gate.columns + gate.offset + column);
#pragma unroll
            for (unsigned i = 0; i < COUNT; i++) {
                unsigned at = min(row + i * step, rows - 1);
                float w = gate.weights[(unsigned long long)at * gate.r + node];
#pragma unroll
                for (unsigned j = 0; j < N; j++) gates[i][j] = fmaf(w, x[j], gates[i][j]);
            }
        }
    }

    template <unsigned COUNT, unsigned N>
    __device__ __forceinline__ void read_gates(float (&gates)[COUNT][N], unsigned row, unsigned step, unsigned rows, unsigned column) const {
#pragma unroll
        for (unsigned i = 0; i < COUNT; i++) {
#pragma unroll
            for (unsigned j = 0; j < N; j++) gates[i][j] = 0.0f;
            unsigned at = min(row + i * step, rows - 1) / gate.share;
            if (!gate.weights) read_floats(gates[i], gate.table + (unsigned long long)at * gate.columns + gate.offset + column);
        }
        if (gate.weights) add_nodes(gates, 0, row, step, rows, column);
    }

    template <unsigned N>
    __device__ __forceinline__ void give(unsigned row, unsigned column, float (&sums)[N], const float (&gates)[N]) const {
        unsigned long long at = (unsigned long long)row * columns + column;
        float other[N];
        if (bias) {
            read_floats(other, bias + column);
#pragma unroll
            for (unsigned i = 0; i < N; i++) sums[i] += other[i];
        }
        if (u) write_floats(u + at, sums);
        read_floats(other, h + at);
#pragma unroll
        for (unsigned i = 0; i < N; i++) sums[i] = fmaf(gates[i], sums[i], other[i]);
        write_floats(y + at, sums);
    }

    template <unsigned N> __device__ __forceinline__ void take(unsigned row, unsigned column, float (&sums)[N]) const {
        float gates[1][N];
        read_gates(gates, row, 0, row + 1, column);
        give(row, column, sums, gates[0]);
    }
};

// The same, with what a tile of tensor cores needs for its gates in shared memory, behind the sums that `write_sums` puts there.
template <class S> struct TileGated : Gated {
    static const unsigned KEPT = 16, WARPS = S::THREADS / 32;
    static const unsigned AT_ONCE = 32 / (S::WARP_COLUMNS / W); // rows of a warp
    // Weights of two rows and 16 nodes, which a warp writes at once, lie in a bank each.
    static const unsigned STRIP_STEP = S::COLUMNS / 64 * SLAB_ROW, WEIGHTS_STEP = S::ROWS + 2;
    static_assert((WARPS * 16 * SLAB_ROW + KEPT * (STRIP_STEP + WEIGHTS_STEP)) * 4 <= S::BYTES, "gates do not fit");

    float *strip, *weights; // by node
    unsigned first_row, first_column;

    __device__ __forceinline__ TileGated(const Gated& gated, const Part& part, unsigned rows, float* memory)
        : Gated(gated), strip(memory + WARPS * 16 * SLAB_ROW), weights(strip + KEPT * STRIP_STEP), first_row(part.row), first_column(part.column) {
        if (!gate.weights || !wide()) return;
        unsigned kept = min(gate.r, KEPT);
#pragma unroll 2
        for (unsigned i = threadIdx.x; i < KEPT * (S::COLUMNS / 4); i += S::THREADS) {
            unsigned node = i / (S::COLUMNS / 4), column = i % (S::COLUMNS / 4) * 4;
            if (node >= kept || first_column + column >= columns) continue;
            const float* from = gate.nodes + (unsigned long long)node * gate.columns + gate.offset + first_column + column;
            *(float4*)(strip + node * STRIP_STEP + slab_place(column)) = *(const float4*)from;
        }
#pragma unroll 2
        for (unsigned i = threadIdx.x; i < S::ROWS * KEPT; i += S::THREADS) {
            unsigned node = i % KEPT, row = i / KEPT;
            if (node >= kept) continue;
            const float* from = gate.weights + (unsigned long long)(first_row + row) * gate.r + node;
            weights[node * WEIGHTS_STEP + row] = first_row + row < rows ? *from : 0.0f;
        }
        __syncthreads();
    }

    // Of four rows, AT_ONCE apart; whatever for those that are not there. A lane reads their weights one by one: the other lanes' rows lie
    // beside them, so that an access fills a pass as far as there are different rows.
    __device__ __forceinline__ void read_gates(float (&gates)[4][W], unsigned row, unsigned rows, unsigned column) const {
        if (!gate.weights) return Gated::read_gates(gates, row, AT_ONCE, rows, column);
        const float *x_at = strip + slab_place(column - first_column), *w_at = weights + (row - first_row);
        unsigned kept = min(gate.r, KEPT);
#pragma unroll
        for (unsigned i = 0; i < 4 * W; i++) (&gates[0][0])[i] = 0.0f;
#pragma unroll 2
        for (unsigned node = 0; node < kept; node++) {
            float x[W];
            read_floats(x, x_at + node * STRIP_STEP);
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                float w = w_at[node * WEIGHTS_STEP + i * AT_ONCE];
#pragma unroll
                for (unsigned j = 0; j < W; j++) gates[i][j] = fmaf(w, x[j], gates[i][j]);
            }
        }
        add_nodes(gates, kept, row, AT_ONCE, rows, column);
    }
};

template <class S> __device__ __forceinline__ TileGated<S> of_tile(const Gated& gated, const Part& part, unsigned rows, float* memory) {
    return TileGated<S>(gated, part, rows, memory);
}

// Gives rows four at a time; read_gates(gates, row): those of four rows from `row` on.
template <unsigned COUNT, unsigned STEP, class Fetch, class Read>
__device__ __forceinline__ void give_four(
    const Gated& gated, unsigned row, unsigned rows, const Fetch& fetch, unsigned column, const Read& read_gates) {
#pragma unroll 1
    for (unsigned i = 0; i < COUNT && row + i * STEP < rows; i += 4) {
        float gates[4][EACH], values[EACH];
        read_gates(gates, row + i * STEP);
#pragma unroll
        for (unsigned k = 0; k < 4; k++) {
            unsigned at = row + (i + k) * STEP;
            if (at >= rows) break;
            fetch(values, i + k);
            gated.give(at, column, values, gates[k]);
        }
    }
}

// As the general one in matmul.cuh.
template <unsigned COUNT, unsigned STEP, class S, class Fetch>
__device__ __forceinline__ void give_rows(const TileGated<S>& gated, unsigned row, unsigned rows, unsigned column, const Fetch& fetch) {
    give_four<COUNT, STEP>(gated, row, rows, fetch, column, [&](float (&gates)[4][EACH], unsigned first) {
        gated.read_gates(gates, first, rows, column);
    });
}
template <unsigned COUNT, unsigned STEP, class Fetch>
__device__ __forceinline__ void give_rows(const Gated& gated, unsigned row, unsigned rows, unsigned column, const Fetch& fetch) {
    give_four<COUNT, STEP>(gated, row, rows, fetch, column, [&](float (&gates)[4][EACH], unsigned first) {
        gated.read_gates(gates, first, STEP, rows, column);
    });
}
