// Sums over a warp and a block, in a fixed order: the same bits every time.
#pragma once

template <class T> __device__ __forceinline__ T shuffle_xor(T x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }

// The sum over a warp, in all lanes. All 32 lanes must arrive.
template <class T> __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x = x + shuffle_xor(x, offset);
    return x;
}

// The sum over a block of up to 1024 threads (whole warps), in all threads. `scratch` has 32 entries in shared memory and
// may be used again right after. All threads must arrive.
template <class T> __device__ __forceinline__ T block_sum(T x, T* scratch) {
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    x = warp_sum(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = warp_sum(lane < blockDim.x / 32 ? scratch[lane] : T());
    __syncthreads();
    return x;
}
