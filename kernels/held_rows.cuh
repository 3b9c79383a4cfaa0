// What layer norm keeps of a block's rows in dynamic shared memory, behind the weights of its modulation.
#pragma once
#include "modulation.cuh"

struct Affine {
    const floatX *gamma, *beta; // null: none
};

// Asks for a pack of gamma or beta, or copies it at once if it may not begin at a multiple of 16 bytes.
__device__ __forceinline__ void keep_pack(floatX* to, const floatX* from, bool vector) {
    if (vector) copy16(to, from, true);
    for (unsigned j = 0; !vector && j < EACH; j++) to[j] = from[j];
}

// What a block keeps in shared memory, if HELD: gamma and beta if there are any, its rows of x, and backward of d = dn*gamma. Each lane
// reads of the rows what it has copied itself, so that no barrier is needed for them.
template <bool HELD, unsigned ROWS> struct Held {
    Rows rows;
    const floatX *x, *gamma, *beta;
    floatX* packs;
    float* numbers;
    bool vector;

    __device__ Held(const Rows& rows, const floatX* x, const Affine& affine, unsigned r) : rows(rows), x(x), gamma(affine.gamma), beta(affine.beta) {
        vector = aligned(gamma) && aligned(beta);
        if (!HELD) return;
        unsigned c = rows.c, lane = threadIdx.x % 32;
        packs = (floatX*)Weights::behind(r);
        const floatX* parts[2] = {gamma, beta};
#pragma unroll
        for (unsigned part = 0; part < 2; part++) {
            if (!parts[part]) continue;
            for (unsigned i = threadIdx.x * EACH; i < c; i += 32 * WARPS * EACH) keep_pack(packs + i, parts[part] + i, vector);
            (part ? beta : gamma) = packs;
            packs += c;
        }
        vector = true;
        numbers = (float*)(packs + WARPS * rows.each * c);
#pragma unroll
        for (unsigned i = 0; i < ROWS; i++) {
            if (!rows.has(i)) break;
#pragma unroll 2
            for (unsigned column = lane * EACH; column < c; column += STRIP) copy16(packs + at(i, column), x + rows.at(i, column), true);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    // Where a row of this warp lies in shared memory.
    __device__ __forceinline__ unsigned at(unsigned i, unsigned column) const {
        return (threadIdx.x / 32 * rows.each + i) * rows.c + column;
    }

    // Waits for what was asked for here, not for the table.
    __device__ __forceinline__ void wait() const { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

    __device__ __forceinline__ void read_x(float (&values)[EACH], unsigned i, unsigned column) const {
        if (HELD) read(values, packs + at(i, column));
        else read(values, x + rows.at(i, column));
    }

    // Four and four numbers of a pack lie half a row apart: no two lanes of an access meet in a bank.
    __device__ __forceinline__ float* number(unsigned i, unsigned column, unsigned quarter) const {
        return numbers + at(i, 0) + quarter * (rows.c / QUARTERS) + column / QUARTERS;
    }
    // By instruction: the compiler takes four stores for the second quarter.
    __device__ __forceinline__ void write_d(const float (&d)[EACH], unsigned i, unsigned column) const {
#pragma unroll
        for (unsigned q = 0; q < EACH; q += 4) {
            unsigned at = (unsigned)__cvta_generic_to_shared(number(i, column, q / 4));
            asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(d[q]), "f"(d[q + 1]), "f"(d[q + 2]), "f"(d[q + 3]) : "memory");
        }
    }
    __device__ __forceinline__ void read_d(float (&values)[EACH], unsigned i, unsigned column) const {
#pragma unroll
        for (unsigned q = 0; q < QUARTERS; q++) read((float(&)[4])values[q * 4], number(i, column, q));
    }
};
