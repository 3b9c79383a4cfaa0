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

// Elements of floatX in 16 bytes: what a lane of a vector path takes of a row.
static const unsigned EACH = Pack<floatX>::N;

// Whether 16-byte accesses may start at an address. A null pointer, an argument that is not there, is aligned.
__device__ __forceinline__ bool aligned(const void* at) { return ((unsigned long long)at & 15) == 0; }

// Reads or writes one pack; `at` must be a multiple of 16 bytes.
template <class T> __device__ __forceinline__ Pack<T> load(const T* at) {
    Pack<T> pack;
    pack.words = *(const uint4*)at;
    return pack;
}
template <class T> __device__ __forceinline__ void store(T* at, const Pack<T>& pack) { *(uint4*)at = pack.words; }

template <class T> __device__ __forceinline__ void read(float (&x)[Pack<T>::N], const T* at) {
    Pack<T> pack = load(at);
#pragma unroll
    for (unsigned j = 0; j < Pack<T>::N; j++) x[j] = to_float(pack.values[j]);
}
template <class T> __device__ __forceinline__ void write(T* at, const float (&x)[Pack<T>::N]) {
    Pack<T> pack;
#pragma unroll
    for (unsigned j = 0; j < Pack<T>::N; j++) pack.values[j] = from_float<T>(x[j]);
    store(at, pack);
}

// Four neighbouring floats, beside a pack of floats.
__device__ __forceinline__ void read_floats(float (&x)[4], const float* at, bool active) {
#pragma unroll
    for (unsigned j = 0; j < 4; j++) x[j] = 0.0f;
    if (active) read(x, at);
}
__device__ __forceinline__ void write_floats(float* at, const float (&x)[4], bool active) {
    if (active) write(at, x);
}

// Eight neighbouring floats, beside a pack of 16-bit numbers: two accesses. Each alone would move half sectors, so two
// lanes share their sixteen: the first access takes those of the even lane, the second those of the odd one. All lanes of the
// warp must arrive; the addresses of an active odd lane and its even one, then active too, are neighbours.
__device__ __forceinline__ void read_floats(float (&x)[8], const float* at, bool active) {
    bool odd = threadIdx.x & 1, other = __shfl_xor_sync(0xffffffffu, active, 1);
    float first[4], second[4];
    read_floats(first, odd ? at - 4 : at, odd ? other : active);
    read_floats(second, odd ? at + 4 : at + 8, odd ? active : other);
#pragma unroll
    for (unsigned j = 0; j < 4; j++) {
        float received = __shfl_xor_sync(0xffffffffu, odd ? first[j] : second[j], 1);
        x[j] = odd ? received : first[j];
        x[4 + j] = odd ? second[j] : received;
    }
}
__device__ __forceinline__ void write_floats(float* at, const float (&x)[8], bool active) {
    bool odd = threadIdx.x & 1, other = __shfl_xor_sync(0xffffffffu, active, 1);
    float first[4], second[4];
#pragma unroll
    for (unsigned j = 0; j < 4; j++) {
        float received = __shfl_xor_sync(0xffffffffu, odd ? x[j] : x[4 + j], 1);
        first[j] = odd ? received : x[j];
        second[j] = odd ? x[4 + j] : received;
    }
    write_floats(odd ? at - 4 : at, first, odd ? other : active);
    write_floats(odd ? at + 4 : at + 8, second, odd ? active : other);
}

__device__ __forceinline__ bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

// The square root to 2^-23, without the slow path of the exact one.
__device__ __forceinline__ float square_root(float x) {
    float y;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1/y, off by less than a unit in the last place and exact for powers of two: the fast reciprocal and one step of Newton. The
// compiler's own division has a slow path that is called.
__device__ __forceinline__ float reciprocal(float y) {
    float quick = __fdividef(1.0f, y);
    return fmaf(quick, fmaf(-y, quick, 1.0f), quick);
}

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

// Where a lane works in a grid of one warp for every 32*each columns of a row: `warp_grid` in src/ops/rows.rs. Warps are fewer than
// 2^32 for 2^40 elements, so the division is one of 32 bits.
struct Place {
    unsigned row, column;
};
__device__ __forceinline__ Place place(unsigned columns, unsigned each) {
    unsigned warp = (unsigned)(thread_index() / 32), per_row = (columns + 32 * each - 1) / (32 * each);
    Place at = {warp / per_row, (warp % per_row * 32 + threadIdx.x % 32) * each};
    return at;
}
