// Matrix products in f32 with fused multiply-adds: sums = A * B of A (M, K) and B (K, N), an error of at most K * 2^-24 times the sum of
// |a*b|.
//
// A block covers ROWS x 128 of the result, each warp 16 x 128 of it, each thread 16 x 4: what it needs of A is the same for all lanes, one
// access; of B it is 16 bytes a lane. K goes through shared memory in steps of 8, three steps at a time. Copies are of 4 bytes, since
// they turn the operands whose rows lie along K; 8 lanes go along K, where 32 bytes are a sector. Rows of shared memory are
// LINES + 4 words apart, so that those 8 lanes, times 4 lines, meet in no bank. Bytes moved per result: (1/ROWS + 1/128)*4*K.
#pragma once
#include "matmul.cuh"

template <unsigned ROWS_> struct FloatShape {
    static const unsigned ROWS = ROWS_, COLUMNS = 128, THREADS = ROWS * 2, STAGES = 3, DEPTH = 8;
    static const unsigned STRIDE_A = ROWS + 4, STRIDE_B = COLUMNS + 4;
    static const unsigned STAGE = (STRIDE_A + STRIDE_B) * DEPTH; // words
};

// Copies a step of LINES lines to [depth][line].
template <class S, bool ALONG_K, unsigned LINES> struct FloatCopier {
    static const unsigned COUNT = LINES * S::DEPTH / S::THREADS;
    static const unsigned LEAP = ALONG_K ? S::THREADS / S::DEPTH : S::THREADS / LINES; // lines, or depths, from copy to copy
    static const unsigned STRIDE = LINES + 4;
    // With more lines than threads, a thread copies several lines of each depth.
    static const unsigned LINE_PARTS = !ALONG_K && LINES > S::THREADS ? LINES / S::THREADS : 1;

    const float* at;
    unsigned long long step;
    int lines_left, depths_left;
    unsigned to;

    __device__ __forceinline__ FloatCopier(const Operand<float>& from, unsigned first, unsigned begin, unsigned end) {
        unsigned k = ALONG_K ? threadIdx.x % S::DEPTH : threadIdx.x / LINES;
        unsigned line = ALONG_K ? threadIdx.x / S::DEPTH : threadIdx.x % LINES;
        step = from.step;
        unsigned row = ALONG_K ? first + line : begin + k, column = ALONG_K ? begin + k : first + line;
        at = from.data + row * step + column;
        lines_left = (int)(from.lines - first) - (int)line;
        depths_left = (int)(end - begin) - (int)k;
        to = (k * STRIDE + line) * 4;
    }

    __device__ __forceinline__ void copy(unsigned stage) {
#pragma unroll
        for (unsigned i = 0; i < COUNT; i++) {
            if (ALONG_K) {
                bool inside = (int)(i * LEAP) < lines_left && depths_left > 0;
                copy_async<4>(stage + to + i * LEAP * 4, at + step * (i * LEAP), inside);
            } else {
                unsigned line = i % LINE_PARTS * S::THREADS, k = i / LINE_PARTS * (LEAP ? LEAP : 1);
                bool inside = (int)line < lines_left && (int)k < depths_left;
                copy_async<4>(stage + to + (k * STRIDE + line) * 4, at + step * k + line, inside);
            }
        }
        at += ALONG_K ? S::DEPTH : step * S::DEPTH;
        depths_left -= S::DEPTH;
    }
};

struct FloatSums {
    float of[16][4] = {};
    float row = 0.0f; // of the block's row `threadIdx.x` of A, in the first S::ROWS threads
};

