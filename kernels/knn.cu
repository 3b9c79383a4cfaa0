// The nearest neighbours of rows, by brute force: candidates by matrix products, then distances from the differences themselves.
//
// A product of queries with a block of points, whose bias is -|p|^2/2, gives scores s = <q,p> - |p|^2/2 = (|q|^2 - |q-p|^2)/2: the
// greater, the nearer. knn_select merges a block of scores into each query's list of the best so far; knn_refine computes the squared
// distances of the listed points again and sorts them, ties by the lower number.
//
// Scores cancel, so a point that is as near as the k-th neighbour could be missing from the list. It would have |p| <= |q| + r_k =: B, and
// a score that is off by at most e = unit*(|q|B + B^2/2 + r_k^2): if the last of the list scores below (|q|^2 - r_k^2)/2 - e, none is
// missing; else this query's distances to all points are computed from differences. So neighbours are exact in any case.
//
// One warp covers one query; entry r*32 + lane of its list is in register r of that lane. Bytes moved: the scores once (4 a pair), the
// lists twice a block of points; no shared memory.
#include "common.cuh"
#include "reduce.cuh"

static const unsigned NONE = 0xffffffffu, ALL = 0xffffffffu;

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// Whether the point (key, number) comes before another one in a list.
__device__ __forceinline__ bool before(float key, unsigned number, float other, unsigned other_number) {
    return key < other || (key == other && number < other_number);
}

// The 32*R least of the points seen, in order; NONE and an infinite key where there are fewer.
template <unsigned R> struct List {
    float key[R];
    unsigned number[R];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (unsigned r = 0; r < R; r++) {
            key[r] = infinity();
            number[r] = NONE;
        }
    }

    // Of entry 32*R - 1; the same in all lanes.
    __device__ __forceinline__ float last_key() const { return __shfl_sync(ALL, key[R - 1], 31); }
    __device__ __forceinline__ unsigned last_number() const { return __shfl_sync(ALL, number[R - 1], 31); }

    // Inserts a point that comes before the last one; all lanes have the same.
    __device__ __forceinline__ void insert(float added, unsigned added_number) {
        unsigned lane = threadIdx.x % 32;
#pragma unroll
        for (unsigned r = R; r-- > 0;) {
            float previous = __shfl_up_sync(ALL, key[r], 1);
            unsigned previous_number = __shfl_up_sync(ALL, number[r], 1);
            if (r > 0) {
                float carried = __shfl_sync(ALL, key[r - 1], 31);
                unsigned carried_number = __shfl_sync(ALL, number[r - 1], 31);
                previous = lane ? previous : carried;
                previous_number = lane ? previous_number : carried_number;
            }
            bool first = r == 0 && lane == 0;
            bool moves = before(added, added_number, key[r], number[r]);
            bool settles = first || !before(added, added_number, previous, previous_number);
            key[r] = !moves ? key[r] : settles ? added : previous;
            number[r] = !moves ? number[r] : settles ? added_number : previous_number;
        }
    }

    // Inserts what comes before the last entry of one point a lane.
    __device__ __forceinline__ void offer(float offered, unsigned offered_number) {
        float last = last_key();
        unsigned last_of = last_number();
        unsigned better = __ballot_sync(ALL, before(offered, offered_number, last, last_of));
        for (; better; better &= better - 1) { // the warp's lanes agree
            unsigned from = __ffs(better) - 1;
            float added = __shfl_sync(ALL, offered, from);
            unsigned added_number = __shfl_sync(ALL, offered_number, from);
            if (!before(added, added_number, last, last_of)) continue;
            insert(added, added_number);
            last = last_key();
            last_of = last_number();
        }
    }
};

// keys, numbers (Q, 32*R): the lists, keys = -score. scores (Q, columns) are those of points first .. ; own: query i is point i and is
// left out. NaN is never listed.
template <unsigned R>
__device__ __forceinline__ void select(
    float* keys, unsigned* numbers, const float* scores, unsigned queries, unsigned columns, unsigned first, unsigned own) {
    unsigned query = (unsigned)(thread_index() / 32), lane = threadIdx.x % 32;
    if (query >= queries) return; // whole warps
    const float* row = scores + (unsigned long long)query * columns;
    unsigned long long at = (unsigned long long)query * 32 * R + lane;
    List<R> list;
    list.clear();
    if (first > 0) {
#pragma unroll
        for (unsigned r = 0; r < R; r++) {
            list.key[r] = keys[at + 32 * r];
            list.number[r] = numbers[at + 32 * r];
        }
    }
    static const unsigned AHEAD = 4; // loads under way
    for (unsigned base = 0; base < columns; base += 32 * AHEAD) {
        float score[AHEAD];
#pragma unroll
        for (unsigned j = 0; j < AHEAD; j++) {
            unsigned column = base + 32 * j + lane;
            score[j] = column < columns ? row[column] : -infinity();
        }
#pragma unroll
        for (unsigned j = 0; j < AHEAD; j++) {
            unsigned number = first + base + 32 * j + lane;
            bool left_out = base + 32 * j + lane >= columns || (own && number == query);
            list.offer(left_out ? infinity() : -score[j], left_out ? NONE : number);
        }
    }
#pragma unroll
    for (unsigned r = 0; r < R; r++) {
        keys[at + 32 * r] = list.key[r];
        numbers[at + 32 * r] = list.number[r];
    }
}

