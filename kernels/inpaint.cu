// The condition of inpainting: what is known of an image, 0 in its holes, and behind it a plane with -1 where it is known and 1 in holes.
//
// Holes are boxes, drawn anew for each sample: the first threads of a block draw those of its sample, in whole numbers, so that every
// device has the same. One block covers 128 packs of one sample of the result, a lane 16 bytes of it, or one element where a plane is no
// multiple of that. Bytes moved: an image once, and the result.
#include "common.cuh"
#include "philox.cuh"

static const unsigned BOXES = 4, THREADS = 128;

// Rows top .. top + tall of columns left .. left + wide; it may stand out of the image.
struct Box {
    int top, left;
    unsigned tall, wide;
};

// A whole number below n.
__device__ __forceinline__ unsigned below(unsigned word, unsigned n) { return __umulhi(word, n); }

__device__ __forceinline__ Box drawn(
    const Philox& draw, unsigned long long sample, unsigned k, float whole, unsigned height, unsigned width) {
    uint4 first = philox(draw, sample, 0, 0), own = philox(draw, sample, 0, 1 + k);
    Box box = {0, 0, height, width};
    if (unit(first.x) < whole) return box;
    box.tall = 1 + below(own.x, height + height / 4);
    box.wide = 1 + below(own.y, width + width / 4);
    box.top = (int)below(own.z, height) - (int)(box.tall / 2);
    box.left = (int)below(own.w, width) - (int)(box.wide / 2);
    if (k > below(first.y, BOXES)) box.tall = 0;
    return box;
}

extern "C" __global__ void __launch_bounds__(128) inpaint(
    floatX* __restrict__ condition, const float* __restrict__ x, unsigned key0, unsigned key1, unsigned long long step,
    const unsigned long long* __restrict__ counter, unsigned long long first, float whole, unsigned channels, unsigned height,
    unsigned width) {
    __shared__ Box shared[BOXES];
    unsigned area = height * width, known = channels * area, n = known + area;
    bool vector = area % EACH == 0;
    unsigned each = vector ? EACH : 1, blocks = (n / each + THREADS - 1) / THREADS;
    unsigned sample = blockIdx.x / blocks, at = (blockIdx.x % blocks * THREADS + threadIdx.x) * each;
    if (threadIdx.x < BOXES) {
        Philox draw = philox_at(key0, key1, step, counter);
        shared[threadIdx.x] = drawn(draw, first + sample, threadIdx.x, whole, height, width);
    }
    __syncthreads();
    Box boxes[BOXES];
#pragma unroll
    for (unsigned k = 0; k < BOXES; k++) boxes[k] = shared[k];
    unsigned pixel = at % area, row = pixel / width, column = pixel % width;
    auto hole = [&]() {
        bool inside = false;
#pragma unroll
        for (unsigned k = 0; k < BOXES; k++)
            inside |= row - boxes[k].top < boxes[k].tall && column - boxes[k].left < boxes[k].wide;
        return inside;
    };
    x += (unsigned long long)sample * known + at;
    condition += (unsigned long long)sample * n + at;
    if (!vector) {
        if (at < n) *condition = from_float<floatX>(at < known ? (hole() ? 0.0f : *x) : (hole() ? 1.0f : -1.0f));
        return;
    }
    float values[EACH];
    read_floats(values, x, at < known);
#pragma unroll
    for (unsigned j = 0; j < EACH; j++) {
        bool inside = hole();
        values[j] = at < known ? (inside ? 0.0f : values[j]) : (inside ? 1.0f : -1.0f);
        if (++column < width) continue;
        column = 0;
        row++;
    }
    if (at < n) write(condition, values);
}
