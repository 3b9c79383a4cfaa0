// What the products of a linear layer do in a block, one body for each arithmetic: sum, and give the sums to `finish`, or, with `partial`,
// this part's to the workspace.
#pragma once
#include "linear_epilogue.cuh"
#include "matmul.cuh"
#include "matmul_f32.cuh"

// The sum of a row of A goes to the bias gradient, or to its part of the workspace.
__device__ __forceinline__ void add_row(float* db, bool partial, unsigned row, unsigned rows, float sum) {
    if (row >= rows) return;
    if (partial) db[(unsigned long long)blockIdx.y * rows + row] = sum;
    else db[row] += sum;
}

// db, if it is not null, gets the sums of the rows of A.
template <class S, bool A_ALONG_K, bool B_ALONG_K, class T, class Finish>
__device__ __forceinline__ void on_tensor_cores(
    const Operand<T>& a, const Operand<T>& b, unsigned depth, float* partial, unsigned each, float* db, const Finish& finish) {
    __shared__ __align__(128) unsigned char memory[S::BYTES];
    Part part = part_of_block<S>(a.lines, b.lines, depth, each);
    bool with_rows = db && part.column == 0;
    Sums<S, sizeof(T) == 4 && !A_ALONG_K> sums;
    RowSums<T, S> row_sums;
    product<S, A_ALONG_K, B_ALONG_K>(
        sums, a, b, part, shared_address(memory),
        [&](const unsigned (&fragments)[Sums<S>::DOWN][4], unsigned stage, unsigned k) {
            if (with_rows) row_sums.add(fragments, stage, k);
        });
    if (with_rows) row_sums.give([=](unsigned row, float sum) { add_row(db, partial, part.row + row, a.lines, sum); });
    if (partial) {
        Partial to = {partial + (unsigned long long)blockIdx.y * a.lines * b.lines, b.lines};
        write_sums(sums, part, a.lines, b.lines, (float*)memory, to.wide(), to);
    } else {
        write_sums(sums, part, a.lines, b.lines, (float*)memory, finish.wide(), of_tile<S>(finish, part, a.lines, (float*)memory));
    }
}

template <class S, bool A_ALONG_K, bool B_ALONG_K, class Finish>
__device__ __forceinline__ void in_f32(
    const Operand<float>& a, const Operand<float>& b, unsigned depth, float* partial, unsigned each, float* db, const Finish& finish) {
    __shared__ __align__(16) float memory[S::STAGES * S::STAGE];
    Part part = part_of_block<S>(a.lines, b.lines, depth, each);
    bool with_rows = db && part.column == 0;
    FloatSums sums;
    product<S, A_ALONG_K, B_ALONG_K>(sums, a, b, part, memory, with_rows);
    if (with_rows && threadIdx.x < S::ROWS) add_row(db, partial, part.row + threadIdx.x, a.lines, sums.row);
    if (partial) {
        Partial to = {partial + (unsigned long long)blockIdx.y * a.lines * b.lines, b.lines};
        write_sums(sums, part, a.lines, b.lines, to.wide(), to);
    } else {
        write_sums(sums, part, a.lines, b.lines, finish.wide(), finish);
    }
}

typedef TileShape<128, 128, 64, true> Tile128x128;
typedef TileShape<128, 64, 32, true> Tile128x64;
typedef TileShape<64, 64, 32, true> Tile64x64;
typedef TileShape<64, 64, 32, false> TileAny;
