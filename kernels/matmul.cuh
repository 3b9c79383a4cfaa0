// Matrix products on tensor cores: sums = A * B in f32, of A (M, K) and B (K, N) in 16-bit floats, or in f32 rounded to tf32.
//
// A block covers ROWS x 64*k of the result, a warp WARP_ROWS x 64. K goes through shared memory in steps of 64 bytes (32 elements of 16
// bits, 16 of f32), three steps at a time: while one is multiplied, the next two are on their way. Both operands keep the order
// that they have in global memory; 16-byte chunks are moved about (XOR) so that neither copies nor matrix loads meet in a bank.
// Bytes moved per result: (1/ROWS + 1/COLUMNS)*K elements. Sums go over K in order: the same bits every time.
#pragma once
#include "mma.cuh"

// ROWS x COLUMNS of a block, WARP_ROWS x 64 of a warp. ALIGNED: rows of the operands begin at multiples of 16 bytes; else
// elements are copied one by one, with the same result.
template <unsigned ROWS_, unsigned COLUMNS_, unsigned WARP_ROWS_, bool ALIGNED_> struct TileShape {
    static const unsigned ROWS = ROWS_, COLUMNS = COLUMNS_, WARP_ROWS = WARP_ROWS_, WARP_COLUMNS = 64, STAGES = 3, STEP = 64;
    static const unsigned THREADS = ROWS / WARP_ROWS * (COLUMNS / WARP_COLUMNS) * 32;
    static const unsigned STAGE_BYTES = (ROWS + COLUMNS) * STEP, BYTES = STAGES * STAGE_BYTES;
    static const bool ALIGNED = ALIGNED_;
};

// Rows of `lines` lines by depth, or of depth by lines, `step` elements from row to row. A line is a row of A or a column of B.
template <class T> struct Operand {
    const T* data;
    unsigned lines, step;
};

// Which part of the result and of K a block computes.
struct Part {
    unsigned row, column; // the first
    unsigned begin, end;  // depth
};

// Blocks go through the result in bands of eight tiles of rows, column by column, so that those under way at a time share what
// they read through the cache. blockIdx.y is the part of K, `steps_each` steps of `depth_of_step`.
template <class S> __device__ __forceinline__ Part part_of_block(unsigned rows, unsigned columns, unsigned depth, unsigned each) {
    const unsigned BAND = 8;
    unsigned down = (rows + S::ROWS - 1) / S::ROWS, across = (columns + S::COLUMNS - 1) / S::COLUMNS;
    unsigned band = blockIdx.x / (BAND * across), inside = blockIdx.x % (BAND * across);
    unsigned height = min(BAND, down - band * BAND);
    Part part;
    part.row = (band * BAND + inside % height) * S::ROWS;
    part.column = inside / height * S::COLUMNS;
    part.begin = blockIdx.y * each;
    part.end = min(depth, part.begin + each);
    return part;
}

// ---- global to shared memory: one operand's part of a step, LINES lines

