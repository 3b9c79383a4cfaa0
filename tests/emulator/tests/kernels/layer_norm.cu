// y = (x - mean) rstd weight + bias over each row of x: (rows, C), C a multiple of 4; mean and rstd are kept.
// A block of 128 threads for each row; loads and stores of 16 bytes; sums by shuffles and one shared word a warp.
__device__ __forceinline__ float sum_of_block(float value, float* partial) {
    for (int step = 16; step > 0; step /= 2) { value += __shfl_xor_sync(0xffffffffu, value, step); }
    __syncthreads(); // the last sum has been read by all
    if (threadIdx.x % 32 == 0) { partial[threadIdx.x / 32] = value; }
    __syncthreads();
    return partial[0] + partial[1] + partial[2] + partial[3];
}

extern "C" __global__ void __launch_bounds__(128)
layer_norm(float* y, float* mean, float* rstd, const float* x, const float* weight, const float* bias, int C) {
    __shared__ float partial[4];
    const long long row = blockIdx.x;
    const float4* from = (const float4*)(x + row * C);
    float sum = 0;
    for (int i = threadIdx.x; i < C / 4; i += 128) {
        float4 v = from[i];
        sum += v.x + v.y + v.z + v.w;
    }
    float m = sum_of_block(sum, partial) / C;
    float squares = 0;
    for (int i = threadIdx.x; i < C / 4; i += 128) {
        float4 v = from[i];
        squares += (v.x - m) * (v.x - m) + (v.y - m) * (v.y - m) + (v.z - m) * (v.z - m) + (v.w - m) * (v.w - m);
    }
    float r = rsqrtf(sum_of_block(squares, partial) / C + 1e-5f);
    if (threadIdx.x == 0) {
        mean[row] = m;
        rstd[row] = r;
    }
    for (int i = threadIdx.x; i < C / 4; i += 128) {
        float4 v = from[i], w = ((const float4*)weight)[i], b = ((const float4*)bias)[i];
        v.x = (v.x - m) * r * w.x + b.x;
        v.y = (v.y - m) * r * w.y + b.y;
        v.z = (v.z - m) * r * w.z + b.z;
        v.w = (v.w - m) * r * w.w + b.w;
        ((float4*)(y + row * C))[i] = v;
    }
}
