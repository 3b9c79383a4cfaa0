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
    static_assert(COUNT < 32, "a bit for each");

    const T* at;
    unsigned long long leap; // elements from this thread's row to its next
    unsigned to;
    // In a whole step and in the part's last: a bit for each unit that has elements inside, and how many those have (or more).
    unsigned whole, last;
    int whole_elements, last_elements;
    bool words; // pairs of 16-bit elements begin at multiples of 4 bytes

    // `memory`: where the operand's part of the first stage begins.
    __device__ __forceinline__ Copier(const Operand<T>& from, unsigned first, unsigned begin, unsigned end, unsigned memory) {
        unsigned row = threadIdx.x / UNITS, unit = threadIdx.x % UNITS, chunk = unit * UNIT / 16;
        unsigned first_row = ALONG_K ? first : begin, first_column = ALONG_K ? begin : first;
        at = from.data + (unsigned long long)(first_row + row) * from.step + (first_column + unit * E);
        leap = (unsigned long long)ROWS * from.step;
        to = memory + row * ROW_BYTES + (chunk ^ turn(row)) * 16 + unit * UNIT % 16;
        words = sizeof(T) == 4 || (from.step % 2 == 0 && (unsigned long long)from.data % 4 == 0);

        unsigned depth_left = (end - begin - 1) % DEPTH + 1, lines_left = from.lines - first;
        whole_elements = (int)(ALONG_K ? DEPTH : lines_left) - (int)(unit * E);
        last_elements = (int)(ALONG_K ? depth_left : lines_left) - (int)(unit * E);
        whole = whole_elements > 0 ? units_below(row, ALONG_K ? lines_left : DEPTH) : 0;
        last = last_elements > 0 ? units_below(row, ALONG_K ? lines_left : depth_left) : 0;
    }

    // A bit for each of the rows `row`, `row` + ROWS and so on that is below `rows`.
    static __device__ __forceinline__ unsigned units_below(unsigned row, unsigned rows) {
        unsigned count = row < rows ? min((rows - row + ROWS - 1) / ROWS, COUNT) : 0;
        return ~(~0u << count);
    }

    // By how much the chunks of a row are moved about. turn(i + j) = turn(i) ^ turn(j) where i + j = i | j.
    static __device__ __forceinline__ unsigned turn(unsigned row) {
        return ALONG_K ? row / 2 % 4 : sizeof(T) == 4 ? row % 4 * 2 : row % 8;
    }

    // Copies this step's part to the stage that is so many bytes behind the first, and goes on to the next.
    __device__ __forceinline__ void copy(unsigned stage, bool is_last) {
        unsigned inside = is_last ? last : whole;
#pragma unroll
        for (unsigned i = 0; i < COUNT; i++) {
            unsigned place = (to ^ turn(i * ROWS) * 16) + stage + i * ROWS * ROW_BYTES;
            if (UNIT == 16 || words) {
                copy_async<UNIT>(place, at + leap * i, inside, 1u << i);
            } else {
                int count = inside >> i & 1 ? (is_last ? last_elements : whole_elements) : 0;
                copy_elements(place, at + leap * i, count);
            }
        }
        at += ALONG_K ? DEPTH : leap * COUNT;
    }

    // Copies one or two 16-bit elements, or none; zeros for the rest of a word.
    static __device__ __forceinline__ void copy_elements(unsigned to, const T* from, int count) {
        unsigned low = count > 0 ? *(const unsigned short*)from : 0, high = count > 1 ? *((const unsigned short*)from + 1) : 0;
        store_shared(to, low | high << 16);
    }
};

// ---- shared memory to fragments: TILES tiles of 16 lines, of 32 bytes of depth

