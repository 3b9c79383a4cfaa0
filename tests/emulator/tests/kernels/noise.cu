// x_t = (1 - t) data + t noise and velocity = noise - data, with standard normal noise from Philox 4x32-10 and Box-Muller.
// One thread makes four neighbours; t is one number for each row of `width` elements, a multiple of 4.
__device__ __forceinline__ uint4 philox(uint4 c, unsigned key0, unsigned key1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        unsigned high0 = __umulhi(0xD2511F53u, c.x), low0 = 0xD2511F53u * c.x;
        unsigned high1 = __umulhi(0xCD9E8D57u, c.z), low1 = 0xCD9E8D57u * c.z;
        c = make_uint4(high1 ^ c.y ^ key0, low1, high0 ^ c.w ^ key1, low0);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return c;
}

__device__ __forceinline__ float2 normal_pair(unsigned a, unsigned b) {
    float radius = sqrtf(-2.0f * logf((a + 0.5f) * 0x1p-32f)), angle = 6.2831853071795865f * (b * 0x1p-32f);
    return make_float2(radius * cosf(angle), radius * sinf(angle));
}

extern "C" __global__ void noise(float* xt, float* velocity, const float* data, const float* times, int n, int width,
                                 unsigned seed, unsigned step) {
    int i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i >= n) { return; }
    uint4 bits = philox(make_uint4(i / 4, 0, step, 0), seed, 0);
    float2 e0 = normal_pair(bits.x, bits.y), e1 = normal_pair(bits.z, bits.w);
    float t = times[i / width];
    float4 d = *(const float4*)(data + i);
    *(float4*)(xt + i) = make_float4((1 - t) * d.x + t * e0.x, (1 - t) * d.y + t * e0.y, (1 - t) * d.z + t * e1.x,
                                     (1 - t) * d.w + t * e1.y);
    *(float4*)(velocity + i) = make_float4(e0.x - d.x, e0.y - d.y, e1.x - d.z, e1.y - d.w);
}
