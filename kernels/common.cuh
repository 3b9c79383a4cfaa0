// What every kernel shares: the storage type floatX, its conversions, and 16-byte accesses.
//
// No CUDA header is included. FLOATX names the storage type: 0 f32, 1 bf16, 2 f16; arithmetic is always float. bf16 and f16 are
// 16-bit patterns here, converted by instructions.
#pragma once

struct bf16 {
    unsigned short bits;
};
struct f16 {
    unsigned short bits;
};

#if FLOATX == 0
typedef float floatX;
#elif FLOATX == 1
typedef bf16 floatX;
#elif FLOATX == 2
typedef f16 floatX;
#else
#error FLOATX must be 0 (f32), 1 (bf16) or 2 (f16)
#endif

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ __forceinline__ float to_float(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

// Rounds to nearest even; NaN stays NaN.
template <class T> __device__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> __device__ __forceinline__ f16 from_float<f16>(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Elements of T that one 16-byte access moves.
template <class T> struct Pack {
    static const unsigned N = 16 / sizeof(T);
    union {
        uint4 words;
        T values[N];
    };
    __device__ Pack() {}
};

// Reads or writes one pack; `at` must be a multiple of 16 bytes.
template <class T> __device__ __forceinline__ Pack<T> load(const T* at) {
    Pack<T> pack;
    pack.words = *(const uint4*)at;
    return pack;
}
template <class T> __device__ __forceinline__ void store(T* at, const Pack<T>& pack) { *(uint4*)at = pack.words; }

// Sine and cosine of |x| up to 1e5, absolute error below 1e-6. Whole turns are taken off in two steps (Cody and Waite), which
// leaves [-pi, pi], where the fast instructions are good to 2^-20.9; the library's own has a slow path with a local array.
__device__ __forceinline__ void sin_cos(float x, float& sine, float& cosine) {
    float turns = rintf(x * 0.15915494309189533577f);
    float rest = fmaf(-turns, 6.2831855f, x);
    rest = fmaf(turns, 1.7484556e-7f, rest); // 6.2831855 is too large by this much
    sine = __sinf(rest);
    cosine = __cosf(rest);
}

// The index of this thread in a grid of one dimension; 64 bits, since tensors may have more than 2^32 elements.
__device__ __forceinline__ unsigned long long thread_index() {
    return (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
}
