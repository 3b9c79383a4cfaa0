// o = softmax(q kT / 8) v for q, k, v, o: (heads, L, 64) in bf16; lse (heads, L) in f32: the logarithm of each row's sum.
// A block of 128 threads holds 64 queries, 16 a warp, and walks over the keys 64 at a time.
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

__device__ __forceinline__ unsigned pack(float low, float high) {
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

__device__ __forceinline__ unsigned chunk_at(int row, int chunk) { return row * 128 + (chunk ^ (row & 7)) * 16; }

extern "C" __global__ void __launch_bounds__(128) flash(bf16* o, float* lse, const bf16* q, const bf16* k, const bf16* v, int L) {
    __shared__ __align__(128) unsigned char tile_q[64 * 128], tile_k[64 * 128], tile_v[64 * 128];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, first = blockIdx.x * 64;
    const long long base = (long long)blockIdx.y * L * 64;
    const unsigned at_q = (unsigned)__cvta_generic_to_shared(tile_q), at_k = (unsigned)__cvta_generic_to_shared(tile_k),
                   at_v = (unsigned)__cvta_generic_to_shared(tile_v);

    auto fetch = [&](unsigned to, const bf16* from, int start) {
        for (int i = thread; i < 512; i += 128) {
            bool inside = start + i / 8 < L;
            copy_chunk(to + chunk_at(i / 8, i % 8), inside ? from + base + (start + i / 8) * 64 + i % 8 * 8 : from, inside);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };

    fetch(at_q, q, first);
    float sums[8][4] = {}, top[2] = {-1e30f, -1e30f}, total[2] = {};
    for (int start = 0; start < L; start += 64) {
        fetch(at_k, k, start);
        fetch(at_v, v, start);
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        float scores[8][4] = {};
#pragma unroll
        for (int step = 0; step < 4; step++) {
            unsigned x[4], y[4];
            load_matrices(x, at_q + chunk_at(warp * 16 + lane % 16, step * 2 + lane / 16));
            for (int j = 0; j < 4; j++) {
                load_matrices(y, at_k + chunk_at(j * 16 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
                multiply(scores[2 * j], x, y[0], y[1]);
                multiply(scores[2 * j + 1], x, y[2], y[3]);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float highest = top[half];
            for (int j = 0; j < 8; j++) {
                for (int e = 0; e < 2; e++) {
                    float& score = scores[j][half * 2 + e];
                    score = start + j * 8 + lane % 4 * 2 + e < L ? score * 0.125f : -1e30f;
                    highest = fmaxf(highest, score);
                }
            }
            highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
            highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
            float shrink = __expf(top[half] - highest);
            top[half] = highest;
            total[half] *= shrink;
            for (int j = 0; j < 8; j++) {
                for (int e = 0; e < 2; e++) {
                    scores[j][half * 2 + e] = __expf(scores[j][half * 2 + e] - highest);
                    total[half] += scores[j][half * 2 + e];
                    sums[j][half * 2 + e] *= shrink;
                }
            }
        }
        asm volatile("cp.async.wait_group 0;" ::: "memory");
        __syncthreads();
#pragma unroll
        for (int step = 0; step < 4; step++) {
            unsigned x[4] = {pack(scores[2 * step][0], scores[2 * step][1]), pack(scores[2 * step][2], scores[2 * step][3]),
                             pack(scores[2 * step + 1][0], scores[2 * step + 1][1]),
                             pack(scores[2 * step + 1][2], scores[2 * step + 1][3])};
            unsigned y[4];
            for (int j = 0; j < 4; j++) {
                load_matrices_transposed(y, at_v + chunk_at(step * 16 + lane % 16, j * 2 + lane / 16));
                multiply(sums[2 * j], x, y[0], y[1]);
                multiply(sums[2 * j + 1], x, y[2], y[3]);
            }
        }
        __syncthreads(); // all have read the tiles before the next ones arrive
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = total[half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        int row = first + warp * 16 + lane / 4 + half * 8;
        if (row < L) {
            for (int j = 0; j < 8; j++) {
                unsigned both = pack(__fdividef(sums[j][half * 2], sum), __fdividef(sums[j][half * 2 + 1], sum));
                *(unsigned*)(o + base + row * 64 + j * 8 + lane % 4 * 2) = both;
            }
            if (lane % 4 == 0) { lse[blockIdx.y * L + row] = top[half] + __logf(sum); }
        }
    }
}
