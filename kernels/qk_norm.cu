// Layer norm over the K columns of each head's query and key; values are copied.
//
//   x^ = (x - mean)*rstd, rstd = 1/sqrt(var + 1e-5);  y = x^*weight + bias
//   dx^ = dy*weight, dx = rstd*(dx^ - mean(dx^) - x^*mean(dx^*x^)), dweight = sum dy*x^, dbias = sum dy
// A row is 3*H vectors of K columns, q of all heads, then k, then v: vector j of row i begins at (3*H*i + j)*K. Forward and backward: a warp
// covers one vector, a lane two neighbouring columns of every 64 (K is even), sums over the warp in a fixed order; up to 256 columns are
// held in registers, the rest is read again. Bytes moved per element: forward 2*sizeof(floatX), backward 3, values 2. stats: (N, 2*H, 2) mean, rstd.
// Gradients of weights and biases: sums of slices of rows, then those in order.
#include "common.cuh"
#include "reduce.cuh"

// Two neighbouring elements: one access.
union Two {
#if FLOATX == 0
    float2 word;
#else
    unsigned word;
#endif
    floatX values[2];
    __device__ Two() {}
};

__device__ __forceinline__ void read_two(float (&x)[2], const floatX* at) {
    Two two;
    two.word = *(const decltype(two.word)*)at;
    x[0] = to_float(two.values[0]);
    x[1] = to_float(two.values[1]);
}
__device__ __forceinline__ void write_two(floatX* at, const float (&x)[2]) {
    Two two;
    two.values[0] = from_float<floatX>(x[0]);
    two.values[1] = from_float<floatX>(x[1]);
    *(decltype(two.word)*)at = two.word;
}

// Reads two elements of a part of a flat buffer, which may begin anywhere.
__device__ __forceinline__ void read_any(float (&x)[2], const floatX* at) {
    if (((unsigned long long)at & (2 * sizeof(floatX) - 1)) == 0) {
        read_two(x, at);
    } else {
        x[0] = to_float(at[0]);
        x[1] = to_float(at[1]);
    }
}

static const unsigned HELD = 4; // couples of columns that a lane holds

// What a lane holds of a vector of k columns.
struct Held {
    const floatX* x;
    unsigned k, lane;
    float held[HELD][2];
    __device__ Held(const floatX* x, unsigned k) : x(x), k(k), lane(threadIdx.x % 32) {
#pragma unroll
        for (unsigned i = 0; i < HELD; i++) {
            held[i][0] = held[i][1] = 0.0f;
            if (2 * lane + 64 * i < k) read_two(held[i], x + 2 * lane + 64 * i);
        }
    }
};

// Calls f(values, column) for all couples of this lane.
template <class F> __device__ __forceinline__ void each(const Held& of, F f) {
#pragma unroll
    for (unsigned i = 0; i < HELD; i++) {
        if (2 * of.lane + 64 * i < of.k) f(of.held[i], 2 * of.lane + 64 * i);
    }
#pragma unroll 1
    for (unsigned column = 2 * of.lane + 64 * HELD; column < of.k; column += 64) {
        float values[2];
        read_two(values, of.x + column);
        f(values, column);
    }
}
// The same for two vectors: f(x, d, column).
template <class F> __device__ __forceinline__ void each(const Held& of, const Held& with, F f) {
#pragma unroll
    for (unsigned i = 0; i < HELD; i++) {
        if (2 * of.lane + 64 * i < of.k) f(of.held[i], with.held[i], 2 * of.lane + 64 * i);
    }
#pragma unroll 1
    for (unsigned column = 2 * of.lane + 64 * HELD; column < of.k; column += 64) {
        float values[2], others[2];
        read_two(values, of.x + column);
        read_two(others, with.x + column);
        f(values, others, column);
    }
}

// The vector of a warp; vectors are fewer than 2^32 for 2^38 elements, so the division is one of 32 bits.
struct Vector {
    unsigned index, part; // part 0: a query, 1: a key, 2: a value
    unsigned long long start, stats;
    bool inside;
    __device__ Vector(unsigned vectors, unsigned heads, unsigned k) {
        index = (unsigned)(thread_index() / 32);
        inside = index < vectors;
        unsigned row = index / (3 * heads), j = index % (3 * heads);
        part = j / heads;
        start = (unsigned long long)index * k;
        stats = 2 * ((unsigned long long)row * 2 * heads + j);
    }
};

extern "C" __global__ void __launch_bounds__(256) qk_norm_forward(
    floatX* __restrict__ y, float* __restrict__ stats, const floatX* __restrict__ qkv, const floatX* __restrict__ q_weight,
    const floatX* __restrict__ q_bias, const floatX* __restrict__ k_weight, const floatX* __restrict__ k_bias, unsigned vectors,
    unsigned heads, unsigned k) {
    Vector mine(vectors, heads, k);
    if (!mine.inside) return; // whole warps
    unsigned lane = threadIdx.x % 32;
    y += mine.start;
    const floatX* x = qkv + mine.start;
    const floatX *weight = mine.part ? k_weight : q_weight, *bias = mine.part ? k_bias : q_bias;
    Held held(x, k); // of values too: a branch around the sums would make each shuffle a call
    float inverse = reciprocal((float)k), sum = 0.0f, squares = 0.0f;
    each(held, [&](const float (&x)[2], unsigned) { sum += x[0] + x[1]; });
    float mean = warp_sum(sum) * inverse;
    each(held, [&](const float (&x)[2], unsigned) {
        squares = fmaf(x[0] - mean, x[0] - mean, squares);
        squares = fmaf(x[1] - mean, x[1] - mean, squares);
    });
    float rstd = rsqrtf(warp_sum(squares) * inverse + 1e-5f);
    if (lane == 0 && mine.part < 2) *(float2*)&stats[mine.stats] = make_float2(mean, rstd);
    each(held, [&](const float (&x)[2], unsigned column) {
        float w[2], b[2], out[2];
        read_any(w, weight + column);
        read_any(b, bias + column);
#pragma unroll
        for (unsigned j = 0; j < 2; j++) out[j] = mine.part == 2 ? x[j] : fmaf((x[j] - mean) * rstd, w[j], b[j]);
        write_two(y + column, out);
    });
}

