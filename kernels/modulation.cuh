// Modulation tables: where layer norm takes shift and scale, and the gated residual its gate. A table has one row per distinct
// condition; rows of the batch are mapped to it by index (row / share) or, with `weights`, as a combination of its r rows.
//
// For a combination a block of 8 warps evaluates columns of all of its rows at once: the weights of its rows lie in shared memory, and
// nodes of the table go through it, 4 nodes and 32 packs of columns at a time, the next while the last are used. Each number of the table
// is read once by a block, and from shared memory once for the ROWS rows of a warp. The transposed sums over rows are a product of small
// tiles: `weighted_sums`.
#pragma once
#include "common.cuh"
#include "reduce.cuh"

// Without weights `table` is (G, columns) of floatX; with them `nodes` is (r, columns) of float and weights (N, r). What is used
// begins at column `offset`.
struct Modulation {
    const floatX* table;
    const float* nodes;
    const float* weights;
    unsigned columns, share, r, offset;
};

// The value in a column, counted from the offset, for a row of the batch: the plain way. The sum goes over the nodes in order.
__device__ __forceinline__ float modulation_at(const Modulation& m, unsigned row, unsigned column) {
    if (!m.weights) return to_float(m.table[(unsigned long long)(row / m.share) * m.columns + m.offset + column]);
    const float* w = m.weights + (unsigned long long)row * m.r;
    const float* at = m.nodes + m.offset + column;
    float sum = 0.0f;
#pragma unroll 1
    for (unsigned j = 0; j < m.r; j++) sum = fmaf(w[j], at[(unsigned long long)j * m.columns], sum);
    return sum;
}

static const unsigned WARPS = 8;               // of a block that works on rows
static const unsigned STRIP = 32 * EACH;       // columns that a warp covers at a time
static const unsigned NODES = 4;               // nodes in shared memory at a time
static const unsigned QUARTERS = EACH / 4;     // groups of four floats in a pack: 1 or 2
// The quarters of all lanes lie together; 16 floats between keep asynchronous copies of neighbours in banks of their own.
static const unsigned PLANE = EACH == 8 ? 144 : 128;

// A pack from any address; `vector` says that it is a multiple of 16 bytes.
template <class T> __device__ __forceinline__ void read_any(float (&x)[Pack<T>::N], const T* at, bool vector) {
    if (vector) {
        read(x, at);
    } else {
#pragma unroll
        for (unsigned j = 0; j < Pack<T>::N; j++) x[j] = to_float(at[j]);
    }
}

template <class T> __device__ __forceinline__ void write_any(T* at, const float (&x)[Pack<T>::N], bool vector) {
    if (vector) {
        write(at, x);
    } else {
#pragma unroll
        for (unsigned j = 0; j < Pack<T>::N; j++) at[j] = from_float<T>(x[j]);
    }
}

// Dynamic shared memory: the weights of a block's rows, and what a kernel puts behind them.
extern __shared__ uint4 dynamic_memory[];

