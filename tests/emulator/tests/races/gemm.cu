// C = A·B for 64 x 64 tiles of f32, tiles of A and B by cp.async into two stages. One block of 8 x 32 threads, 8 x 2 results each.
// BUG 1: no barrier after the wait; 2: waits for one group too few; 3: no barrier before a stage is filled again;
// 4: fills the stage that is being read; 5: no wait at all.
#ifndef BUG
#define BUG 0
#endif

__device__ void copy16(float* to, const float* from) {
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}

extern "C" __global__ void gemm(float* c, const float* a, const float* b, int k) {
    __shared__ __align__(16) float as[2][64][16];
    __shared__ __align__(16) float bs[2][16][64];
    int tx = threadIdx.x, ty = threadIdx.y, t = ty * 32 + tx;
    float sum[8][2] = {};
    auto fill = [&](int stage, int k0) {
        copy16(&as[stage][t / 4][t % 4 * 4], a + (blockIdx.y * 64 + t / 4) * k + k0 + t % 4 * 4);
        copy16(&bs[stage][t / 16][t % 16 * 4], b + (k0 + t / 16) * (gridDim.x * 64) + blockIdx.x * 64 + t % 16 * 4);
    };
    fill(0, 0);
    asm volatile("cp.async.commit_group;" ::: "memory");
    int steps = k / 16;
    for (int s = 0; s < steps; ++s) {
        int next = s + 1;
        if (next < steps) {
            fill(BUG == 4 ? s % 2 : next % 2, next * 16);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
#if BUG == 2
        asm volatile("cp.async.wait_group 2;" ::: "memory");
#elif BUG != 5
        asm volatile("cp.async.wait_group 1;" ::: "memory");
#endif
        if (BUG != 1) { __syncthreads(); }
        for (int i = 0; i < 16; ++i) {
            for (int r = 0; r < 8; ++r) {
                sum[r][0] += as[s % 2][ty * 8 + r][i] * bs[s % 2][i][tx];
                sum[r][1] += as[s % 2][ty * 8 + r][i] * bs[s % 2][i][tx + 32];
            }
        }
        if (BUG != 3) { __syncthreads(); }
    }
    for (int r = 0; r < 8; ++r) {
        float* row = c + (blockIdx.y * 64 + ty * 8 + r) * (gridDim.x * 64) + blockIdx.x * 64;
        row[tx] = sum[r][0];
        row[tx + 32] = sum[r][1];
    }
}
