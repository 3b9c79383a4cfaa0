// y[i] = x[0] + .. + x[i], whole numbers, in one pass: blocks of 256 take tickets, publish their sum (flag 1) and, when they
// know it, the sum of all before and with them (flag 2), and look back over the flags of earlier tickets.
// `state` is zero before: [0] the next ticket, then a flag, a sum and a running sum for each block.
extern "C" __global__ void __launch_bounds__(256) scan(unsigned* y, unsigned* state, const unsigned* x, int n) {
    __shared__ unsigned ticket, before, totals[8];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    if (thread == 0) { ticket = atomicAdd(state, 1u); }
    __syncthreads();
    const unsigned block = ticket;
    unsigned* slots = state + 1;
    int i = block * 256 + thread;
    unsigned value = i < n ? x[i] : 0;
    for (int step = 1; step < 32; step *= 2) {
        unsigned left = __shfl_up_sync(0xffffffffu, value, step);
        if (lane >= step) { value += left; }
    }
    if (lane == 31) { totals[warp] = value; }
    __syncthreads();
    unsigned whole = 0;
    for (int other = 0; other < 8; other++) {
        if (other == warp) { value += whole; }
        whole += totals[other];
    }
    if (thread == 0) {
        unsigned sum = 0;
        slots[block * 3 + 1] = whole;
        __threadfence();
        atomicExch(&slots[block * 3], 1u);
        for (int other = (int)block - 1; other >= 0; other--) {
            unsigned flag;
            do { flag = *(volatile unsigned*)&slots[other * 3]; } while (flag == 0);
            __threadfence();
            sum += flag == 2 ? slots[other * 3 + 2] : slots[other * 3 + 1];
            if (flag == 2) { break; }
        }
        slots[block * 3 + 2] = sum + whole;
        __threadfence();
        atomicExch(&slots[block * 3], 2u);
        before = sum;
    }
    __syncthreads();
    if (i < n) { y[i] = before + value; }
}
