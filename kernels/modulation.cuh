// Modulation tables: where layer norm takes shift and scale, and the gated residual its gate. A table has one row per distinct
// condition; rows of the batch are mapped to it by index (row / share) or, with `weights`, as a combination of its r rows.
//
// For a combination a block of 8 warps evaluates columns of all of its rows at once: nodes of the table and weights go through shared
// memory, 8 nodes and 32 packs of columns at a time, the next while the last are used. Each number of the table is read
// once by a block, and from shared memory once for the ROWS rows of a warp. The transposed sums over rows are a product of small
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
static const unsigned HELD = 1024 / STRIP;     // strips of a row that a warp holds in registers
static const unsigned NODES = 8;               // nodes in shared memory at a time
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

// Copies 4 or 16 bytes to shared memory asynchronously, or zeros unless `inside`.
__device__ __forceinline__ void copy4(float* to, const float* from, bool inside) {
    unsigned at = (unsigned)__cvta_generic_to_shared(to), bytes = inside ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy16(float* to, const float* from, bool inside) {
    unsigned at = (unsigned)__cvta_generic_to_shared(to), bytes = inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Two stages of nodes and weights. SECTIONS: shift and scale, or one of them, or the gate; they lie `c` columns apart.
template <unsigned SECTIONS, unsigned ROWS> struct Stages {
    float table[2][NODES][SECTIONS][QUARTERS][PLANE];
    float weights[2][NODES][WARPS * ROWS + 4]; // 4 more: the copies of a warp meet in no bank
};

// Evaluates strips of columns for the rows `first` .. `first + WARPS*ROWS` of a block. All threads of the block must call it.
template <unsigned SECTIONS, unsigned ROWS> struct Interpolation {
    Stages<SECTIONS, ROWS>& stages;
    Modulation m;
    unsigned first, rows, c, stage, end;
    bool vector;

    // Strips `strip` .. `strips_end` follow.
    __device__ Interpolation(
        Stages<SECTIONS, ROWS>& stages, const Modulation& m, unsigned first, unsigned rows, unsigned c, unsigned strip,
        unsigned strips_end)
        : stages(stages), m(m), first(first), rows(rows), c(c) {
        unsigned groups = (m.r + NODES - 1) / NODES;
        stage = strip * groups, end = strips_end * groups;
        vector = aligned(m.nodes) && m.offset % 4 == 0 && m.columns % 4 == 0 && c % 4 == 0;
        if (m.weights) request();
    }

    // Asks for the nodes and weights of `stage`.
    __device__ __forceinline__ void request() {
        unsigned groups = (m.r + NODES - 1) / NODES, strip = stage / groups, node0 = stage % groups * NODES, buffer = stage % 2;
        if (threadIdx.x < NODES * WARPS * ROWS) {
            unsigned row = threadIdx.x / NODES, node = threadIdx.x % NODES;
            bool inside = first + row < rows && node0 + node < m.r;
            const float* from = m.weights + (inside ? (unsigned long long)(first + row) * m.r + node0 + node : 0);
            copy4(&stages.weights[buffer][node][row], from, inside);
        }
        static const unsigned QUADS = STRIP / 4;
#pragma unroll 1
        for (unsigned i = threadIdx.x; i < NODES * SECTIONS * QUADS; i += 32 * WARPS) {
            unsigned quad = i % QUADS, section = i / QUADS % SECTIONS, node = i / (QUADS * SECTIONS);
            unsigned column = strip * STRIP + quad * 4;
            bool inside = node0 + node < m.r && column < c;
            const float* from = m.nodes;
            if (inside) from += (unsigned long long)(node0 + node) * m.columns + m.offset + section * c + column;
            float* to = &stages.table[buffer][node][section][quad % QUARTERS][quad / QUARTERS * 4];
            if (vector) {
                copy16(to, from, inside);
            } else {
                for (unsigned j = 0; j < 4; j++) copy4(to + j, inside && column + j < c ? from + j : m.nodes, inside && column + j < c);
            }
        }
    }

    // The values of the next strip for the rows of this warp, summed over the nodes in order.
    __device__ __forceinline__ void next(float (&values)[SECTIONS][ROWS][EACH]) {
        unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
        for (unsigned i = 0; i < SECTIONS * ROWS * EACH; i++) (&values[0][0][0])[i] = 0.0f;
        for (unsigned node0 = 0; node0 < m.r; node0 += NODES) {
            unsigned buffer = stage % 2;
            wait_for_copies();
            __syncthreads(); // this stage is there, and all are done with the last
            if (++stage < end) request();
#pragma unroll 2
            for (unsigned node = 0; node < NODES; node++) {
                float w[ROWS];
#pragma unroll
                for (unsigned i = 0; i < ROWS; i++) w[i] = stages.weights[buffer][node][warp * ROWS + i];
#pragma unroll
                for (unsigned section = 0; section < SECTIONS; section++) {
#pragma unroll
                    for (unsigned quarter = 0; quarter < QUARTERS; quarter++) {
                        float x[4];
                        read(x, &stages.table[buffer][node][section][quarter][lane * 4]);
#pragma unroll
                        for (unsigned i = 0; i < ROWS; i++) {
#pragma unroll
                            for (unsigned j = 0; j < 4; j++) {
                                values[section][i][quarter * 4 + j] = fmaf(w[i], x[j], values[section][i][quarter * 4 + j]);
                            }
                        }
                    }
                }
            }
        }
    }
};

// The same for a table with an index: a pack of each section, for the row of this warp that has it. Zeros where there is none.
template <unsigned SECTIONS, unsigned ROWS>
__device__ __forceinline__ void indexed(
    float (&values)[SECTIONS][ROWS][EACH], const Modulation& m, unsigned row, unsigned rows, unsigned c, unsigned column) {
    bool vector = aligned(m.table) && m.offset % EACH == 0 && m.columns % EACH == 0;
#pragma unroll
    for (unsigned i = 0; i < ROWS; i++) {
        bool inside = row + i < rows && column < c;
        const floatX* at = m.table + (inside ? (unsigned long long)((row + i) / m.share) * m.columns + m.offset + column : 0);
#pragma unroll
        for (unsigned section = 0; section < SECTIONS; section++) {
#pragma unroll
            for (unsigned j = 0; j < EACH; j++) values[section][i][j] = 0.0f;
            if (inside) read_any(values[section][i], at + section * c, vector);
        }
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