// For A the fragment of a tile is a[tile]; for B, a tile is two columns' tiles of 8: words 0, 1 and 2, 3.
template <class T, class S, bool ALONG_K, bool IS_A, unsigned LINES, unsigned TILES> struct Reader {
    static const unsigned ROW_BYTES = ALONG_K ? S::STEP : LINES * sizeof(T);
    static const unsigned PLACES = ALONG_K ? 2 : 4;
    unsigned at[PLACES];

    __device__ __forceinline__ Reader(unsigned first, unsigned memory) {
        unsigned lane = threadIdx.x % 32;
        // The lane's row of 16, and which half of the 32 bytes across: matrices 0..3 are (row, half) (0, 0), (8, 0), (0, 1), (8, 1)
        // for A, and (0, 0), (0, 1), (8, 0), (8, 1) for B; with rows of depth it is the other way about.
        bool rows_first = IS_A == ALONG_K;
        unsigned row = rows_first ? lane % 16 : lane % 8 + lane / 16 * 8;
        unsigned half = rows_first ? lane / 16 : lane / 8 % 2;
#pragma unroll
        for (unsigned i = 0; i < PLACES; i++) {
            if (ALONG_K) {
                at[i] = memory + (first + row) * ROW_BYTES + ((2 * i + half) ^ (row / 2 % 4)) * 16;
            } else if (sizeof(T) == 2) {
                at[i] = memory + row * ROW_BYTES + ((first / 8 + 2 * i + half) ^ (row % 8)) * 16;
            } else {
                unsigned line = lane / 4 * (IS_A ? 2 : 1), k = lane % 4;
                at[i] = memory + k * ROW_BYTES + (first / 4 + ((2 * i + line / 4) ^ (2 * k))) * 16 + line % 4 * 4;
            }
        }
    }

    // k: 0 or 1, the half of the step.
    __device__ __forceinline__ void read(unsigned (&words)[TILES][4], unsigned stage, unsigned k) const {
#pragma unroll
        for (unsigned tile = 0; tile < TILES; tile++) {
            if (ALONG_K) load_matrices(words[tile], at[k] + (stage + tile * 16 * ROW_BYTES));
            else if (sizeof(T) == 2) load_transposed(words[tile], at[tile % PLACES] + (stage + k * 16 * ROW_BYTES));
            else read_words(words[tile], stage + k * 8 * ROW_BYTES, tile);
        }
    }

    // f32 in rows of depth: no instruction transposes these. A lane has lines p and p + 8 of a tile, at depths k and k + 4. Of A it reads
    // two neighbours at a time, and takes them for p and p + 8 (line_of).
    __device__ __forceinline__ void read_words(unsigned (&words)[4], unsigned stage, unsigned tile) const {
        if (IS_A) {
            unsigned from = at[tile % 2 * 2] + (stage + tile / 2 * 128);
            load_shared(words[0], words[1], from);
            load_shared(words[2], words[3], from + 4 * ROW_BYTES);
        } else {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) { // lines p, p, p + 8, p + 8
                unsigned eight = tile * 2 + i / 2;
                load_shared(words[i], at[eight % PLACES] + (stage + eight / 4 * 128 + i % 2 * 4 * ROW_BYTES));
            }
        }
    }
};

// The row of 16 that read_words puts into row `place` of a fragment of A.
__device__ __forceinline__ unsigned line_of(unsigned place) { return place % 8 * 2 + place / 8; }

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
            unsigned word;
            load_shared(word, stage + row * Layout::ROW_BYTES + place);
            sum += __uint_as_float(word);
        }
    }
    template <class Give> __device__ __forceinline__ void give(Give give) const { give(threadIdx.x, sum); }
};

// ---- the product

