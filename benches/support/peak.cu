// What a card's matrix instructions and its FMA units do at most: registers only, eight independent sums a warp or thread.
extern "C" __global__ void __launch_bounds__(256) peak_mma_bf16(float* out, unsigned rounds) {
    float sums[8][4] = {};
    unsigned a[4] = {threadIdx.x, threadIdx.x * 3u, 0x3f803f80u, 0x3f003f00u}, b[2] = {0x3f803f80u, threadIdx.x};
#pragma unroll 1
    for (unsigned i = 0; i < rounds; i++) {
#pragma unroll
        for (unsigned j = 0; j < 8; j++) {
            asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                         "{%0, %1, %2, %3};"
                         : "+f"(sums[j][0]), "+f"(sums[j][1]), "+f"(sums[j][2]), "+f"(sums[j][3])
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
        }
    }
    float sum = 0.0f;
    for (unsigned j = 0; j < 8; j++) sum += sums[j][0] + sums[j][1] + sums[j][2] + sums[j][3];
    out[(unsigned long long)blockIdx.x * 256 + threadIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(256) peak_fma_f32(float* out, unsigned rounds) {
    float sums[8] = {}, x = 1.0f + threadIdx.x * 1e-6f;
#pragma unroll 1
    for (unsigned i = 0; i < rounds; i++) {
#pragma unroll
        for (unsigned j = 0; j < 8; j++) sums[j] = fmaf(sums[j], x, 1.0f);
    }
    float sum = 0.0f;
    for (unsigned j = 0; j < 8; j++) sum += sums[j];
    out[(unsigned long long)blockIdx.x * 256 + threadIdx.x] = sum;
}
