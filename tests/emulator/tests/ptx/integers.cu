// Bit operations, 8, 16 and 64 bits, a switch, votes, atomics.
extern "C" __global__ void integers(int* a, unsigned long long* b, unsigned char* c, short* s, int n) {
    int i = threadIdx.x;
    if (i >= n) { return; }
    a[i] = a[i] / 7 + __clz(a[i]) + __popc(a[i]) + __brev(a[i]) + __byte_perm(a[i], n, 0x3210) + abs(a[i]) + (int)(char)c[i];
    b[i] = b[i] * 0x9E3779B97F4A7C15ull + (b[i] >> 7) / (unsigned long long)n;
    s[i] = s[i] + (short)c[i] - 1;
    switch (a[i] & 7) {
        case 0: a[i] = 5; break;
        case 1: a[i] *= 3; break;
        case 2: a[i] ^= 99; break;
        case 3: a[i] = (int)b[i]; break;
        case 4: a[i] = ~a[i]; break;
        case 5: a[i] = __funnelshift_l(a[i], n, 3); break;
        default: a[i] = 0;
    }
    if (__any_sync(~0u, a[i] > 3)) { a[i] += __ballot_sync(~0u, a[i] == n) + __match_any_sync(~0u, n); }
    atomicCAS(a, 1, 2);
    atomicMax(a + 1, n);
    if (__syncthreads_or(i > 4)) { __trap(); }
}
