// The nearest-neighbour estimate of a batch's entropy, and its gradient with the neighbours held fixed.
//
// entropy_rows: rows_i = constant + D*ln(max(r_i, floor)), r_i the distance to the k-th neighbour of row i. Beside them: that neighbour's
// number, and 1/r_i^2, or 0 from the floor down, where there is no direction. One thread a row. Bytes moved a row: 32 at most.
// entropy_backward: dy_a += scale*[(y_a - y_j(a))/r_a^2 + sum over i with j(i) = a of (y_a - y_i)/r_i^2], j(i) the neighbour of row i. One
// warp covers 32 columns of a row: it looks at all j(i), 32 at a time, and adds where a is meant, in order: no atomics, the same bits
// always. Bytes moved: the numbers (4N) once a warp, from the cache, and about two rows of y for each row.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) entropy_rows(
    float* __restrict__ rows, float* __restrict__ kth, float* __restrict__ inverse, const float* __restrict__ distances,
    const float* __restrict__ numbers, unsigned n, unsigned k, float dimensions, float constant, float floor) {
    unsigned i = (unsigned)thread_index();
    if (i >= n) return;
    unsigned long long at = (unsigned long long)i * k + k - 1;
    float r = distances[at];
    bool near = r <= floor; // false for NaN
    rows[i] = fmaf(dimensions, logf(near ? floor : r), constant);
    float over = reciprocal(near ? 1.0f : r);
    inverse[i] = near ? 0.0f : over * over;
    kth[i] = numbers[at];
}

// scale times the number at `factor`, if that is not null.
extern "C" __global__ void __launch_bounds__(256) entropy_backward(
    float* __restrict__ dy, const float* __restrict__ y, const float* __restrict__ kth, const float* __restrict__ inverse,
    unsigned n, unsigned d, float scale, const float* __restrict__ factor) {
    Place at = place(d, 1);
    if (at.row >= n) return; // whole warps
    unsigned lane = threadIdx.x % 32;
    bool active = at.column < d;
    const float* column = y + (active ? at.column : 0);
    float own = column[(unsigned long long)at.row * d];
    float sum = (own - column[(unsigned long long)kth[at.row] * d]) * inverse[at.row];
    for (unsigned base = 0; base < n; base += 32) {
        unsigned i = base + lane;
        unsigned same = __ballot_sync(0xffffffffu, i < n && kth[i] == (float)at.row);
        for (; same; same &= same - 1) { // the warp's lanes agree
            unsigned from = base + __ffs(same) - 1;
            sum = fmaf(own - column[(unsigned long long)from * d], inverse[from], sum);
        }
    }
    if (!active) return;
    if (factor) scale *= *factor;
    float* to = dy + (unsigned long long)at.row * d + at.column;
    *to = fmaf(scale, sum, *to);
}
