// c (M, N) = a (M, K) b (K, N) in f32, the sum over K cut into gridDim.z parts: each block writes its part of a tile of
// 16 x 16, and the last block of a tile adds the parts in order. `arrivals`: one zero for each tile, and again after.
extern "C" __global__ void __launch_bounds__(256) split_k(float* c, float* parts, unsigned* arrivals, const float* a,
                                                          const float* b, int M, int N, int K) {
    __shared__ float tile_a[16][17], tile_b[16][17];
    __shared__ bool last;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16, row = blockIdx.y * 16 + y, column = blockIdx.x * 16 + x;
    const int length = (K + gridDim.z - 1) / gridDim.z, start = blockIdx.z * length, end = min(K, start + length);
    float sum = 0;
    for (int k = start; k < end; k += 16) {
        tile_a[y][x] = row < M && k + x < end ? a[row * K + k + x] : 0;
        tile_b[y][x] = k + y < end && column < N ? b[(k + y) * N + column] : 0;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 16; i++) { sum = fmaf(tile_a[y][i], tile_b[i][x], sum); }
        __syncthreads();
    }
    const bool inside = row < M && column < N;
    if (inside) { parts[(blockIdx.z * M + row) * N + column] = sum; }
    __syncthreads();
    const unsigned tile = blockIdx.y * gridDim.x + blockIdx.x;
    if (threadIdx.x == 0) {
        __threadfence(); // what the block has written comes before its arrival
        last = atomicAdd(&arrivals[tile], 1u) == gridDim.z - 1;
        __threadfence(); // and what the last block reads after all arrivals
    }
    __syncthreads();
    if (!last) { return; }
    if (inside) {
        float all = 0;
        for (int part = 0; part < gridDim.z; part++) { all += __ldcg(&parts[(part * M + row) * N + column]); }
        c[row * N + column] = all;
    }
    if (threadIdx.x == 0) { atomicExch(&arrivals[tile], 0u); }
}
