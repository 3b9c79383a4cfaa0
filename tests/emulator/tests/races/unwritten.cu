// Reads of bytes that nobody wrote, in shared, global and local memory.
// BUG 1: the last element of a shared tile is left out; 2: a byte of a word; 3: the tile of a copy is read although no group
// was committed; 4: a global array of which half was written; 5: bytes that came from unwritten memory by cp.async.
#ifndef BUG
#define BUG 0
#endif

extern "C" __global__ void unwritten(unsigned* y, const unsigned* x, unsigned* scratch) {
    __shared__ unsigned tile[64];
    __shared__ __align__(16) unsigned copied[64];
    int t = threadIdx.x;
    if (BUG == 2) {
        unsigned char* bytes = (unsigned char*)tile;
        for (int i = 0; i < 4; ++i) {
            if (t != 5 || i != 3) { bytes[4 * t + i] = 1; }
        }
    } else if (BUG != 1 || t != 63) {
        tile[t] = 0x01010101u;
    }
    unsigned at = (unsigned)__cvta_generic_to_shared(&copied[t]);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(at), "l"((BUG == 5 ? scratch : x) + t) : "memory");
#if BUG != 3
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    if (BUG == 0 || BUG == 4) { scratch[2 * t] = t; }
    if (BUG == 0) { scratch[2 * t + 1] = t; }
    __syncthreads();
    unsigned sum = tile[63 - t] + copied[63 - t];
    if (BUG == 0 || BUG == 4) { sum += scratch[127 - t]; }
    y[t] = sum;
}
