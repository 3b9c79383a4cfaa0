// Instructions of sm_80 and newer that C++ has no words for: asynchronous copies to shared memory, matrix loads and matrix products of
// a warp. Layouts are those of the PTX ISA, "Matrix fragments for mma.m16n8k16" and "mma.m16n8k8".
#pragma once
#include "common.cuh"

// ---- copies from global to shared memory, done in the background; addresses of shared memory are 32-bit numbers

__device__ __forceinline__ unsigned shared_address(const void* at) { return (unsigned)__cvta_generic_to_shared(at); }

// Copies BYTES (4 or 16; both addresses multiples of it) if `inside` has `bit`; else writes zeros, and reads nothing. Bits of a word,
// because one instruction makes predicates of several.
template <unsigned BYTES>
__device__ __forceinline__ void copy_async(unsigned to, const void* from, unsigned inside, unsigned bit = 1) {
    if (BYTES == 16) {
        asm volatile("{.reg .pred outside; .reg .b32 one; and.b32 one, %2, %3; setp.eq.u32 outside, one, 0;"
                     "cp.async.cg.shared.global [%0], [%1], 16, outside;}" ::"r"(to),
                     "l"(__cvta_generic_to_global(from)), "r"(inside), "r"(bit)
                     : "memory");
    } else {
        asm volatile("{.reg .pred outside; .reg .b32 one; and.b32 one, %2, %3; setp.eq.u32 outside, one, 0;"
                     "cp.async.ca.shared.global [%0], [%1], 4, outside;}" ::"r"(to),
                     "l"(__cvta_generic_to_global(from)), "r"(inside), "r"(bit)
                     : "memory");
    }
}

// Closes a group of copies.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most LEFT groups of this thread are under way. Other threads' copies need a barrier behind it.
template <int LEFT> __device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

__device__ __forceinline__ void store_shared(unsigned to, unsigned word) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(word) : "memory");
}

__device__ __forceinline__ void load_shared(unsigned& word, unsigned from) {
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(from) : "memory");
}
__device__ __forceinline__ void load_shared(unsigned& low, unsigned& high, unsigned from) {
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(low), "=r"(high) : "r"(from) : "memory");
}

// ---- fragments

// Loads four matrices of 8 rows of 16 bytes: lane l names row l%8 of matrix l/8 and gets words 4*(l/4)+l%4 of each.
__device__ __forceinline__ void load_matrices(unsigned (&words)[4], unsigned from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(from)
                 : "memory");
}

// The same, each matrix of 8 x 8 16-bit elements transposed.
__device__ __forceinline__ void load_transposed(unsigned (&words)[4], unsigned from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(from)
                 : "memory");
}

// What a product of one instruction is made of: 16 x K of A, K x 8 of B, K elements being 32 bytes.
template <class T> struct Mma {
    static const unsigned K = 32 / sizeof(T);
};

// sums (16 x 8) += a (16 x 16) * b (16 x 8).
__device__ __forceinline__ void multiply(bf16, float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply(f16, float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// a and b are f32 rounded to tf32: 16 x 8 and 8 x 8.
__device__ __forceinline__ void multiply(float, float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Rounds two words, of the same row of A or column of B, to the 10 bits of mantissa that tensor cores look at.
//
// sm_90 and newer have an instruction for it, to nearest even. Before, half of the last bit that counts is added, so that ties go away from
// zero; what is below is not looked at. A NaN might wrap around to a number, so nothing is added if either is one: what the other is
// multiplied into is NaN whatever it is. Volatile, else it moves ahead of the branch behind a step, where it takes more instructions.
__device__ __forceinline__ void round_to_tf32(unsigned& x, unsigned& y) {
#if __CUDA_ARCH__ >= 900
    asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(x) : "f"(__uint_as_float(x)));
    asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(y) : "f"(__uint_as_float(y)));
#else
    asm volatile("{.reg .pred nan; setp.nan.f32 nan, %2, %3; @!nan add.u32 %0, %0, 0x1000; @!nan add.u32 %1, %1, 0x1000;}"
        : "+r"(x), "+r"(y)
        : "f"(__uint_as_float(x)), "f"(__uint_as_float(y)));
#endif
}
