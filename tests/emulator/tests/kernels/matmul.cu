// c (M, N, f32) = a (M, K, bf16) b (K, N, bf16), all row-major; K and N are multiples of 8.
// A block of 128 threads makes a tile of 64 x 64, each warp 32 x 32 of it. Slices of 32 along K come through a ring of
// STAGES buffers by cp.async; 16-byte chunks are swizzled so that ldmatrix has no bank conflicts.
#define STAGES 3

typedef unsigned short bf16;

__device__ __forceinline__ void copy_chunk(unsigned to, const void* from, bool inside) {
    int bytes = inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ void load_matrices(unsigned r[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(unsigned r[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

__device__ __forceinline__ void multiply(float d[4], const unsigned a[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ unsigned a_chunk(int row, int chunk) { return row * 64 + (chunk ^ (row >> 1 & 3)) * 16; }

__device__ __forceinline__ unsigned b_chunk(int row, int chunk) { return row * 128 + (chunk ^ (row & 7)) * 16; }

extern "C" __global__ void __launch_bounds__(128) matmul(float* c, const bf16* a, const bf16* b, int M, int N, int K) {
    __shared__ __align__(128) unsigned char tiles_a[STAGES][64 * 64];
    __shared__ __align__(128) unsigned char tiles_b[STAGES][32 * 128];
    const int thread = threadIdx.x, lane = thread % 32, warp_m = thread / 32 % 2, warp_n = thread / 64;
    const int first_row = blockIdx.y * 64, first_column = blockIdx.x * 64;
    const int slices = (K + 31) / 32;

    auto fetch = [&](int slice, int stage) {
        unsigned to_a = (unsigned)__cvta_generic_to_shared(tiles_a[stage]);
        unsigned to_b = (unsigned)__cvta_generic_to_shared(tiles_b[stage]);
        for (int i = thread; i < 256; i += 128) {
            int row = i / 4, k = slice * 32 + i % 4 * 8;
            bool inside = first_row + row < M && k < K;
            copy_chunk(to_a + a_chunk(row, i % 4), inside ? a + (long long)(first_row + row) * K + k : a, inside);
        }
        for (int i = thread; i < 256; i += 128) {
            int k = slice * 32 + i / 8, column = first_column + i % 8 * 8;
            bool inside = k < K && column < N;
            copy_chunk(to_b + b_chunk(i / 8, i % 8), inside ? b + (long long)k * N + column : b, inside);
        }
    };

    float sums[2][4][4] = {};
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (stage < slices) { fetch(stage, stage); }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    for (int slice = 0; slice < slices; slice++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads();
        if (slice + STAGES - 1 < slices) { fetch(slice + STAGES - 1, (slice + STAGES - 1) % STAGES); }
        asm volatile("cp.async.commit_group;" ::: "memory");

        unsigned from_a = (unsigned)__cvta_generic_to_shared(tiles_a[slice % STAGES]);
        unsigned from_b = (unsigned)__cvta_generic_to_shared(tiles_b[slice % STAGES]);
#pragma unroll
        for (int step = 0; step < 2; step++) {
            unsigned x[2][4], y[2][4];
            for (int i = 0; i < 2; i++) {
                load_matrices(x[i], from_a + a_chunk(warp_m * 32 + i * 16 + lane % 16, step * 2 + lane / 16));
                load_matrices_transposed(y[i], from_b + b_chunk(step * 16 + lane % 16, warp_n * 4 + i * 2 + lane / 16));
            }
            for (int i = 0; i < 2; i++) {
                for (int j = 0; j < 4; j++) { multiply(sums[i][j], x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]); }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int row = first_row + warp_m * 32 + i * 16 + lane / 4, column = first_column + warp_n * 32 + j * 8 + lane % 4 * 2;
            if (row < M && column < N) {
                *(float2*)(c + (long long)row * N + column) = make_float2(sums[i][j][0], sums[i][j][1]);
            }
            if (row + 8 < M && column < N) {
                *(float2*)(c + (long long)(row + 8) * N + column) = make_float2(sums[i][j][2], sums[i][j][3]);
            }
        }
    }
}