__device__ __forceinline__ void spread(float* to, const float4& four) {
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

// As product() in matmul.cuh. `memory` has STAGES * STAGE words. with_rows: sums the rows of A too.
template <class S, bool A_ALONG_K, bool B_ALONG_K>
__device__ __forceinline__ void product(
    FloatSums& sums, const Operand<float>& a, const Operand<float>& b, const Part& part, float* memory, bool with_rows) {
    const unsigned DEPTH = S::DEPTH, ROWS = S::ROWS, COLUMNS = S::COLUMNS, BYTES = S::STAGE * 4;
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, start = shared_address(memory);
    FloatCopier<S, A_ALONG_K, ROWS> copy_a(a, part.row, part.begin, part.end);
    FloatCopier<S, B_ALONG_K, COLUMNS> copy_b(b, part.column, part.begin, part.end);
    copy_b.to += S::STRIDE_A * DEPTH * 4;
    unsigned steps = (part.end - part.begin + DEPTH - 1) / DEPTH;
    for (unsigned step = 0; step < S::STAGES - 1; step++) {
        if (step < steps) {
            copy_a.copy(start + step * BYTES);
            copy_b.copy(start + step * BYTES);
        }
        copies_commit();
    }
    unsigned reading = 0, writing = S::STAGES - 1;
#pragma unroll 1
    for (unsigned step = 0; step < steps; step++) {
        copies_wait<S::STAGES - 2>();
        __syncthreads(); // this step has come, and all are done with the one before
        if (step + S::STAGES - 1 < steps) {
            copy_a.copy(start + writing * BYTES);
            copy_b.copy(start + writing * BYTES);
        }
        copies_commit();
        const float* left = memory + reading * S::STAGE + warp * 16;
        const float* right = memory + reading * S::STAGE + S::STRIDE_A * DEPTH + lane * 4;
#pragma unroll
        for (unsigned k = 0; k < DEPTH; k++) {
            float x[16], y[4];
#pragma unroll
            for (unsigned i = 0; i < 16; i += 4) spread(x + i, *(const float4*)(left + k * S::STRIDE_A + i));
            spread(y, *(const float4*)(right + k * S::STRIDE_B));
#pragma unroll
            for (unsigned i = 0; i < 16; i++) {
#pragma unroll
                for (unsigned j = 0; j < 4; j++) sums.of[i][j] = fmaf(x[i], y[j], sums.of[i][j]);
            }
        }
        if (with_rows && threadIdx.x < ROWS) {
#pragma unroll
            for (unsigned k = 0; k < DEPTH; k++) sums.row += memory[reading * S::STAGE + k * S::STRIDE_A + threadIdx.x];
        }
        reading = reading + 1 == S::STAGES ? 0 : reading + 1;
        writing = writing + 1 == S::STAGES ? 0 : writing + 1;
    }
}

// Calls finish for every result of this thread, as write_sums in matmul.cuh does: four neighbours of a row if `wide`, else one.
template <class Finish>
__device__ __forceinline__ void write_sums(
    const FloatSums& sums, const Part& part, unsigned rows, unsigned columns, bool wide, const Finish& finish) {
    unsigned row = part.row + threadIdx.x / 32 * 16, column = part.column + threadIdx.x % 32 * 4;
    auto fetch = [&](float (&values)[4], unsigned r) {
#pragma unroll
        for (unsigned i = 0; i < 16; i++) {
            if (i != r) continue; // registers have no index
#pragma unroll
            for (unsigned j = 0; j < 4; j++) values[j] = sums.of[i][j];
        }
    };
    if (wide || WholeWarps<Finish>::VALUE) {
        if (WholeWarps<Finish>::VALUE || column < columns) give_rows<16, 1>(finish, row, rows, column, fetch);
    } else if constexpr (!WholeWarps<Finish>::VALUE) {
#pragma unroll 1
        for (unsigned r = 0; r < 16 && row + r < rows; r++) {
            float values[4];
            fetch(values, r);
#pragma unroll 1
            for (unsigned j = 0; j < 4; j++) {
                float one[1] = {j == 0 ? values[0] : j == 1 ? values[1] : j == 2 ? values[2] : values[3]};
                if (column + j < columns) finish.template take<1>(row + r, column + j, one);
            }
        }
    }
}
