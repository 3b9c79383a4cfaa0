// The flow-matching loss of one row, for the kernels that compute it: flow_loss.cu of a velocity in memory, linear_loss.cu where the
// layer ends that computes the velocity. Formulas: flow_loss.cu.
#pragma once
#include "common.cuh"
#include "philox.cuh"

// w(t): `Weight` in src/ops/flow_loss.rs.
struct FlowWeight {
    unsigned kind; // 0: the number itself; 1: likelihood t/(1-t), 2: KL t^2/(1-t), t clipped at the number from above; 3: the table
    float number;
    const float* table; // (knots), at equal distances from 0 to 1
    unsigned knots;

    // NaN stays NaN. Between knots each operation is rounded as on the CPU.
    __device__ __forceinline__ float at(float t) const {
        if (kind == 0) return number;
        if (kind == 3) {
            float place = __fmul_rn(t, (float)(knots - 1));
            unsigned left = min((unsigned)place, knots - 2);
            float from = table[left], step = __fsub_rn(table[left + 1], from);
            return __fadd_rn(from, __fmul_rn(__fsub_rn(place, (float)left), step));
        }
        float clipped = t > number ? number : t;
        return __fdividef(kind == 1 ? clipped : clipped * clipped, 1.0f - clipped);
    }
};

struct FlowRow {
    const float* data;
    unsigned long long sample; // in the global batch
    unsigned replica;
    float time, weight;
};

// What v is compared with: `Target` in src/ops/flow_loss.rs.
struct FlowTarget {
    const float *data, *t;
    Philox draw;
    unsigned long long first;
    unsigned samples, share, d;
    FlowWeight weight;
    unsigned variates; // bit 0: the loss is less its control variate; bit 1: what becomes of v for the gradient is centred

    __device__ __forceinline__ bool has_control_variate() const { return variates & 1; }

    __device__ __forceinline__ FlowRow row(unsigned i) const {
        unsigned sample = i % samples, replica = i / samples;
        float time = t[i / share];
        FlowRow row = {data + (unsigned long long)sample * d, first + sample, replica, time, weight.at(time)};
        return row;
    }

    // Makes r of N neighbouring columns of v, and adds r^2 and noise^2; a centred r is less t/((1-t)^2 + t^2)*noise then. `wide`: 16
    // bytes of data may be read at a time, and all N columns are there or none; else those below d are. Where N is 8, all lanes of the
    // warp must arrive, neighbours at neighbouring columns.
    template <unsigned N>
    __device__ __forceinline__ void
    residual(float (&v)[N], const FlowRow& row, unsigned column, bool active, bool wide, float& sum, float& noise_sum) const {
        float target[N], noise[N];
        if (wide) read_floats(target, row.data + column, active);
        if (!active) return;
        if (!wide) {
#pragma unroll
            for (unsigned j = 0; j < N; j++) target[j] = column + j < d ? row.data[column + j] : 0.0f;
        }
        noise_at(noise, draw, row.sample, row.replica, column);
#pragma unroll
        for (unsigned j = 0; j < N; j++) {
            if (!wide && column + j >= d) break;
            v[j] -= target[j] - noise[j];
            sum = fmaf(v[j], v[j], sum);
            noise_sum = fmaf(noise[j], noise[j], noise_sum);
        }
        if (variates & 2) {
            float slope = -row.time * inverse_spread(row.time);
#pragma unroll
            for (unsigned j = 0; j < N; j++) {
                if (wide || column + j < d) v[j] = fmaf(slope, noise[j], v[j]);
            }
        }
    }

    __device__ __forceinline__ static float inverse_spread(float t) { return __fdividef(1.0f, (1.0f - t) * (1.0f - t) + t * t); }

    // The loss of a row from its sums of r^2 and, for the control variate, noise^2.
    __device__ __forceinline__ float loss(const FlowRow& row, float sum, float noise_sum) const {
        if (has_control_variate()) sum -= noise_sum + (float)d * (inverse_spread(row.time) - 1.0f);
        return row.weight * sum;
    }
};
