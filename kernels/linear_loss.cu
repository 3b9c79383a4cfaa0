// A linear layer and the flow-matching loss of its results, in one kernel: of v = x*w^T + bias, dv and the loss of each row. `linear_loss.cuh`
// has the epilogue; tiles, arithmetic and parts of K are those of the linear layer's forward (linear.cu).
//
// x (N, C), w (O, C), bias (O), dv (N, O), loss (N), data (samples, O), t (N / share). Where the block's tile has all columns of a row, loss
// is written and sums is null; else sums (2, groups, N) gets what linear_loss_rows adds, and loss is null. dv and factor may be null; table
// (knots) is null but for weights of a table.
#include "linear_bodies.cuh"
#include "linear_loss.cuh"

extern "C" __global__ void __launch_bounds__(128) linear_loss_128x128(
    float* __restrict__ loss, float* __restrict__ sums, floatX* __restrict__ dv, const floatX* __restrict__ x, const floatX* __restrict__ w,
    const floatX* __restrict__ bias, float* __restrict__ partial, unsigned each, const float* __restrict__ data,
    const float* __restrict__ t, const float* __restrict__ table, unsigned key0, unsigned key1, unsigned long long step,
    const unsigned long long* __restrict__ counter, unsigned long long first, unsigned samples, unsigned share, unsigned weight,
    float number, unsigned knots, unsigned variates, float scale, const float* __restrict__ factor, unsigned groups, unsigned n, unsigned o,
    unsigned c) {
    Philox draw = philox_at(key0, key1, step, counter);
    FlowTarget target = {data, t, draw, first, samples, share, o, {weight, number, table, knots}, variates};
    Loss finish = {loss, sums, dv, bias, target, factor ? scale * *factor : scale, n, groups};
    Operand<floatX> a = {x, n, c}, b = {w, o, c};
    on_tensor_cores<Tile128x128, true, true>(a, b, c, partial, each, nullptr, finish);
}

extern "C" __global__ void __launch_bounds__(128) linear_loss_128x64(
    float* __restrict__ loss, float* __restrict__ sums, floatX* __restrict__ dv, const floatX* __restrict__ x, const floatX* __restrict__ w,
    const floatX* __restrict__ bias, float* __restrict__ partial, unsigned each, const float* __restrict__ data,
    const float* __restrict__ t, const float* __restrict__ table, unsigned key0, unsigned key1, unsigned long long step,
    const unsigned long long* __restrict__ counter, unsigned long long first, unsigned samples, unsigned share, unsigned weight,
    float number, unsigned knots, unsigned variates, float scale, const float* __restrict__ factor, unsigned groups, unsigned n, unsigned o,
    unsigned c) {
    Philox draw = philox_at(key0, key1, step, counter);
    FlowTarget target = {data, t, draw, first, samples, share, o, {weight, number, table, knots}, variates};
    Loss finish = {loss, sums, dv, bias, target, factor ? scale * *factor : scale, n, groups};
    Operand<floatX> a = {x, n, c}, b = {w, o, c};
    on_tensor_cores<Tile128x64, true, true>(a, b, c, partial, each, nullptr, finish);
}

extern "C" __global__ void __launch_bounds__(64) linear_loss_64x64(
    float* __restrict__ loss, float* __restrict__ sums, floatX* __restrict__ dv, const floatX* __restrict__ x, const floatX* __restrict__ w,
    const floatX* __restrict__ bias, float* __restrict__ partial, unsigned each, const float* __restrict__ data,
    const float* __restrict__ t, const float* __restrict__ table, unsigned key0, unsigned key1, unsigned long long step,
    const unsigned long long* __restrict__ counter, unsigned long long first, unsigned samples, unsigned share, unsigned weight,
    float number, unsigned knots, unsigned variates, float scale, const float* __restrict__ factor, unsigned groups, unsigned n, unsigned o,
    unsigned c) {
    Philox draw = philox_at(key0, key1, step, counter);
    FlowTarget target = {data, t, draw, first, samples, share, o, {weight, number, table, knots}, variates};
    Loss finish = {loss, sums, dv, bias, target, factor ? scale * *factor : scale, n, groups};
    Operand<floatX> a = {x, n, c}, b = {w, o, c};
    on_tensor_cores<Tile64x64, true, true>(a, b, c, partial, each, nullptr, finish);
}

