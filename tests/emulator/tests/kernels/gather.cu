// y[i] = table[index[i]]: rows of C bf16 numbers, C a multiple of 8, in loads and stores of 16 bytes. One warp a row.
extern "C" __global__ void __launch_bounds__(128) gather(unsigned short* y, const unsigned short* table, const int* index, int rows,
                                                         int C) {
    const int row = blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= rows) { return; }
    const uint4* from = (const uint4*)(table + (long long)index[row] * C);
    uint4* to = (uint4*)(y + (long long)row * C);
    for (int i = threadIdx.x % 32; i < C / 8; i += 32) { to[i] = __ldg(from + i); }
}
