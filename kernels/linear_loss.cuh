// The flow-matching loss at the end of the linear layer that computes the velocity: v = sum + bias becomes r = v - (data - noise), and
// dv = scale*w(t)*r is what is written; v is neither rounded nor stored.
//
// The lanes that have a row's columns add their squares, in the order of a tree; a row of more than one such group of columns (64 on tensor
// cores, 128 in f32) leaves a sum each, which linear_loss_rows adds in order. Bytes moved per result: data (4), dv.
#pragma once
#include "flow_loss.cuh"
#include "linear_epilogue.cuh"
#include "matmul.cuh"

struct Loss {
    static const unsigned W = EACH;
    float* loss;    // of rows that one group has whole; null if there are several
    float* sums;    // (2, groups, rows): of r^2 and, for the control variate, of noise^2; else null
    floatX* dv;     // may be null: then only losses are computed
    const floatX* bias;
    FlowTarget target;
    float scale;
    unsigned rows, groups;

    __device__ __forceinline__ bool wide() const { return wide<W>(); }
    template <unsigned N> __device__ __forceinline__ bool wide() const {
        return target.d % N == 0 && is_aligned(dv) && is_aligned(bias) && is_aligned(target.data);
    }

    // Finishes N neighbouring columns of a row, and adds to the sums of squares. As FlowTarget::residual.
    template <unsigned N>
    __device__ __forceinline__ void
    take(unsigned i, unsigned column, float (&v)[N], const FlowRow& row, bool active, bool wide, float& sum, float& noise_sum) const {
        float other[N];
        if (active && wide) {
            read_floats(other, bias + column);
#pragma unroll
            for (unsigned j = 0; j < N; j++) v[j] += other[j];
        } else if (active) {
#pragma unroll
            for (unsigned j = 0; j < N; j++) v[j] += column + j < target.d ? to_float(bias[column + j]) : 0.0f;
        }
        target.residual(v, row, column, active, wide, sum, noise_sum);
        if (!active || !dv) return;
        floatX* to = dv + (unsigned long long)i * target.d + column;
        float slope = scale * row.weight;
#pragma unroll
        for (unsigned j = 0; j < N; j++) v[j] *= slope;
        if (wide) {
            write_floats(to, v);
        } else {
#pragma unroll
            for (unsigned j = 0; j < N; j++) {
                if (column + j < target.d) to[j] = from_float<floatX>(v[j]);
            }
        }
    }

    __device__ __forceinline__ void give(unsigned i, unsigned group, float sum, float noise_sum) const {
        if (loss) {
            loss[i] = target.loss(target.row(i), sum, noise_sum);
        } else {
            sums[(unsigned long long)group * rows + i] = sum;
            if (target.has_control_variate()) sums[(unsigned long long)(groups + group) * rows + i] = noise_sum;
        }
    }
};

template <> struct WholeWarps<Loss> {
    static const bool VALUE = true;
};

// The sum over groups of `lanes` neighbouring lanes, a power of two, in all of them. All lanes of the warp must arrive.
__device__ __forceinline__ float sum_over(unsigned lanes, float x) {
#pragma unroll
    for (unsigned offset = 16; offset > 0; offset /= 2) {
        if (offset < lanes) x += __shfl_xor_sync(0xffffffffu, x, offset);
    }
    return x;
}

// As the general one in matmul.cuh, for whole warps: 32/STEP lanes have a row. The i-th of them keeps the sums of the i-th row, so that
// they leave together.
template <unsigned COUNT, unsigned STEP, class Fetch>
__device__ __forceinline__ void give_rows(const Loss& loss, unsigned row, unsigned rows, unsigned column, const Fetch& fetch) {
    const unsigned LANES = 32 / STEP, W = Loss::W;
    unsigned lane = threadIdx.x % LANES, first_column = column - lane * W;
    bool wide = loss.wide();
    float kept = 0.0f, kept_noise = 0.0f;
#pragma unroll 1
    for (unsigned i = 0; i < COUNT; i++) { // by all lanes, or the compiler calls a function for each shuffle
        float v[W], sum = 0.0f, noise_sum = 0.0f;
        fetch(v, i);
        bool active = row + i * STEP < rows && column < loss.target.d;
        unsigned at = min(row + i * STEP, rows - 1);
        loss.take(at, column, v, loss.target.row(at), active, wide, sum, noise_sum);
        sum = sum_over(LANES, sum);
        if (loss.target.has_control_variate()) noise_sum = sum_over(LANES, noise_sum);
        if (lane == i) kept = sum, kept_noise = noise_sum;
    }
    if (lane >= COUNT || row + lane * STEP >= rows || first_column >= loss.target.d) return;
    loss.give(row + lane * STEP, first_column / (LANES * W), kept, kept_noise);
}
