// CUB's collectives of a block, each on tiles of THREADS x ITEMS numbers: one tile a block.
#include <cub/block/block_load.cuh>
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/block/block_store.cuh>

typedef cub::BlockLoad<unsigned, THREADS, ITEMS, cub::BLOCK_LOAD_TRANSPOSE> Load;
typedef cub::BlockStore<unsigned, THREADS, ITEMS, cub::BLOCK_STORE_TRANSPOSE> Store;

template <cub::BlockReduceAlgorithm ALGORITHM>
__device__ void reduce_tile(float* sums, float* tops, const float* x, int n) {
    typedef cub::BlockReduce<float, THREADS, ALGORITHM> Reduce;
    __shared__ typename Reduce::TempStorage storage;
    int i = blockIdx.x * THREADS + threadIdx.x, left = n - blockIdx.x * THREADS;
    float value = i < n ? x[i] : 0.0f;
    float sum = Reduce(storage).Sum(value);
    __syncthreads();
    float top = Reduce(storage).Reduce(value, [](float a, float b) { return a > b ? a : b; }, left < THREADS ? left : THREADS);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = sum;
        tops[blockIdx.x] = top;
    }
}

extern "C" __global__ void reduce_warps(float* sums, float* tops, const float* x, int n) {
    reduce_tile<cub::BLOCK_REDUCE_WARP_REDUCTIONS>(sums, tops, x, n);
}

extern "C" __global__ void reduce_raking(float* sums, float* tops, const float* x, int n) {
    reduce_tile<cub::BLOCK_REDUCE_RAKING>(sums, tops, x, n);
}

template <cub::BlockScanAlgorithm ALGORITHM>
__device__ void scan_tile(unsigned* y, unsigned* totals, const unsigned* x, int n) {
    typedef cub::BlockScan<unsigned, THREADS, ALGORITHM> Scan;
    __shared__ union {
        typename Load::TempStorage load;
        typename Scan::TempStorage scan;
        typename Store::TempStorage store;
    } storage;
    const int start = blockIdx.x * THREADS * ITEMS, inside = min(THREADS * ITEMS, n - start);
    unsigned values[ITEMS], total;
    Load(storage.load).Load(x + start, values, inside, 0u);
    __syncthreads();
    Scan(storage.scan).ExclusiveSum(values, values, total);
    __syncthreads();
    Store(storage.store).Store(y + start, values, inside);
    if (threadIdx.x == 0) { totals[blockIdx.x] = total; }
}

extern "C" __global__ void scan_warps(unsigned* y, unsigned* totals, const unsigned* x, int n) {
    scan_tile<cub::BLOCK_SCAN_WARP_SCANS>(y, totals, x, n);
}

extern "C" __global__ void scan_raking(unsigned* y, unsigned* totals, const unsigned* x, int n) {
    scan_tile<cub::BLOCK_SCAN_RAKING>(y, totals, x, n);
}

extern "C" __global__ void sort_pairs(unsigned* keys, unsigned* places, const unsigned* x, int n) {
    typedef cub::BlockRadixSort<unsigned, THREADS, ITEMS, unsigned> Sort;
    __shared__ union {
        typename Load::TempStorage load;
        typename Sort::TempStorage sort;
        typename Store::TempStorage store;
    } storage;
    const int start = blockIdx.x * THREADS * ITEMS, inside = min(THREADS * ITEMS, n - start);
    unsigned values[ITEMS], from[ITEMS];
    Load(storage.load).Load(x + start, values, inside, 0xffffffffu);
    for (int i = 0; i < ITEMS; i++) { from[i] = threadIdx.x * ITEMS + i; }
    __syncthreads();
    Sort(storage.sort).Sort(values, from);
    __syncthreads();
    Store(storage.store).Store(keys + start, values, inside);
    __syncthreads();
    Store(storage.store).Store(places + start, from, inside);
}