// Copies 4 or 16 bytes to shared memory asynchronously, or zeros unless `inside`.
__device__ __forceinline__ void copy4(float* to, const float* from, bool inside) {
    unsigned at = (unsigned)__cvta_generic_to_shared(to), bytes = inside ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy16(void* to, const void* from, bool inside) {
    unsigned at = (unsigned)__cvta_generic_to_shared(to), bytes = inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// The rows of a block: a warp has `each` of them, at most ROWS, from `row` on.
struct Rows {
    unsigned first, row, each, rows, c;
    __device__ Rows(unsigned block, unsigned each, unsigned rows, unsigned c)
        : first(block * WARPS * each), row(first + threadIdx.x / 32 * each), each(each), rows(rows), c(c) {}
    __device__ __forceinline__ bool has(unsigned i) const { return i < each && row + i < rows; }
    __device__ __forceinline__ unsigned long long at(unsigned i, unsigned column) const {
        return (unsigned long long)(row + i) * c + column;
    }
};

// Two stages of nodes.
struct Stages {
    float table[2][NODES][QUARTERS][PLANE];
};

// The weights of a block's rows, by node: four places for each warp, so that one access of 16 bytes reads them.
struct Weights {
    static const unsigned PLACES = WARPS * 4, STEP = PLACES + 4;
    static __device__ __forceinline__ float* memory() { return (float*)dynamic_memory; }
    // What lies behind the weights of r nodes.
    static __device__ __forceinline__ void* behind(unsigned r) { return memory() + r * STEP; }
};

// Adds strips of columns for the rows of a block to what is there, one section of the table after the other: SECTIONS lie c columns
// apart and come from the last to the first. All threads of the block must call it.
template <unsigned SECTIONS, unsigned ROWS> struct Interpolation {
    static_assert(ROWS <= 4, "places of a warp");
    Stages& stages;
    Modulation m;
    unsigned c, left, strip, section, node0; // what is asked for next, and how many times yet: odd and even take turns in memory
    bool vector;

    // Strips `strip` .. `end` follow, `passes` times.
    __device__ Interpolation(Stages& stages, const Modulation& m, const Rows& rows, unsigned strip, unsigned end, unsigned passes = 1)
        : stages(stages), m(m), c(rows.c), strip(strip), section(SECTIONS - 1), node0(0) {
        if (!m.weights) return;
        left = (end - strip) * SECTIONS * ((m.r + NODES - 1) / NODES) * passes;
        vector = aligned(m.nodes) && m.offset % 4 == 0 && m.columns % 4 == 0 && c % 4 == 0;
#pragma unroll 1
        for (unsigned i = threadIdx.x; i < Weights::PLACES * m.r; i += 32 * WARPS) {
            unsigned node = i % m.r, place = i / m.r, row = rows.first + place / 4 * rows.each + place % 4;
            bool inside = place % 4 < rows.each && row < rows.rows;
            const float* from = m.weights + (inside ? (unsigned long long)row * m.r + node : 0);
            copy4(Weights::memory() + node * Weights::STEP + place, from, inside);
        }
        request();
    }

    // Asks for the next nodes.
    __device__ __forceinline__ void request() {
        static const unsigned QUADS = STRIP / 4; // a copy each: NODES*QUADS are at most a block's threads
        unsigned quad = threadIdx.x % QUADS, node = threadIdx.x / QUADS, column = strip * STRIP + quad * 4;
        if (node < NODES) {
            bool inside = node0 + node < m.r && column < c;
            const float* from = m.nodes;
            if (inside) from += (unsigned long long)(node0 + node) * m.columns + m.offset + section * c + column;
            float* to = &stages.table[left % 2][node][quad % QUARTERS][quad / QUARTERS * 4];
            if (vector) {
                copy16(to, from, inside);
            } else {
#pragma unroll 1
                for (unsigned j = 0; j < 4; j++) copy4(to + j, inside && column + j < c ? from + j : m.nodes, inside && column + j < c);
            }
        }
        left--;
        node0 += NODES;
        if (node0 < m.r) return;
        node0 = 0;
        if (section-- > 0) return;
        section = SECTIONS - 1;
        if (++strip * STRIP >= c) strip = 0; // another pass
    }

    // Adds the next section to `values`, node after node.
    __device__ __forceinline__ void add(float (&values)[ROWS][EACH]) {
        const float* weights = Weights::memory() + threadIdx.x / 32 * 4;
        unsigned lane = threadIdx.x % 32;
#pragma unroll 1
        for (unsigned base = 0; base < m.r; base += NODES) {
            unsigned current = (left + 1) % 2;
            wait_for_copies();
            __syncthreads(); // this stage is there, and all are done with the last
            if (left > 0) request();
#pragma unroll
            for (unsigned node = 0; node < NODES; node++) {
                if (base + node >= m.r) break;
                float w[4];
                read(w, weights + (base + node) * Weights::STEP);
#pragma unroll
                for (unsigned quarter = 0; quarter < QUARTERS; quarter++) {
                    float x[4];
                    read(x, &stages.table[current][node][quarter][lane * 4]);
#pragma unroll
                    for (unsigned i = 0; i < ROWS; i++) {
#pragma unroll
                        for (unsigned j = 0; j < 4; j++) values[i][quarter * 4 + j] = fmaf(w[i], x[j], values[i][quarter * 4 + j]);
                    }
                }
            }
        }
    }
};

// The same for a section of a table with an index. Nothing is added to rows that are not there.
template <unsigned ROWS>
__device__ __forceinline__ void add_indexed(
    float (&values)[ROWS][EACH], const Modulation& m, const Rows& rows, unsigned section, unsigned column) {
    bool vector = aligned(m.table) && m.offset % EACH == 0 && m.columns % EACH == 0;
#pragma unroll
    for (unsigned i = 0; i < ROWS; i++) {
        if (!rows.has(i) || column >= rows.c) continue;
        float found[EACH];
        unsigned long long at = (unsigned long long)((rows.row + i) / m.share) * m.columns + m.offset + section * rows.c + column;
        read_any(found, m.table + at, vector && rows.c % EACH == 0);
#pragma unroll
        for (unsigned j = 0; j < EACH; j++) values[i][j] += found[j];
    }
}

// Sums over rows, sum of weights[row][j]*value[row][column] for each node j and, as one node more, sum of value[row][column]: a block
// of 64 threads covers 128/VALUES columns of VALUES arrays, 16 nodes (blockIdx.z) and a slice of the rows (blockIdx.y). 8 rows at a
// time go through shared memory, the next on their way while these are used; a thread sums 16 nodes by 2 columns in registers,
// rows in order, so that all of a warp read the same weights.
static const unsigned TILE_ROWS = 8, TILE_NODES = 16, TILE_THREADS = 64;

template <unsigned VALUES> struct Tiles {
    static const unsigned COLUMNS = 128 / VALUES;
    // As PLANE: the quarters of all packs lie together.
    static const unsigned STEP = COLUMNS / QUARTERS + (QUARTERS == 2 ? 16 : 0);
    float values[TILE_ROWS][VALUES * QUARTERS * STEP];
    float weights[TILE_ROWS][TILE_NODES];
};

// fetch(values, row, column): the values of a pack of columns; plain: whether the sums without weights are wanted. partials:
// (slices, VALUES, r + plain, c).
template <unsigned VALUES, class Fetch>
__device__ __forceinline__ void weighted_sums(
    float* partials, Tiles<VALUES>& tiles, const float* weights, unsigned rows, unsigned each, unsigned r, unsigned plain,
    unsigned c, Fetch fetch) {
    typedef Tiles<VALUES> T;
    const unsigned PACKS = T::COLUMNS / EACH, AT_ONCE = TILE_THREADS / PACKS, PASSES = TILE_ROWS / AT_ONCE;
    unsigned pack = threadIdx.x % PACKS, slot = threadIdx.x / PACKS, node0 = blockIdx.z * TILE_NODES;
    unsigned first = blockIdx.y * each, end = first + each < rows ? first + each : rows;
    unsigned column = blockIdx.x * T::COLUMNS + pack * EACH;
    unsigned array = threadIdx.x / (T::COLUMNS / 2), within = threadIdx.x % (T::COLUMNS / 2) * 2; // the columns it sums
    unsigned place = (array * QUARTERS + within / 4 % QUARTERS) * T::STEP + within / (4 * QUARTERS) * 4 + within % 4;
    float sums[TILE_NODES][2] = {}, plain_sums[VALUES][EACH] = {}, values[PASSES][VALUES][EACH], w[2];
    auto prefetch = [&](unsigned row) {
#pragma unroll
        for (unsigned pass = 0; pass < PASSES; pass++) {
            unsigned at = row + pass * AT_ONCE + slot;
#pragma unroll
            for (unsigned i = 0; i < VALUES * EACH; i++) (&values[pass][0][0])[i] = 0.0f;
            if (at < end && column < c) fetch(values[pass], at, column);
        }
        unsigned at = row + threadIdx.x / 8, node = node0 + threadIdx.x % 8 * 2;
        const float* from = weights + (unsigned long long)at * r + node;
        w[0] = 0.0f, w[1] = 0.0f;
        if (at < end && node < r) {
            if (r % 2 == 0) {
                float2 two = *(const float2*)from;
                w[0] = two.x, w[1] = two.y;
            } else {
                w[0] = from[0];
                if (node + 1 < r) w[1] = from[1];
            }
        }
    };
    prefetch(first);
    for (unsigned row = first; row < end; row += TILE_ROWS) {
#pragma unroll
        for (unsigned pass = 0; pass < PASSES; pass++) {
#pragma unroll
            for (unsigned v = 0; v < VALUES; v++) {
#pragma unroll
                for (unsigned quarter = 0; quarter < QUARTERS; quarter++) {
                    float four[4];
#pragma unroll
                    for (unsigned j = 0; j < 4; j++) {
                        four[j] = values[pass][v][quarter * 4 + j];
                        plain_sums[v][quarter * 4 + j] += four[j];
                    }
                    write(&tiles.values[pass * AT_ONCE + slot][(v * QUARTERS + quarter) * T::STEP + pack * 4], four);
                }
            }
        }
        *(float2*)&tiles.weights[threadIdx.x / 8][threadIdx.x % 8 * 2] = make_float2(w[0], w[1]);
        __syncthreads();
        if (row + TILE_ROWS < end) prefetch(row + TILE_ROWS);
#pragma unroll 2
        for (unsigned k = 0; k < TILE_ROWS; k++) {
            float2 x = *(const float2*)&tiles.values[k][place];
#pragma unroll
            for (unsigned i = 0; i < TILE_NODES; i += 4) {
                float factor[4];
                read(factor, &tiles.weights[k][i]);
#pragma unroll
                for (unsigned j = 0; j < 4; j++) {
                    sums[i + j][0] = fmaf(factor[j], x.x, sums[i + j][0]);
                    sums[i + j][1] = fmaf(factor[j], x.y, sums[i + j][1]);
                }
            }
        }
        __syncthreads();
    }
    unsigned to = blockIdx.x * T::COLUMNS + within, lines = r + plain;
    float* out = partials + ((unsigned long long)blockIdx.y * VALUES + array) * lines * c + to;
    auto put = [&](unsigned line, float x, float y) {
        float* at = out + (unsigned long long)line * c;
        if (c % 2 == 0) {
            if (to < c) *(float2*)at = make_float2(x, y);
        } else {
            if (to < c) at[0] = x;
            if (to + 1 < c) at[1] = y;
        }
    };
#pragma unroll
    for (unsigned i = 0; i < TILE_NODES; i++) {
        if (node0 + i < r) put(node0 + i, sums[i][0], sums[i][1]);
    }
    if (!plain || blockIdx.z > 0) return; // the whole block
#pragma unroll
    for (unsigned v = 0; v < VALUES; v++) {
#pragma unroll
        for (unsigned quarter = 0; quarter < QUARTERS; quarter++) {
            float four[4];
#pragma unroll
            for (unsigned j = 0; j < 4; j++) four[j] = plain_sums[v][quarter * 4 + j];
            write(&tiles.values[slot][(v * QUARTERS + quarter) * T::STEP + pack * 4], four);
        }
    }
    __syncthreads();
    float2 total = make_float2(0.0f, 0.0f);
    for (unsigned k = 0; k < AT_ONCE; k++) {
        float2 x = *(const float2*)&tiles.values[k][place];
        total.x += x.x;
        total.y += x.y;
    }
    put(r, total.x, total.y);
}

// The sums over all slices, in order, of one line and four columns.
template <unsigned VALUES>
__device__ __forceinline__ void add_slices(
    float (&sums)[VALUES][4], const float* partials, unsigned slices, unsigned lines, unsigned line, unsigned c, unsigned column) {
#pragma unroll
    for (unsigned i = 0; i < VALUES * 4; i++) (&sums[0][0])[i] = 0.0f;
    unsigned long long step = (unsigned long long)lines * c;
    const float* at = partials + (unsigned long long)line * c + column;
#pragma unroll 4
    for (unsigned slice = 0; slice < slices * VALUES; slice++) {
        float x[4] = {};
        if (c % 4 == 0) {
            read(x, at + slice * step);
        } else {
#pragma unroll
            for (unsigned j = 0; j < 4; j++) x[j] = column + j < c ? at[slice * step + j] : 0.0f;
        }
#pragma unroll
        for (unsigned j = 0; j < 4; j++) sums[slice % VALUES][j] += x[j];
    }
}