extern "C" __global__ void __launch_bounds__(256) qk_norm_backward(
    floatX* __restrict__ dx, const floatX* __restrict__ dy, const floatX* __restrict__ qkv, const float* __restrict__ stats,
    const floatX* __restrict__ q_weight, const floatX* __restrict__ k_weight, unsigned vectors, unsigned heads, unsigned k) {
    Vector mine(vectors, heads, k);
    if (!mine.inside) return; // whole warps
    dx += mine.start;
    dy += mine.start;
    const floatX *x = qkv + mine.start, *weight = mine.part ? k_weight : q_weight;
    float2 saved = make_float2(0.0f, 0.0f);
    if (mine.part < 2) saved = *(const float2*)&stats[mine.stats];
    float mean = saved.x, rstd = saved.y, inverse = reciprocal((float)k), sum = 0.0f, along = 0.0f;
    Held held(x, k), with(dy, k);
    each(held, with, [&](const float (&x)[2], const float (&d)[2], unsigned column) {
        float w[2];
        read_any(w, weight + column);
#pragma unroll
        for (unsigned j = 0; j < 2; j++) {
            sum = fmaf(d[j], w[j], sum);
            along = fmaf(d[j] * w[j], (x[j] - mean) * rstd, along);
        }
    });
    sum = warp_sum(sum) * inverse;
    along = warp_sum(along) * inverse;
    each(held, with, [&](const float (&x)[2], const float (&d)[2], unsigned column) {
        float w[2], out[2];
        read_any(w, weight + column);
#pragma unroll
        for (unsigned j = 0; j < 2; j++) {
            float inner = rstd * (d[j] * w[j] - sum - (x[j] - mean) * rstd * along);
            out[j] = mine.part == 2 ? d[j] : inner;
        }
        write_two(dx + column, out);
    });
}

// partials (slices, 2, 2, K): of each slice of `each` rows, for q and k, the sums of dy*x^ and of dy. A block covers 64 columns of one slice
// and part, a warp every eighth vector, a lane two columns; the warps' sums are added in order.
extern "C" __global__ void __launch_bounds__(256)
    qk_norm_sums(float* __restrict__ partials, const floatX* __restrict__ dy, const floatX* __restrict__ qkv,
                 const float* __restrict__ stats, unsigned rows, unsigned each, unsigned heads, unsigned k) {
    __shared__ float4 shared[8][32];
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = blockIdx.x * 64 + 2 * lane, slice = blockIdx.y, part = blockIdx.z;
    unsigned first = slice * each, count = (min(rows, first + each) - first) * heads;
    float sums[2] = {}, along[2] = {};
    // Every thread must arrive at the barrier.
    for (unsigned i = warp; i < count && column < k; i += 8) {
        unsigned long long row = first + i / heads, head = i % heads;
        unsigned long long at = ((3 * row + part) * heads + head) * k + column;
        float2 saved = *(const float2*)&stats[2 * ((2 * row + part) * heads + head)];
        float x[2], d[2];
        read_two(x, qkv + at);
        read_two(d, dy + at);
#pragma unroll
        for (unsigned j = 0; j < 2; j++) {
            along[j] = fmaf(d[j], (x[j] - saved.x) * saved.y, along[j]);
            sums[j] += d[j];
        }
    }
    shared[warp][lane] = make_float4(along[0], along[1], sums[0], sums[1]);
    __syncthreads();
    if (warp > 0 || column >= k) return;
    float4 total = shared[0][lane];
    for (unsigned i = 1; i < 8; i++) {
        float4 next = shared[i][lane];
        total = make_float4(total.x + next.x, total.y + next.y, total.z + next.z, total.w + next.w);
    }
    float* to = partials + (unsigned long long)(slice * 2 + part) * 2 * k + column;
    *(float2*)to = make_float2(total.x, total.y);
    *(float2*)(to + k) = make_float2(total.z, total.w);
}

// Adds the sums of the slices, first to last, to the gradients of weights and biases: one thread for each of 4*K numbers.
extern "C" __global__ void __launch_bounds__(256)
    qk_norm_gradients(float* __restrict__ dq_weight, float* __restrict__ dq_bias, float* __restrict__ dk_weight,
                      float* __restrict__ dk_bias, const float* __restrict__ partials, unsigned slices, unsigned k) {
    unsigned i = (unsigned)thread_index();
    if (i >= 4 * k) return;
    float sum = 0.0f;
    for (unsigned slice = 0; slice < slices; slice++) sum += partials[(unsigned long long)slice * 4 * k + i];
    unsigned which = i / k, column = i % k;
    float* to = which < 2 ? (which == 0 ? dq_weight : dq_bias) : (which == 2 ? dk_weight : dk_bias);
    to[column] += sum;
}