// A thread copies every ROWS-th row's unit of 16 bytes, or of 4 where rows do not begin at multiples of 16.
template <class T, class S, bool ALONG_K, unsigned LINES> struct Copier {
    static const unsigned UNIT = S::ALIGNED ? 16 : 4, E = UNIT / sizeof(T), DEPTH = S::STEP / sizeof(T);
    static const unsigned ROW_BYTES = ALONG_K ? S::STEP : LINES * sizeof(T);
    static const unsigned UNITS = ROW_BYTES / UNIT, ROWS = S::THREADS / UNITS, COUNT = LINES * S::STEP / UNIT / S::THREADS;
    static_assert(S::THREADS % UNITS == 0 && (ROWS & (ROWS - 1)) == 0, "turn() is taken apart below");

    const T* at;
    unsigned long long leap, advance;  // elements from this thread's row to its next, and from step to step
    int rows_left, columns_left;       // from this thread's first element on
    unsigned to;
    bool words; // pairs of 16-bit elements begin at multiples of 4 bytes

    __device__ __forceinline__ Copier(const Operand<T>& from, unsigned first, unsigned begin, unsigned end) {
        unsigned row = threadIdx.x / UNITS, unit = threadIdx.x % UNITS, chunk = unit * UNIT / 16;
        unsigned first_row = ALONG_K ? first : begin, first_column = ALONG_K ? begin : first;
        at = from.data + (unsigned long long)(first_row + row) * from.step + (first_column + unit * E);
        leap = (unsigned long long)ROWS * from.step;
        advance = ALONG_K ? DEPTH : (unsigned long long)DEPTH * from.step;
        rows_left = (int)((ALONG_K ? from.lines : end) - first_row) - (int)row;
        columns_left = (int)((ALONG_K ? end : from.lines) - first_column) - (int)(unit * E);
        to = row * ROW_BYTES + (chunk ^ turn(row)) * 16 + unit * UNIT % 16;
        words = sizeof(T) == 4 || (from.step % 2 == 0 && (unsigned long long)from.data % 4 == 0);
    }

    // By how much the chunks of a row are moved about. turn(i + j) = turn(i) ^ turn(j) where i + j = i | j.
    static __device__ __forceinline__ unsigned turn(unsigned row) {
        return ALONG_K ? row / 2 % 4 : sizeof(T) == 4 ? row % 4 * 2 : row % 8;
    }

    // Copies this step's part to `stage`, and goes on to the next.
    __device__ __forceinline__ void copy(unsigned stage) {
#pragma unroll
        for (unsigned i = 0; i < COUNT; i++) {
            bool inside = (int)(i * ROWS) < rows_left;
            unit(stage + (to ^ turn(i * ROWS) * 16) + i * ROWS * ROW_BYTES, at + leap * i, inside ? columns_left : 0);
        }
        at += advance;
        if (ALONG_K) columns_left -= DEPTH;
        else rows_left -= DEPTH;
    }

    // Copies the elements of a unit that there are; zeros for the rest.
    __device__ __forceinline__ void unit(unsigned to, const T* from, int count) const {
        if (UNIT == 16 || words) {
            copy_async<UNIT>(to, from, count > 0);
        } else {
            unsigned low = count > 0 ? *(const unsigned short*)from : 0, high = count > 1 ? *((const unsigned short*)from + 1) : 0;
            store_shared(to, low | high << 16);
        }
    }
};

// ---- shared memory to fragments: TILES tiles of 16 lines, of 32 bytes of depth

// For A the fragment of a tile is a[tile]; for B, a tile is two columns' tiles of 8: words 0, 1 and 2, 3.
template <class T, class S, bool ALONG_K, bool IS_A, unsigned LINES, unsigned TILES> struct Reader {
    static const unsigned ROW_BYTES = ALONG_K ? S::STEP : LINES * sizeof(T);
    static const unsigned PLACES = ALONG_K ? 2 : 4;
    unsigned at[PLACES];

    __device__ __forceinline__ Reader(unsigned first) {
        unsigned lane = threadIdx.x % 32;
        // The lane's row of 16, and which half of the 32 bytes across: matrices 0..3 are (row, half) (0, 0), (8, 0), (0, 1), (8, 1)
        // for A, and (0, 0), (0, 1), (8, 0), (8, 1) for B; with rows of depth it is the other way about.
        bool rows_first = IS_A == ALONG_K;
        unsigned row = rows_first ? lane % 16 : lane % 8 + lane / 16 * 8;
        unsigned half = rows_first ? lane / 16 : lane / 8 % 2;
#pragma unroll
        for (unsigned i = 0; i < PLACES; i++) {
            if (ALONG_K) {
                at[i] = (first + row) * ROW_BYTES + ((2 * i + half) ^ (row / 2 % 4)) * 16;
            } else if (sizeof(T) == 2) {
                at[i] = row * ROW_BYTES + ((first / 8 + 2 * i + half) ^ (row % 8)) * 16;
            } else {
                unsigned line = lane / 4, k = lane % 4;
                at[i] = k * ROW_BYTES + (first / 4 + ((2 * i) ^ (2 * k)) + line / 4) * 16 + line % 4 * 4;
            }
        }
    }

    // k: 0 or 1, the half of the step.
    __device__ __forceinline__ void read(unsigned (&words)[TILES][4], unsigned stage, unsigned k) const {
#pragma unroll
        for (unsigned tile = 0; tile < TILES; tile++) {
            if (ALONG_K) {
                load_matrices(words[tile], stage + at[k] + tile * 16 * ROW_BYTES);
            } else if (sizeof(T) == 2) {
                load_transposed(words[tile], stage + at[tile % PLACES] + k * 16 * ROW_BYTES);
            } else {
#pragma unroll
                for (unsigned i = 0; i < 4; i++) { // A: lines 0, 8, 0, 8; depths 0, 0, 4, 4. B: the other way about
                    unsigned eight = tile * 2 + (IS_A ? i % 2 : i / 2), four = IS_A ? i / 2 : i % 2;
                    words[tile][i] = load_shared(stage + at[eight % 4] + eight / 4 * 128 + (k * 8 + four * 4) * ROW_BYTES);
                }
            }
        }
    }
};