extern "C" __global__ void __launch_bounds__(64, 4) linear_loss_any(
    float* __restrict__ loss, float* __restrict__ sums, floatX* __restrict__ dv, const floatX* __restrict__ x, const floatX* __restrict__ w,
    const floatX* __restrict__ bias, float* __restrict__ partial, unsigned each, const float* __restrict__ data,
    const float* __restrict__ t, const float* __restrict__ table, unsigned key0, unsigned key1, unsigned long long step,
    const unsigned long long* __restrict__ counter, unsigned long long first, unsigned samples, unsigned share, unsigned weight,
    float number, unsigned knots, unsigned variates, float scale, const float* __restrict__ factor, unsigned groups, unsigned n, unsigned o,
    unsigned c) {
    Philox draw = philox_at(key0, key1, step, counter);
    FlowTarget target = {data, t, draw, first, samples, share, o, {weight, number, table, knots}, variates};
    Loss finish = {loss, sums, dv, bias, target, factor ? scale * *factor : scale, n, groups};
    Operand<floatX> a = {x, n, c}, b = {w, o, c};
    on_tensor_cores<TileAny, true, true>(a, b, c, partial, each, nullptr, finish);
}

// Adds the parts of K in order, and finishes: `lanes`, a power of two up to 32, have a row, four columns each at a time.
extern "C" __global__ void __launch_bounds__(256, 4) linear_loss_sum(
    float* __restrict__ loss, floatX* __restrict__ dv, const floatX* __restrict__ bias, const float* __restrict__ partial,
    const float* __restrict__ data, const float* __restrict__ t, const float* __restrict__ table, unsigned key0, unsigned key1,
    unsigned long long step, const unsigned long long* __restrict__ counter, unsigned long long first, unsigned samples, unsigned share,
    unsigned weight, float number, unsigned knots, unsigned variates, float scale, const float* __restrict__ factor, unsigned parts, unsigned lanes, unsigned n,
    unsigned o) {
    Philox draw = philox_at(key0, key1, step, counter);
    FlowTarget target = {data, t, draw, first, samples, share, o, {weight, number, table, knots}, variates};
    Loss finish = {loss, nullptr, dv, bias, target, factor ? scale * *factor : scale, n, 1};
    unsigned i = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes, lane = threadIdx.x % lanes;
    bool there = i < n, wide = finish.wide<4>(); // lanes without a row stay for the sums
    i = min(i, n - 1);
    FlowRow row = target.row(i);
    float sum = 0.0f, noise_sum = 0.0f;
#pragma unroll 1
    for (unsigned base = 0; base < o; base += lanes * 4) {
        unsigned column = base + lane * 4;
        bool active = there && column < o;
        float v[4] = {};
        const float* from = partial + (unsigned long long)i * o + column;
        for (unsigned part = 0; active && part < parts; part++, from += (unsigned long long)n * o) {
            float other[4];
#pragma unroll
            for (unsigned j = 0; j < 4 && !wide; j++) other[j] = column + j < o ? from[j] : 0.0f;
            if (wide) read(other, from);
#pragma unroll
            for (unsigned j = 0; j < 4; j++) v[j] += other[j];
        }
        finish.take(i, column, v, row, active, wide, sum, noise_sum);
    }
    sum = sum_over(lanes, sum);
    if (target.has_control_variate()) noise_sum = sum_over(lanes, noise_sum);
    if (there && lane == 0) loss[i] = target.loss(row, sum, noise_sum);
}