// What a warp has summed: tiles of 16 x 8, as multiply() leaves them; MOVED: the row line_of(i) of 16 in the place of row i.
template <class S, bool MOVED = false> struct Sums {
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

// Rounds fragments of A (IS_A) or B: words of the same line are 0, 2 and 1, 3, or 0, 1 and 2, 3.
template <bool IS_A, unsigned TILES> __device__ __forceinline__ void round_to_tf32(unsigned (&words)[TILES][4]) {
#pragma unroll
    for (unsigned i = 0; i < TILES; i++) {
        round_to_tf32(words[i][0], words[i][IS_A ? 2 : 1]);
        round_to_tf32(words[i][IS_A ? 1 : 2], words[i][3]);
    }
}

// A_ALONG_K: rows of `a` are lines; else they are depths. `memory` has S::BYTES, multiples of 128 bytes; when this returns it may be used
// again. add_rows(fragments of A, stage, half of the step) is called for each half of a step. All threads must arrive.
template <class S, bool A_ALONG_K, bool B_ALONG_K, class T, class Rows>
__device__ __forceinline__ void product(
    Sums<S, sizeof(T) == 4 && !A_ALONG_K>& sums, const Operand<T>& a, const Operand<T>& b, const Part& part, unsigned memory,
    Rows add_rows) {
    const unsigned DOWN = Sums<S>::DOWN, PAIRS = Sums<S>::ACROSS / 2, DEPTH = S::STEP / sizeof(T), AHEAD = S::STAGES - 1;
    const unsigned ROWS = S::ROWS, COLUMNS = S::COLUMNS;
    unsigned warp = threadIdx.x / 32, across = COLUMNS / S::WARP_COLUMNS;
    Copier<T, S, A_ALONG_K, ROWS> copy_a(a, part.row, part.begin, part.end, memory);
    Copier<T, S, B_ALONG_K, COLUMNS> copy_b(b, part.column, part.begin, part.end, memory + ROWS * S::STEP);
    Reader<T, S, A_ALONG_K, true, ROWS, DOWN> read_a(warp / across * S::WARP_ROWS, memory);
    Reader<T, S, B_ALONG_K, false, COLUMNS, PAIRS> read_b(warp % across * S::WARP_COLUMNS, memory + ROWS * S::STEP);

    unsigned left = (part.end - part.begin + DEPTH - 1) / DEPTH; // steps that are not yet multiplied
    if (left == 0) return;
#pragma unroll
    for (unsigned place = 0; place < AHEAD; place++) {
        if (left > place) {
            copy_a.copy(place * S::STAGE_BYTES, left == place + 1);
            copy_b.copy(place * S::STAGE_BYTES, left == place + 1);
        }
        copies_commit();
    }

    unsigned fragments_a[2][DOWN][4], fragments_b[2][PAIRS][4];
    auto read = [&](unsigned stage, unsigned k) {
        read_a.read(fragments_a[k], stage, k);
        read_b.read(fragments_b[k], stage, k);
    };
    auto arrive = [&](unsigned stage) { // the next step has come, for all threads, and all have read what will be written over next
        copies_wait<AHEAD - 1>();
        __syncthreads();
        read(stage, 0);
    };
    auto multiply = [&](unsigned stage, unsigned k) {
        add_rows(fragments_a[k], memory + stage, k);
        if (sizeof(T) == 4) {
            round_to_tf32<true>(fragments_a[k]);
            round_to_tf32<false>(fragments_b[k]);
        }
        multiply_step<T>(sums.of, fragments_a[k], fragments_b[k]);
    };
    arrive(0);
    // All but the second half of the last step, which is left for behind the loop.
    auto step = [&](unsigned place) {
        unsigned next = place + 1 < S::STAGES ? place + 1 : 0, free = place > 0 ? place - 1 : AHEAD;
        read(place * S::STAGE_BYTES, 1);
        if (left > AHEAD) {
            copy_a.copy(free * S::STAGE_BYTES, left == AHEAD + 1);
            copy_b.copy(free * S::STAGE_BYTES, left == AHEAD + 1);
        }
        copies_commit();
        multiply(place * S::STAGE_BYTES, 0);
        if (--left == 0) return false;
        arrive(next * S::STAGE_BYTES);
        multiply(place * S::STAGE_BYTES, 1);
        return true;
    };
    unsigned place = 0;
    if (S::ALIGNED) { // in turn, so that each place is a constant: addresses need no arithmetic
        static_assert(S::STAGES == 3, "a step for each place");
#pragma unroll 1
        while (step(0) && step(1) && step(2)) {}
    } else {
#pragma unroll 1
        while (step(place)) place = place + 1 < S::STAGES ? place + 1 : 0;
    }
    multiply(0, 1);
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
template <class S, bool MOVED, class Finish>
__device__ __forceinline__ void write_sums(
    const Sums<S, MOVED>& sums, const Part& part, unsigned rows, unsigned columns, float* memory, bool wide, const Finish& finish) {
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
            static_assert(!MOVED || STEP == 2, "of moved rows, neighbours are eight apart, and every second lies beside the other");
            unsigned column = lane % LANES * W;
            const float* from = memory + lane / LANES * (MOVED ? 8 : 1) * ROW + slab_place(column);
            auto fetch = [=](float (&values)[W], unsigned i) {
#pragma unroll
                for (unsigned e = 0; e < W; e += 4) {
                    float4 four = *(const float4*)(from + i * (MOVED ? 1 : STEP) * ROW + e);
                    values[e] = four.x, values[e + 1] = four.y, values[e + 2] = four.z, values[e + 3] = four.w;
                }
            };
            column += first_column;
            if (WholeWarps<Finish>::VALUE || column < columns) give_rows<16 / STEP, STEP>(finish, row + lane / LANES, rows, column, fetch);
        } else if constexpr (!WholeWarps<Finish>::VALUE) {
#pragma unroll 1
            for (unsigned r = 0; r < 32; r++) {
                unsigned column = r % 2 * MIDDLE + lane, at = row + (MOVED ? line_of(r / 2) : r / 2);
                if (at >= rows || first_column + column >= columns) continue;
                float values[1] = {memory[r / 2 * ROW + column + r % 2 * GAP]};
                finish.template take<1>(at, first_column + column, values);
            }
        }
        __syncwarp();
    }
}