// ---- sums of the rows of A, beside the product

// Rows of A as threads hold them: 16-bit elements are multiplied by ones, by the warps that have the first columns.
template <class T, class S> struct RowSums {
    static const unsigned TILES = S::WARP_ROWS / 16, ACROSS = S::COLUMNS / S::WARP_COLUMNS;
    float sums[TILES][4] = {};

    __device__ __forceinline__ void add(const unsigned (&a)[TILES][4], unsigned, unsigned) {
        const unsigned ONES = FLOATX == 1 ? 0x3f803f80u : 0x3c003c00u;
        if (threadIdx.x / 32 % ACROSS != 0) return;
#pragma unroll
        for (unsigned i = 0; i < TILES; i++) multiply(T(), sums[i], a[i], ONES, ONES);
    }
    // Calls give(row, sum) for the rows of this block that the thread has.
    template <class Give> __device__ __forceinline__ void give(Give give) const {
        unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        if (warp % ACROSS == 0 && lane % 4 == 0) {
#pragma unroll
            for (unsigned i = 0; i < TILES * 2; i++) give(warp / ACROSS * S::WARP_ROWS + i * 8 + lane / 4, sums[i / 2][i % 2 * 2]);
        }
        __syncwarp();
    }
};

// f32 is added as it is, not rounded to tf32: a thread has a row, and reads it in shared memory, where rows are of depth.
template <class S> struct RowSums<float, S> {
    static const unsigned TILES = S::WARP_ROWS / 16;
    static_assert(S::ROWS == S::THREADS, "a thread, a row");
    float sum = 0.0f;

    __device__ __forceinline__ void add(const unsigned (&)[TILES][4], unsigned stage, unsigned k) {
        typedef Copier<float, S, false, S::ROWS> Layout;
        if (k != 0) return; // once a step
#pragma unroll
        for (unsigned row = 0; row < Layout::DEPTH; row++) {
            unsigned place = (threadIdx.x / 4 ^ Layout::turn(row)) * 16 + threadIdx.x % 4 * 4;
            sum += __uint_as_float(load_shared(stage + row * Layout::ROW_BYTES + place));
        }
    }
    template <class Give> __device__ __forceinline__ void give(Give give) const { give(threadIdx.x, sum); }
};

// ---- the product

// What a warp has summed: tiles of 16 x 8, as multiply() leaves them.
template <class S> struct Sums {
    static const unsigned DOWN = S::WARP_ROWS / 16, ACROSS = S::WARP_COLUMNS / 8;
    float of[DOWN][ACROSS][4] = {};
};

