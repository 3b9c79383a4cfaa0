// What the kernels of attention for 16-bit floats share: tiles of a head's rows in shared memory, their fragments, and the way out.
//
// A tile is some rows of one head, its K columns filled up with zeros to WIDTH, a multiple of 16. It is copied in the background and read by
// ldmatrix, as rows or as columns. A row's 16-byte chunks are moved about (XOR) so that neither copies nor matrix loads meet in a bank,
// whatever the width: WIDTH/8 = LANES * an odd number, and LANES is how many chunks take turns.
#pragma once
#include "mma.cuh"
#include "reduce.cuh"

static const float LOG2_E = 1.44269504f;

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// 2^x, off by 2^-22 of it; 0 where the result is below 2^-126.
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Which tile of a loop a step takes: one of whole rows, or the last.
struct Inner {
    static const bool IS_LAST = false;
};
struct Last {
    static const bool IS_LAST = true;
};

// Keeps a number in its register: what the compiler can compute again it does, for every tile, where that saves one.
__device__ __forceinline__ void keep(unsigned& x) { asm volatile("" : "+r"(x)); }

// Two numbers in a word, the first in its low half.
__device__ __forceinline__ unsigned packed(bf16, float low, float high) {
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
__device__ __forceinline__ unsigned packed(f16, float low, float high) {
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

// Of which head and sample a block computes how much: `first` is its first row of the sample's, `start` the sample's first of all.
struct HeadBlock {
    unsigned first, head, sample;
    unsigned long long start;

    // Blocks of the same head follow each other: they share keys and values through the cache.
    __device__ __forceinline__ HeadBlock(unsigned rows, unsigned tokens, unsigned heads) {
        unsigned tiles = (tokens + rows - 1) / rows, rest = blockIdx.x / tiles;
        first = blockIdx.x % tiles * rows;
        head = rest % heads;
        sample = rest / heads;
        start = (unsigned long long)sample * tokens;
    }
};

// A head's part of rows of floats: `step` elements from row to row.
template <class T> struct HeadRows {
    T* data;
    unsigned long long step;
    unsigned rows, columns;
};

// q (part 0), k (1) or v (2) of a block's head and sample, in (N, 3*H*K).
template <class T>
__device__ __forceinline__ HeadRows<T> part_of(T* qkv, unsigned part, const HeadBlock& block, unsigned tokens, unsigned heads, unsigned k) {
    unsigned long long step = 3ull * heads * k;
    HeadRows<T> rows = {qkv + block.start * step + (part * heads + block.head) * k, step, tokens, k};
    return rows;
}

// A block's head and sample in (N, H*K).
template <class T>
__device__ __forceinline__ HeadRows<T> rows_of(T* o, const HeadBlock& block, unsigned tokens, unsigned heads, unsigned k) {
    unsigned long long step = (unsigned long long)heads * k;
    HeadRows<T> rows = {o + block.start * step + block.head * k, step, tokens, k};
    return rows;
}

#if FLOATX != 0

static const unsigned ATTENTION_THREADS = 128;

// Blocks on a multiprocessor, of kernels that are given the registers for as many: for newer cards the compiler would rather have three, and
// spills.
#if __CUDA_ARCH__ >= 1000
static const unsigned BLOCKS = 2;
#else
static const unsigned BLOCKS = 3;
#endif

// How a row of WIDTH columns lies in shared memory.
template <unsigned WIDTH> struct TileRow {
    static const unsigned CHUNKS = WIDTH / 8, BYTES = WIDTH * 2;
    static const unsigned LANES = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : 2;
    static_assert(WIDTH % 16 == 0, "products are 16 deep");

    // By how much the chunks of a row are moved about: less than LANES, the same every 8 rows.
    static __device__ __forceinline__ unsigned turn(unsigned row) { return row / (8 / LANES) % LANES; }
    static __device__ __forceinline__ unsigned place(unsigned row, unsigned chunk) { return row * BYTES + (chunk ^ turn(row)) * 16; }
};

// Whether all rows of a head begin at multiples of 16 bytes.
template <class T> __device__ __forceinline__ bool whole_packs(const HeadRows<T>& rows) {
    return aligned(rows.data) && rows.columns % EACH == 0 && rows.step % EACH == 0;
}

// ---- global to shared memory: tiles of ROWS rows, one after the other, of OPERANDS operands at a time

// Chunks FIRST to FIRST + LANES*ACROSS of each row; LANES threads copy neighbouring ones. Rows and columns that are not there become zeros.
template <unsigned ROWS, unsigned WIDTH, unsigned OPERANDS, unsigned FIRST, unsigned LANES, unsigned ACROSS> struct ChunkCopier {
    typedef TileRow<WIDTH> Row;
    static const unsigned STEP = ATTENTION_THREADS / LANES, DOWN = (ROWS + STEP - 1) / STEP, COUNT = DOWN * ACROSS;
    static_assert((ROWS % STEP == 0 || ROWS < STEP) && STEP % 8 == 0 && COUNT <= 32, "threads, the turn of their rows, a bit for each copy");
    static_assert(FIRST % Row::LANES == 0 && LANES % Row::LANES == 0, "chunks that take turns with each other");

    const floatX* at[OPERANDS];
    unsigned step[OPERANDS];  // elements from row to row
    unsigned to, whole, last; // a bit for each copy that has something inside, in a whole tile and in the last
    unsigned columns;         // 0 if whole chunks are copied

    __device__ __forceinline__ ChunkCopier(const HeadRows<const floatX> (&from)[OPERANDS], unsigned first, unsigned memory) {
        unsigned row = threadIdx.x / LANES, chunk = FIRST + threadIdx.x % LANES;
        bool packs = true;
#pragma unroll
        for (unsigned m = 0; m < OPERANDS; m++) {
            at[m] = from[m].data + (first + row) * from[m].step + chunk * 8;
            step[m] = (unsigned)from[m].step;
            keep(step[m]);
            packs = packs && whole_packs(from[m]);
        }
        to = memory + Row::place(row, chunk);
        columns = packs ? 0 : from[0].columns;
        unsigned rows_last = (from[0].rows - first - 1) % ROWS + 1;
        whole = last = 0;
#pragma unroll
        for (unsigned i = 0; i < COUNT; i++) {
            if ((chunk + i % ACROSS * LANES) * 8 >= from[0].columns) continue;
            whole |= 1u << i;
            if (row + i / ACROSS * STEP < rows_last) last |= 1u << i;
        }
        keep(whole), keep(last), keep(to);
    }

    __device__ __forceinline__ void copy(unsigned stage, bool is_last) {
        unsigned inside = is_last ? last : whole;
        bool idle = STEP > ROWS && threadIdx.x / LANES >= ROWS;
        if (columns == 0 && !idle) {
#pragma unroll
            for (unsigned m = 0; m < OPERANDS; m++) {
#pragma unroll
                for (unsigned i = 0; i < COUNT; i++) copy_async<16>(place(m, i, stage), source(m, i), inside, 1u << i);
            }
        } else if (!idle) {
            unsigned word = 0;
            keep(word); // else the first is copied by instructions of its own
#pragma unroll 1
            for (; word < COUNT * 4; word++) copy_words(word / 4, word % 4 * 2, stage, inside);
        }
#pragma unroll
        for (unsigned m = 0; m < OPERANDS; m++) at[m] += (unsigned long long)step[m] * ROWS;
    }

    __device__ __forceinline__ unsigned place(unsigned m, unsigned i, unsigned stage) const {
        return to + stage + (m * ROWS * Row::BYTES + i / ACROSS * STEP * Row::BYTES + i % ACROSS * LANES * 16);
    }
    __device__ __forceinline__ const floatX* source(unsigned m, unsigned i) const {
        return at[m] + (unsigned long long)step[m] * (i / ACROSS * STEP) + i % ACROSS * LANES * 8;
    }

    // Copies two elements of a chunk, from element e on: K is even.
    __device__ __forceinline__ void copy_words(unsigned i, unsigned e, unsigned stage, unsigned inside) const {
        unsigned column = (FIRST + threadIdx.x % LANES + i % ACROSS * LANES) * 8 + e;
        bool exists = (inside >> i & 1) && column < columns;
#pragma unroll
        for (unsigned m = 0; m < OPERANDS; m++) copy_async<4>(place(m, i, stage) + e * 2, source(m, i) + e, exists);
    }
};

// The operands have the same rows and columns; their tiles lie one behind the other. Where two chunks alone take turns, all but the last two
// of a row are copied by eight lanes together: rows of 72 columns begin in the middle of a sector, and so fewer are touched.
template <unsigned ROWS, unsigned WIDTH, unsigned OPERANDS> struct TileCopier {
    static const unsigned CHUNKS = TileRow<WIDTH>::CHUNKS, REST = TileRow<WIDTH>::LANES == 2 ? 2 : 0;
    static const unsigned LANES = REST ? 8 : TileRow<WIDTH>::LANES;
    static_assert((CHUNKS - REST) % LANES == 0, "whole rounds");
    ChunkCopier<ROWS, WIDTH, OPERANDS, 0, LANES, (CHUNKS - REST) / LANES> main;
    ChunkCopier<ROWS, WIDTH, OPERANDS, REST ? CHUNKS - REST : 0, REST ? REST : LANES, 1> rest;

    // From row `first` on, to `memory`.
    __device__ __forceinline__ TileCopier(const HeadRows<const floatX> (&from)[OPERANDS], unsigned first, unsigned memory)
        : main(from, first, memory), rest(from, first, memory) {}

    // Copies a tile of each to so many bytes behind `memory`, and goes on to the next.
    __device__ __forceinline__ void copy(unsigned stage, bool is_last) {
        main.copy(stage, is_last);
        if (REST) rest.copy(stage, is_last);
    }
};

// ---- shared memory to fragments

// Reads 16 rows by 16 columns of a tile. ROWS_FIRST: matrices go down first, as A and, transposed, B want it; else across first, for B.
template <unsigned WIDTH, bool ROWS_FIRST> struct TileReader {
    typedef TileRow<WIDTH> Row;
    static const unsigned PLACES = Row::LANES / 2;
    unsigned at[PLACES];

    __device__ __forceinline__ TileReader(unsigned memory) {
        unsigned lane = threadIdx.x % 32;
        unsigned row = ROWS_FIRST ? lane % 16 : lane % 8 + lane / 16 * 8, half = ROWS_FIRST ? lane / 16 : lane / 8 % 2;
#pragma unroll
        for (unsigned i = 0; i < PLACES; i++) {
            at[i] = memory + Row::place(row, 2 * i + half);
            keep(at[i]);
        }
    }

    // Columns 16*pair and so on of the row that is `offset` bytes behind `memory`, a multiple of 8 rows.
    __device__ __forceinline__ unsigned place(unsigned pair, unsigned offset) const {
        return at[pair % PLACES] + (offset + pair / PLACES * Row::LANES * 16);
    }
    __device__ __forceinline__ void read(unsigned (&words)[4], unsigned pair, unsigned offset) const {
        load_matrices(words, place(pair, offset));
    }
    __device__ __forceinline__ void read_transposed(unsigned (&words)[4], unsigned pair, unsigned offset) const {
        load_transposed(words, place(pair, offset));
    }
};

// sums (16 x 16) += a (16 x 16) * b (16 x 16), b as one read gives it.
__device__ __forceinline__ void multiply_pair(float (&left)[4], float (&right)[4], const unsigned (&a)[4], const unsigned (&b)[4]) {
    multiply(floatX(), left, a, b[0], b[1]);
    multiply(floatX(), right, a, b[2], b[3]);
}

// Two neighbouring sums of 16 x 8 as a fragment of A, 16 x 16.
__device__ __forceinline__ void to_fragment(unsigned (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = packed(floatX(), left[0], left[1]);
    a[1] = packed(floatX(), left[2], left[3]);
    a[2] = packed(floatX(), right[0], right[1]);
    a[3] = packed(floatX(), right[2], right[3]);
}

// ---- the way out

// Writes the 16 rows of a warp from row `first` of `to` on, times `upper` (of the first 8) and `lower`. They go through 16 rows of shared
// memory at `memory`, which are the warp's alone, so that rows leave in whole. All lanes must arrive.
template <unsigned WIDTH>
__device__ __forceinline__ void write_rows(
    const HeadRows<floatX>& to, unsigned first, const float (&sums)[WIDTH / 8][4], float upper, float lower, unsigned char* memory) {
    typedef TileRow<WIDTH> Row;
    unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (unsigned n = 0; n < WIDTH / 8; n++) {
        unsigned* at = (unsigned*)(memory + Row::place(lane / 4, n)) + lane % 4;
        at[0] = packed(floatX(), sums[n][0] * upper, sums[n][1] * upper);
        at[8 * Row::BYTES / 4] = packed(floatX(), sums[n][2] * lower, sums[n][3] * lower);
    }
    __syncwarp();
    bool whole = whole_packs(to);
#pragma unroll 1
    for (unsigned i = lane; i < 16 * Row::CHUNKS; i += 32) {
        unsigned row = i / Row::CHUNKS, chunk = i % Row::CHUNKS;
        if (first + row >= to.rows || chunk * 8 >= to.columns) continue;
        const uint4* from = (const uint4*)(memory + Row::place(row, chunk));
        floatX* at = to.data + (first + row) * to.step + chunk * 8;
        if (whole) {
            *(uint4*)at = *from;
        } else {
#pragma unroll 1
            for (unsigned e = 0; e < 4 && chunk * 8 + e * 2 < to.columns; e++) ((unsigned*)at)[e] = ((const unsigned*)from)[e];
        }
    }
    __syncwarp();
}

#endif
