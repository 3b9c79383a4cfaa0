// Approximate and exact functions, double precision, a local array, an initialised local table.
extern "C" __global__ void mathematics(float* x, double* d, int n) {
    __shared__ char pad[3];
    float local[8];
    int i = threadIdx.x;
    pad[i % 3] = i;
    float v = x[i];
#pragma unroll 1
    for (int k = 0; k < n; ++k) { local[k & 7] = __expf(v) + rsqrtf(v) + __fdividef(v, 3.f) + floorf(v) + __sinf(v); }
    x[i] = local[n & 7] / v + sqrtf(v) + pad[n % 3] + rintf(v);
    d[i] = d[i] * 2.0 + (double)v / 3.0;
}