template <class T, unsigned DOWN, unsigned PAIRS>
__device__ __forceinline__ void multiply_step(
    float (&sums)[DOWN][PAIRS * 2][4], const unsigned (&a)[DOWN][4], const unsigned (&b)[PAIRS][4]) {
#pragma unroll
    for (unsigned i = 0; i < DOWN; i++) {
#pragma unroll
        for (unsigned j = 0; j < PAIRS * 2; j++) multiply(T(), sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
}

template <unsigned TILES> __device__ __forceinline__ void round_to_tf32(unsigned (&words)[TILES][4]) {
#pragma unroll
    for (unsigned i = 0; i < TILES; i++) {
#pragma unroll
        for (unsigned j = 0; j < 4; j++) words[i][j] = to_tf32(words[i][j]);
    }
}

// A_ALONG_K: rows of `a` are lines; else they are depths. `memory` has S::BYTES, multiples of 128 bytes; when this returns it may be used
// again. add_rows(fragments of A, stage, half of the step) is called for each half of a step. All threads must arrive.
template <class S, bool A_ALONG_K, bool B_ALONG_K, class T, class Rows>
__device__ __forceinline__ void product(
    Sums<S>& sums, const Operand<T>& a, const Operand<T>& b, const Part& part, unsigned memory, Rows add_rows) {
    const unsigned DOWN = Sums<S>::DOWN, PAIRS = Sums<S>::ACROSS / 2, DEPTH = S::STEP / sizeof(T);
    const unsigned ROWS = S::ROWS, COLUMNS = S::COLUMNS;
    unsigned warp = threadIdx.x / 32, across = COLUMNS / S::WARP_COLUMNS;
    Copier<T, S, A_ALONG_K, ROWS> copy_a(a, part.row, part.begin, part.end);
    Copier<T, S, B_ALONG_K, COLUMNS> copy_b(b, part.column, part.begin, part.end);
    copy_b.to += ROWS * S::STEP;
    Reader<T, S, A_ALONG_K, true, ROWS, DOWN> read_a(warp / across * S::WARP_ROWS);
    Reader<T, S, B_ALONG_K, false, COLUMNS, PAIRS> read_b(warp % across * S::WARP_COLUMNS);

    unsigned steps = (part.end - part.begin + DEPTH - 1) / DEPTH, end = memory + S::BYTES;
    for (unsigned step = 0; step < S::STAGES - 1; step++) {
        if (step < steps) {
            copy_a.copy(memory + step * S::STAGE_BYTES);
            copy_b.copy(memory + step * S::STAGE_BYTES);
        }
        copies_commit();
    }
    copies_wait<S::STAGES - 2>();
    __syncthreads();

    unsigned fragments_a[2][DOWN][4], fragments_b[2][PAIRS][4];
    unsigned reading = memory, writing = memory + (S::STAGES - 1) * S::STAGE_BYTES;
    read_a.read(fragments_a[0], reading, 0);
    read_b.read(fragments_b[0], reading + ROWS * S::STEP, 0);
#pragma unroll 1
    for (unsigned step = 0; step < steps; step++) {
#pragma unroll
        for (unsigned k = 0; k < 2; k++) {
            if (k == 1) {
                // The next step has come, for all threads, and all have read the last fragments of this one: its place is free. Behind
                // the last step there is none: then this one is read again, for nothing.
                copies_wait<S::STAGES - 2>();
                __syncthreads();
                unsigned next = reading + S::STAGE_BYTES == end ? memory : reading + S::STAGE_BYTES;
                reading = step + 1 < steps ? next : reading;
            }
            read_a.read(fragments_a[1 - k], reading, 1 - k);
            read_b.read(fragments_b[1 - k], reading + ROWS * S::STEP, 1 - k);
            if (k == 0) {
                if (step + S::STAGES - 1 < steps) {
                    copy_a.copy(writing);
                    copy_b.copy(writing);
                    writing = writing + S::STAGE_BYTES == end ? memory : writing + S::STAGE_BYTES;
                }
                copies_commit();
            }
            add_rows(fragments_a[k], reading, k);
            if (sizeof(T) == 4) {
                round_to_tf32(fragments_a[k]);
                round_to_tf32(fragments_b[k]);
            }
            multiply_step<T>(sums.of, fragments_a[k], fragments_b[k]);
        }
    }
    copies_wait<0>();
    __syncthreads();
}

// ---- the way out

// Rows of 64 floats lie 72 words apart in shared memory, with 4 words left out in the middle: no two lanes of an access meet in a bank.
static const unsigned SLAB_ROW = 72;
__device__ __forceinline__ unsigned slab_place(unsigned column) {
    return column / 64 * SLAB_ROW + column % 64 + (column % 64 >= 32 ? 4 : 0);
}

// What `finish` becomes for one tile of `rows` rows; all threads come here, and shared memory is free.
template <class S, class Finish>
__device__ __forceinline__ const Finish& of_tile(const Finish& finish, const Part&, unsigned, float*) {
    return finish;
}

// Whether give_rows of a `finish` gets whole warps, W columns a lane whatever `wide` says, and sees itself which results there are.
template <class Finish> struct WholeWarps {
    static const bool VALUE = false;
};

// Gives a lane's results to `finish`: COUNT packs of a column, in every STEP-th row from `row` on; fetch(values, i) reads the i-th.
template <unsigned COUNT, unsigned STEP, class Finish, class Fetch>
__device__ __forceinline__ void give_rows(const Finish& finish, unsigned row, unsigned rows, unsigned column, const Fetch& fetch) {
#pragma unroll 1
    for (unsigned i = 0; i < COUNT && row + i * STEP < rows; i++) {
        float values[Finish::W];
        fetch(values, i);
        finish.template take<Finish::W>(row + i * STEP, column, values);
    }
}

// Calls finish for every result of this warp: finish.take<W>(row, column, values) with W neighbours of a row at a time, W = finish.W if
// `wide`, else 1. Sums go through shared memory, 16 rows at a time, so that a row's 64 results leave together. 4608 bytes a warp.
template <class S, class Finish>
__device__ __forceinline__ void write_sums(
    const Sums<S>& sums, const Part& part, unsigned rows, unsigned columns, float* memory, bool wide, const Finish& finish) {
    const unsigned ROW = SLAB_ROW, MIDDLE = 32, GAP = 4, W = Finish::W;
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, across = S::COLUMNS / S::WARP_COLUMNS;
    unsigned first_row = part.row + warp / across * S::WARP_ROWS, first_column = part.column + warp % across * S::WARP_COLUMNS;
    memory += warp * 16 * ROW;
#pragma unroll 1
    for (unsigned tile = 0; tile < Sums<S>::DOWN; tile++) {
#pragma unroll
        for (unsigned i = 0; i < Sums<S>::DOWN; i++) {
            if (i != tile) continue; // registers have no index
#pragma unroll
            for (unsigned j = 0; j < Sums<S>::ACROSS; j++) {
                const float* four = sums.of[i][j];
                float* at = memory + lane / 4 * ROW + j * 8 + (j >= 4 ? GAP : 0) + lane % 4 * 2;
                *(float2*)at = make_float2(four[0], four[1]);
                *(float2*)(at + 8 * ROW) = make_float2(four[2], four[3]);
            }
        }
        __syncwarp();
        unsigned row = first_row + tile * 16;
        if (wide || WholeWarps<Finish>::VALUE) {
            const unsigned LANES = S::WARP_COLUMNS / W, STEP = 32 / LANES; // of a row; rows at a time
            unsigned column = lane % LANES * W;
            const float* from = memory + lane / LANES * ROW + slab_place(column);
            auto fetch = [=](float (&values)[W], unsigned i) {
#pragma unroll
                for (unsigned e = 0; e < W; e += 4) {
                    float4 four = *(const float4*)(from + i * STEP * ROW + e);
                    values[e] = four.x, values[e + 1] = four.y, values[e + 2] = four.z, values[e + 3] = four.w;
                }
            };
            column += first_column;
            if (WholeWarps<Finish>::VALUE || column < columns) give_rows<16 / STEP, STEP>(finish, row + lane / LANES, rows, column, fetch);
        } else if constexpr (!WholeWarps<Finish>::VALUE) {
#pragma unroll 1
            for (unsigned r = 0; r < 32; r++) {
                unsigned column = r % 2 * MIDDLE + lane;
                if (row + r / 2 >= rows || first_column + column >= columns) continue;
                float values[1] = {memory[r / 2 * ROW + column + r % 2 * GAP]};
                finish.template take<1>(row + r / 2, first_column + column, values);
            }
        }
        __syncwarp();
    }
}
