// Philox4x32-10 (Salmon et al., SC 2011) and standard normal numbers, the counters of src/rng.rs: the same noise on every
// device. Words are equal bit for bit; normals differ from the CPU's by the rounding of log, sin and cos.
#pragma once
#include "common.cuh"

struct Philox {
    unsigned key0, key1;
    unsigned long long step;
};

// `counter` holds how far a captured graph has come, or is null.
__device__ __forceinline__ Philox philox_at(
    unsigned key0, unsigned key1, unsigned long long step, const unsigned long long* counter) {
    Philox draw = {key0, key1, step + (counter ? *counter : 0)};
    return draw;
}

// The words of elements 4*block .. 4*block + 3 of one sample.
__device__ __forceinline__ uint4 philox(const Philox& draw, unsigned long long sample, unsigned replica, unsigned block) {
    unsigned c0 = block, c1 = (unsigned)sample, c2 = (unsigned)draw.step;
    unsigned c3 = (replica << 20) | (((unsigned)(sample >> 32) & 0x3ff) << 10) | ((unsigned)(draw.step >> 32) & 0x3ff);
    unsigned k0 = draw.key0, k1 = draw.key1;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        unsigned high0 = __umulhi(0xd2511f53u, c0), low0 = 0xd2511f53u * c0;
        unsigned high1 = __umulhi(0xcd9e8d57u, c2), low1 = 0xcd9e8d57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    uint4 words;
    words.x = c0;
    words.y = c1;
    words.z = c2;
    words.w = c3;
    return words;
}

// A multiple of 2^-24 in [0, 1).
__device__ __forceinline__ float unit(unsigned word) { return (float)(word >> 8) * (1.0f / 16777216.0f); }

// sqrt(-2 ln u) * (cos, sin)(2 pi w), u in (0, 1]. The angle is reduced in turns, exactly, so that the fast sine, whose
// error is absolute (2^-20.9 inside [-pi, pi]), is good enough: it is multiplied by a radius of at most 5.8.
__device__ __forceinline__ void normal_pair(float& x, float& y, unsigned a, unsigned b) {
    float u = (float)((a >> 8) + 1) * (1.0f / 16777216.0f);
    float radius = square_root(fmaxf(-2.0f * logf(u), 0.0f));
    float turns = unit(b);
    turns = turns > 0.5f ? turns - 1.0f : turns; // exact
    float sine = __sinf(6.28318530717958647692f * turns), cosine = __cosf(6.28318530717958647692f * turns);
    x = radius * cosine;
    y = radius * sine;
}

__device__ __forceinline__ void normals(float out[4], const uint4& words) {
    normal_pair(out[0], out[1], words.x, words.y);
    normal_pair(out[2], out[3], words.z, words.w);
}

// The normals of N neighbouring columns of one sample; `column` is a multiple of 4.
template <unsigned N>
__device__ __forceinline__ void noise_at(
    float (&out)[N], const Philox& draw, unsigned long long sample, unsigned replica, unsigned column) {
#pragma unroll
    for (unsigned j = 0; j < N; j += 4) normals(out + j, philox(draw, sample, replica, (column + j) / 4));
}