extern "C" __global__ void __launch_bounds__(256) knn_select_32(
    float* __restrict__ keys, unsigned* __restrict__ numbers, const float* __restrict__ scores, unsigned queries, unsigned columns,
    unsigned first, unsigned own) {
    select<1>(keys, numbers, scores, queries, columns, first, own);
}

extern "C" __global__ void __launch_bounds__(256) knn_select_128(
    float* __restrict__ keys, unsigned* __restrict__ numbers, const float* __restrict__ scores, unsigned queries, unsigned columns,
    unsigned first, unsigned own) {
    select<4>(keys, numbers, scores, queries, columns, first, own);
}

// |a - b|^2, columns in order.
__device__ __forceinline__ float squared(const float* a, const float* b, unsigned d) {
    float sum = 0.0f;
    unsigned column = 0;
    if (d % 4 == 0) {
#pragma unroll 1
        for (; column < d; column += 4) {
            float x[4], y[4];
            read(x, a + column);
            read(y, b + column);
#pragma unroll
            for (unsigned j = 0; j < 4; j++) sum = fmaf(x[j] - y[j], x[j] - y[j], sum);
        }
    }
#pragma unroll 1
    for (; column < d; column++) sum = fmaf(a[column] - b[column], a[column] - b[column], sum);
    return sum;
}

// distances, neighbours (Q, k): Euclidean distances, ascending, and the points' numbers as floats, exact below 2^24. A query without k
// neighbours at finite distances has NaN and 0 in their place.
template <unsigned R>
__device__ __forceinline__ void refine(
    float* distances, float* neighbours, const float* keys, const unsigned* numbers, const float* queries, const float* points,
    unsigned count, unsigned n, unsigned d, unsigned k, unsigned own, float unit) {
    unsigned query = (unsigned)(thread_index() / 32), lane = threadIdx.x % 32;
    if (query >= count) return; // whole warps
    const float* q = queries + (unsigned long long)query * d;
    unsigned long long at = (unsigned long long)query * 32 * R + lane;
    List<R> list;
    list.clear();
    float worst = 0.0f;
    unsigned last = NONE;
#pragma unroll
    for (unsigned r = 0; r < R; r++) {
        unsigned number = numbers[at + 32 * r];
        worst = keys[at + 32 * r];
        last = number;
        list.offer(number == NONE ? infinity() : squared(q, points + (unsigned long long)number * d, d), number);
    }
    worst = __shfl_sync(ALL, worst, 31);
    last = __shfl_sync(ALL, last, 31);
    float square = 0.0f;
    for (unsigned column = lane; column < d; column += 32) square = fmaf(q[column], q[column], square);
    square = warp_sum(square);
    float kth = 0.0f;
#pragma unroll
    for (unsigned r = 0; r < R; r++) {
        float candidate = __shfl_sync(ALL, list.key[r], (k - 1) % 32);
        kth = r == (k - 1) / 32 ? candidate : kth;
    }
    float norm = square_root(square), reach = norm + square_root(kth);
    float error = unit * (norm * reach + 0.5f * reach * reach + kth);
    bool certain = is_finite(square) && (last == NONE || worst > 0.5f * (kth - square) + error);
    if (!certain) {
        list.clear();
        for (unsigned base = 0; base < n; base += 32) {
            unsigned number = base + lane;
            bool there = number < n && !(own && number == query);
            list.offer(there ? squared(q, points + (unsigned long long)number * d, d) : infinity(), there ? number : NONE);
        }
    }
#pragma unroll
    for (unsigned r = 0; r < R; r++) {
        unsigned entry = 32 * r + lane;
        unsigned long long to = (unsigned long long)query * k + entry;
        if (entry >= k) continue;
        bool there = is_finite(list.key[r]);
        distances[to] = there ? square_root(list.key[r]) : __uint_as_float(0x7fc00000u);
        neighbours[to] = there ? (float)list.number[r] : 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(256) knn_refine_32(
    float* __restrict__ distances, float* __restrict__ neighbours, const float* __restrict__ keys,
    const unsigned* __restrict__ numbers, const float* __restrict__ queries, const float* __restrict__ points, unsigned count,
    unsigned n, unsigned d, unsigned k, unsigned own, float unit) {
    refine<1>(distances, neighbours, keys, numbers, queries, points, count, n, d, k, own, unit);
}

extern "C" __global__ void __launch_bounds__(256) knn_refine_128(
    float* __restrict__ distances, float* __restrict__ neighbours, const float* __restrict__ keys,
    const unsigned* __restrict__ numbers, const float* __restrict__ queries, const float* __restrict__ points, unsigned count,
    unsigned n, unsigned d, unsigned k, unsigned own, float unit) {
    refine<4>(distances, neighbours, keys, numbers, queries, points, count, n, d, k, own, unit);
}