// Adds the sums of a row's groups of columns, in order; a thread has a row.
extern "C" __global__ void __launch_bounds__(256) linear_loss_rows(
    float* __restrict__ loss, const float* __restrict__ sums, const float* __restrict__ t, const float* __restrict__ table, unsigned share,
    unsigned weight, float number, unsigned knots, unsigned variates, unsigned groups, unsigned n, unsigned o) {
    unsigned i = (unsigned)thread_index();
    if (i >= n) return;
    FlowTarget target = {nullptr, t, {}, 0, n, share, o, {weight, number, table, knots}, variates};
    float sum = 0.0f, noise_sum = 0.0f;
#pragma unroll 4
    for (unsigned group = 0; group < groups; group++) sum += sums[(unsigned long long)group * n + i];
    for (unsigned group = groups; target.has_control_variate() && group < 2 * groups; group++) noise_sum += sums[(unsigned long long)group * n + i];
    loss[i] = target.loss(target.row(i), sum, noise_sum);
}

#if FLOATX == 0
extern "C" __global__ void __launch_bounds__(256) linear_loss_f32_128(
    float* __restrict__ loss, float* __restrict__ sums, float* __restrict__ dv, const float* __restrict__ x, const float* __restrict__ w,
    const float* __restrict__ bias, float* __restrict__ partial, unsigned each, const float* __restrict__ data,
    const float* __restrict__ t, const float* __restrict__ table, unsigned key0, unsigned key1, unsigned long long step,
    const unsigned long long* __restrict__ counter, unsigned long long first, unsigned samples, unsigned share, unsigned weight,
    float number, unsigned knots, unsigned variates, float scale, const float* __restrict__ factor, unsigned groups, unsigned n, unsigned o,
    unsigned c) {
    Philox draw = philox_at(key0, key1, step, counter);
    FlowTarget target = {data, t, draw, first, samples, share, o, {weight, number, table, knots}, variates};
    Loss finish = {loss, sums, dv, bias, target, factor ? scale * *factor : scale, n, groups};
    Operand<floatX> a = {x, n, c}, b = {w, o, c};
    in_f32<FloatShape<128>, true, true>(a, b, c, partial, each, nullptr, finish);
}

extern "C" __global__ void __launch_bounds__(128) linear_loss_f32_64(
    float* __restrict__ loss, float* __restrict__ sums, float* __restrict__ dv, const float* __restrict__ x, const float* __restrict__ w,
    const float* __restrict__ bias, float* __restrict__ partial, unsigned each, const float* __restrict__ data,
    const float* __restrict__ t, const float* __restrict__ table, unsigned key0, unsigned key1, unsigned long long step,
    const unsigned long long* __restrict__ counter, unsigned long long first, unsigned samples, unsigned share, unsigned weight,
    float number, unsigned knots, unsigned variates, float scale, const float* __restrict__ factor, unsigned groups, unsigned n, unsigned o,
    unsigned c) {
    Philox draw = philox_at(key0, key1, step, counter);
    FlowTarget target = {data, t, draw, first, samples, share, o, {weight, number, table, knots}, variates};
    Loss finish = {loss, sums, dv, bias, target, factor ? scale * *factor : scale, n, groups};
    Operand<floatX> a = {x, n, c}, b = {w, o, c};
    in_f32<FloatShape<64>, true, true>(a, b, c, partial, each, nullptr, finish);
}

extern "C" __global__ void __launch_bounds__(64) linear_loss_f32_32(
    float* __restrict__ loss, float* __restrict__ sums, float* __restrict__ dv, const float* __restrict__ x, const float* __restrict__ w,
    const float* __restrict__ bias, float* __restrict__ partial, unsigned each, const float* __restrict__ data,
    const float* __restrict__ t, const float* __restrict__ table, unsigned key0, unsigned key1, unsigned long long step,
    const unsigned long long* __restrict__ counter, unsigned long long first, unsigned samples, unsigned share, unsigned weight,
    float number, unsigned knots, unsigned variates, float scale, const float* __restrict__ factor, unsigned groups, unsigned n, unsigned o,
    unsigned c) {
    Philox draw = philox_at(key0, key1, step, counter);
    FlowTarget target = {data, t, draw, first, samples, share, o, {weight, number, table, knots}, variates};
    Loss finish = {loss, sums, dv, bias, target, factor ? scale * *factor : scale, n, groups};
    Operand<floatX> a = {x, n, c}, b = {w, o, c};
    in_f32<FloatShape<32>, true, true>(a, b, c, partial, each, nullptr, finish);
}
#endif
