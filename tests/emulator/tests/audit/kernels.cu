// Kernels for the audit's tests: two that are as they should be, and four with one fault each.

__device__ __forceinline__ unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void copy_16(unsigned to, const unsigned short* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void load_matrices(unsigned (&r)[4], unsigned from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// C = A·Bᵀ in bf16 with f32 sums. A: (M, K), B: (N, K), C: (M, N); M, N multiples of 64, K of 32. Block: 64×64 of C by
// 4 warps of 32×32; K in steps of 32, two stages. A row of a stage has ROW elements: with 40 ldmatrix hits each bank once.
#ifndef ROW
#define ROW 40
#endif
extern "C" __global__ void __launch_bounds__(128)
    matmul(float* __restrict__ c, const unsigned short* __restrict__ a, const unsigned short* __restrict__ b, int m, int n,
           int k) {
    __shared__ __align__(16) unsigned short tiles[2][2][64][ROW];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = blockIdx.y * 64, column = blockIdx.x * 64;
    const int copy_row = threadIdx.x / 4, copy_column = threadIdx.x % 4 * 8;
    const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;
    float sums[2][4][4] = {};

    auto copy_stage = [&](int stage, int k0) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int r = copy_row + 32 * half;
            copy_16(shared_address(&tiles[stage][0][r][copy_column]), a + (size_t)(row + r) * k + k0 + copy_column);
            copy_16(shared_address(&tiles[stage][1][r][copy_column]), b + (size_t)(column + r) * k + k0 + copy_column);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };

    copy_stage(0, 0);
    const int steps = k / 32;
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        asm volatile("cp.async.wait_group 0;" ::: "memory");
        __syncthreads();
        if (step + 1 < steps) { copy_stage((step + 1) % 2, (step + 1) * 32); }
#pragma unroll
        for (int part = 0; part < 2; part++) {
            unsigned left[2][4], right[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                load_matrices(left[i], shared_address(&tiles[step % 2][0][warp_row + 16 * i + lane % 16][part * 16 + lane / 16 * 8]));
                load_matrices(right[i], shared_address(&tiles[step % 2][1][warp_column + 16 * i + lane % 16][part * 16 + lane / 16 * 8]));
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) { multiply(sums[i][j], left[i], right[j / 2][j % 2], right[j / 2][j % 2 + 2]); }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float* to = c + (size_t)(row + warp_row + 16 * i + lane / 4) * n + column + warp_column + 8 * j + lane % 4 * 2;
            *reinterpret_cast<float2*>(to) = make_float2(sums[i][j][0], sums[i][j][1]);
            *reinterpret_cast<float2*>(to + 8 * (size_t)n) = make_float2(sums[i][j][2], sums[i][j][3]);
        }
    }
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) { x += __shfl_xor_sync(~0u, x, distance); }
    return x;
}

// y = (x - mean) · rstd, one warp a row. x, y: (R, C), C a multiple of 4, 16-byte accesses.
extern "C" __global__ void __launch_bounds__(256)
    layer_norm(float4* __restrict__ y, const float4* __restrict__ x, int rows, int columns) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) { return; }
    int vectors = columns / 4;
    const float4* in = x + (size_t)row * vectors;
    float4* out = y + (size_t)row * vectors;
    float sum = 0.0f, squares = 0.0f;
    for (int i = lane; i < vectors; i += 32) {
        float4 v = in[i];
        sum += v.x + v.y + v.z + v.w;
        squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    float by = __fdividef(1.0f, (float)columns);
    float mean = warp_sum(sum) * by;
    float rstd = rsqrtf(warp_sum(squares) * by - mean * mean + 1e-5f);
    for (int i = lane; i < vectors; i += 32) {
        float4 v = in[i];
        out[i] = make_float4((v.x - mean) * rstd, (v.y - mean) * rstd, (v.z - mean) * rstd, (v.w - mean) * rstd);
    }
}

// A loop of each thread's own length within one of matrix products. The compilers for sm_80 and sm_89 leave the outer loop by
// an instruction that is called CALL and is a jump.
extern "C" __global__ void __launch_bounds__(128) filling(float* y, const float* x, int n, int steps) {
    __shared__ float tile[128];
    float sums[4] = {};
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        __syncthreads();
        for (int i = threadIdx.x; i < n; i += 32) { tile[i % 128] = x[step * n + i]; }
        unsigned a = __float_as_uint(tile[threadIdx.x]);
        multiply(sums, {a, a, a, a}, a, a);
    }
    y[threadIdx.x] = sums[0] + sums[1] + sums[2] + sums[3];
}

// 64 sums in 32 registers: they spill.
extern "C" __global__ void __launch_bounds__(1024, 2) spilling(float* __restrict__ y, const float* __restrict__ x, int n) {
    float sums[64];
#pragma unroll
    for (int i = 0; i < 64; i++) { sums[i] = x[i * 1024 + threadIdx.x]; }
    for (int step = 0; step < n; step++) {
        float by = x[step];
#pragma unroll
        for (int i = 0; i < 64; i++) { sums[i] = sums[i] * by + sums[(i + 7) % 64]; }
    }
#pragma unroll
    for (int i = 0; i < 64; i++) { y[i * 1024 + threadIdx.x] = sums[i]; }
}

// A division that is rounded as IEEE 754 says: its rare cases are a subroutine.
extern "C" __global__ void dividing(float* __restrict__ y, const float* __restrict__ x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) { y[i] = x[i] / (1.0f + y[i]); }
}

// The literal 1.1 is a double: so is the arithmetic.
extern "C" __global__ void doubling(float* __restrict__ y, const float* __restrict__ x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) { y[i] = x[i] * 1.1 + 0.3; }
}

// An array with an index that the compiler does not know lies in local memory.
extern "C" __global__ void indexing(float* __restrict__ y, const float* __restrict__ x, const int* __restrict__ order, int n) {
    float values[16];
#pragma unroll
    for (int i = 0; i < 16; i++) { values[i] = x[i * 32 + threadIdx.x]; }
    float sum = 0.0f;
    for (int i = 0; i < n; i++) { sum = sum * 0.5f + values[order[i] & 15]; }
    y[threadIdx.x] = sum;
}
