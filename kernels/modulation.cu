// The gradient of a modulation table from the gradients dmod (N, width) of what its rows were used for.
//
// index: one thread per element of the table's columns; it adds the `share` rows that used it, in order.
// interpolated: dtable[j] = sum over rows of weights[row][j]*dmod[row]. A block covers 64 columns and one slice of the rows; a
// thread covers one column and keeps r sums in registers; slices are added by a second kernel in order. Bytes moved: dmod once.
#include "modulation.cuh"

extern "C" __global__ void __launch_bounds__(256) table_gradient_index(
    floatX* __restrict__ dtable, const float* __restrict__ dmod, unsigned groups, unsigned share, unsigned columns,
    unsigned offset, unsigned width) {
    unsigned long long at = thread_index();
    if (at >= (unsigned long long)groups * width) return;
    unsigned group = (unsigned)(at / width), column = (unsigned)(at % width);
    float sum = 0.0f;
    for (unsigned i = 0; i < share; i++) sum += dmod[((unsigned long long)group * share + i) * width + column];
    dtable[(unsigned long long)group * columns + offset + column] = from_float<floatX>(sum);
}

static const unsigned MOST = 8; // nodes that one pass keeps in registers

// partials: (slices, r, width).
extern "C" __global__ void __launch_bounds__(64) table_gradient_partial(
    float* __restrict__ partials, const float* __restrict__ dmod, const float* __restrict__ weights, unsigned rows,
    unsigned each, unsigned r, unsigned width) {
    unsigned column = blockIdx.x * 64 + threadIdx.x, slice = blockIdx.y;
    if (column >= width) return;
    unsigned first = slice * each, end = first + each < rows ? first + each : rows;
    for (unsigned base = 0; base < r; base += MOST) {
        float sums[MOST];
#pragma unroll
        for (unsigned j = 0; j < MOST; j++) sums[j] = 0.0f;
        for (unsigned row = first; row < end; row++) {
            float d = dmod[(unsigned long long)row * width + column];
            const float* w = weights + (unsigned long long)row * r + base;
#pragma unroll
            for (unsigned j = 0; j < MOST; j++) {
                if (base + j < r) sums[j] = fmaf(w[j], d, sums[j]);
            }
        }
#pragma unroll
        for (unsigned j = 0; j < MOST; j++) {
            if (base + j < r) partials[((unsigned long long)slice * r + base + j) * width + column] = sums[j];
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) table_gradient_finish(
    float* __restrict__ dtable, const float* __restrict__ partials, unsigned slices, unsigned r, unsigned columns,
    unsigned offset, unsigned width) {
    unsigned at = (unsigned)thread_index();
    if (at >= r * width) return;
    float sum = 0.0f;
    for (unsigned slice = 0; slice < slices; slice++) sum += partials[(unsigned long long)slice * r * width + at];
    dtable[(unsigned long long)(at / width) * columns + offset + at % width] = sum;
}
