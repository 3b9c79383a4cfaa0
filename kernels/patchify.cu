// Patches of images as rows of tokens, and back: permutations of bits.
//
// patchify: token (ty, tx) of a sample has columns (channel, row in patch, column in patch), the order of a convolution's weight;
// channels of a second image follow those of the first. unpatchify: a token's columns are (row in patch, column in patch,
// channel), of which the first `channels` channels are the image. The backward of each is the other direction.
//
// One block covers up to 128 lanes of one sample, a lane 16 bytes of tokens (one element where a sample is no multiple of that); on the
// image's side it moves runs of neighbouring pixels as wide as the patch allows, so that a warp, which has neighbouring
// tokens, moves whole sectors there too. No shared memory. Bytes moved: two elements each.
#include "common.cuh"

#if FLOATX == 0
typedef unsigned Bits;
#else
typedef unsigned short Bits;
#endif

static const unsigned THREADS = 128;

struct Image {
    unsigned channels, height, width, patch;
};

// A word of as many bytes.
template <unsigned BYTES> struct Word;
template <> struct Word<2> { typedef unsigned short Type; };
template <> struct Word<4> { typedef unsigned Type; };
template <> struct Word<8> { typedef uint2 Type; };
template <> struct Word<16> { typedef uint4 Type; };

// What a lane has: COUNT runs of V elements.
template <unsigned V, unsigned COUNT> union Lane {
    typedef typename Word<V * sizeof(Bits)>::Type Run;
    typename Word<V * COUNT * sizeof(Bits)>::Type whole;
    Run runs[COUNT];
    Bits elements[V * COUNT];
    __device__ Lane() {}
};

// The sample of this block, and the first of this lane's elements among the n of a sample, `each` for a lane.
struct Part {
    unsigned sample, first;
};
__device__ __forceinline__ Part part(unsigned n, unsigned each) {
    unsigned blocks = (n / each + THREADS - 1) / THREADS;
    Part part = {blockIdx.x / blocks, (blockIdx.x % blocks * THREADS + threadIdx.x) * each};
    return part;
}

// A pixel of a sample: its token's place among patches, and its place in the patch.
struct Pixel {
    unsigned ty, tx, i, j;

    __device__ Pixel(const Image& image, unsigned token, unsigned i, unsigned j)
        : ty(token / (image.width / image.patch)), tx(token % (image.width / image.patch)), i(i), j(j) {}
    __device__ unsigned at(const Image& image) const {
        return (ty * image.patch + i) * image.width + tx * image.patch + j;
    }
};

// Calls f(k, token, column, channel, pixel) for the lane's COUNT runs of V neighbouring pixels, from element `first` of a sample's
// tokens on. Divisions are made once, the rest is carried.
template <unsigned V, unsigned COUNT, class F>
__device__ __forceinline__ void each_run(const Image& image, unsigned first, F f) {
    unsigned p = image.patch, row = first / p, plane = row / p, token = plane / image.channels, channel = plane % image.channels;
    Pixel pixel(image, token, row % p, first % p);
#pragma unroll
    for (unsigned k = 0; k < COUNT; k++) {
        f(k, token, (channel * p + pixel.i) * p + pixel.j, channel, pixel.at(image));
        pixel.j += V;
        if (pixel.j < p) continue;
        pixel.j = 0;
        if (++pixel.i < p) continue;
        pixel.i = 0;
        if (++channel < image.channels) continue;
        channel = 0;
        token++;
        if (++pixel.tx < image.width / p) continue;
        pixel.tx = 0;
        pixel.ty++;
    }
}

// Channels from `own` on are those of `beside`.
template <unsigned V, unsigned COUNT>
__device__ __forceinline__ void to_tokens(Bits* tokens, const Bits* x, const Bits* beside, const Image& image, unsigned own) {
    unsigned area = image.height * image.width, n = image.channels * area;
    Part at = part(n, V * COUNT);
    if (at.first >= n) return;
    x += (unsigned long long)at.sample * own * area;
    beside += (unsigned long long)at.sample * (image.channels - own) * area;
    Lane<V, COUNT> lane;
    each_run<V, COUNT>(image, at.first, [&](unsigned k, unsigned, unsigned, unsigned channel, unsigned pixel) {
        const Bits* from = channel < own ? x + channel * area : beside + (channel - own) * area;
        lane.runs[k] = *(const typename Lane<V, COUNT>::Run*)(from + pixel);
    });
    typedef decltype(lane.whole) Whole;
    *(Whole*)(tokens + (unsigned long long)at.sample * n + at.first) = lane.whole;
}

// A token of dtokens has `of` channels; those from `first` on are the image's.
template <unsigned V, unsigned COUNT>
__device__ __forceinline__ void to_image(Bits* dx, const Bits* dtokens, const Image& image, unsigned first, unsigned of) {
    typedef typename Lane<V, COUNT>::Run Run;
    unsigned area = image.height * image.width, n = image.channels * area, square = image.patch * image.patch;
    Part at = part(n, V * COUNT);
    if (at.first >= n) return;
    dx += (unsigned long long)at.sample * n;
    dtokens += (unsigned long long)at.sample * of * area;
    bool whole = of == image.channels;
    Lane<V, COUNT> lane;
    if (whole) {
        typedef decltype(lane.whole) Whole;
        lane.whole = *(const Whole*)(dtokens + at.first);
    }
    each_run<V, COUNT>(image, at.first, [&](unsigned k, unsigned token, unsigned column, unsigned channel, unsigned pixel) {
        if (!whole) lane.runs[k] = *(const Run*)(dtokens + (token * of + first) * square + column);
        *(Run*)(dx + channel * area + pixel) = lane.runs[k];
    });
}

// run: pixels that one access of the image moves, a power of two that divides a patch's side and a pack; 0: elements one by one.
extern "C" __global__ void __launch_bounds__(128) patchify(
    floatX* __restrict__ tokens, const floatX* __restrict__ x, const floatX* __restrict__ beside, unsigned run, unsigned channels,
    unsigned more, unsigned height, unsigned width, unsigned patch) {
    Image image = {channels + more, height, width, patch};
    Bits* to = (Bits*)tokens;
    const Bits *from = (const Bits*)x, *second = (const Bits*)beside;
    if (run == EACH) to_tokens<EACH, 1>(to, from, second, image, channels);
    else if (run == EACH / 2) to_tokens<EACH / 2, 2>(to, from, second, image, channels);
    else if (run == EACH / 4) to_tokens<EACH / 4, 4>(to, from, second, image, channels);
    else if (run == 1) to_tokens<1, EACH>(to, from, second, image, channels);
    else to_tokens<1, 1>(to, from, second, image, channels);
}

extern "C" __global__ void __launch_bounds__(128) patchify_backward(
    floatX* __restrict__ dx, const floatX* __restrict__ dtokens, unsigned run, unsigned channels, unsigned first, unsigned of,
    unsigned height, unsigned width, unsigned patch) {
    Image image = {channels, height, width, patch};
    Bits* to = (Bits*)dx;
    const Bits* from = (const Bits*)dtokens;
    if (run == EACH) to_image<EACH, 1>(to, from, image, first, of);
    else if (run == EACH / 2) to_image<EACH / 2, 2>(to, from, image, first, of);
    else if (run == EACH / 4) to_image<EACH / 4, 4>(to, from, image, first, of);
    else if (run == 1) to_image<1, EACH>(to, from, image, first, of);
    else to_image<1, 1>(to, from, image, first, of);
}

// A lane's part of a sample of y, (token, row in patch, column in patch, channel): V neighbouring pixels of `each` channels.
struct Pixels {
    unsigned channel, pixel;
};
__device__ __forceinline__ Pixels pixels_at(const Image& image, unsigned first, unsigned out_channels) {
    unsigned at = first / out_channels, p = image.patch, row = at / p;
    Pixels pixels = {first % out_channels, Pixel(image, row / p, row % p, at % p).at(image)};
    return pixels;
}

// Element q of y's V pixels and channel k is lane.elements[q*COUNT + k]; of the image's it is run k.
template <unsigned V, unsigned COUNT>
__device__ __forceinline__ void to_planes(Bits* x, const Bits* y, const Image& image, unsigned out_channels) {
    unsigned area = image.height * image.width, n = out_channels * area;
    Part at = part(n, V * COUNT);
    if (at.first >= n) return;
    Lane<V, COUNT> lane;
    typedef decltype(lane.whole) Whole;
    lane.whole = *(const Whole*)(y + (unsigned long long)at.sample * n + at.first);
    Pixels to = pixels_at(image, at.first, out_channels);
    x += (unsigned long long)at.sample * image.channels * area + to.pixel;
#pragma unroll
    for (unsigned k = 0; k < COUNT; k++) {
        if (to.channel + k >= image.channels) continue;
        Lane<V, 1> run;
#pragma unroll
        for (unsigned q = 0; q < V; q++) run.elements[q] = lane.elements[q * COUNT + k];
        *(typename Lane<V, 1>::Run*)(x + (to.channel + k) * area) = run.whole;
    }
}

// The same back, with zeros for the channels that the image lacks.
template <unsigned V, unsigned COUNT>
__device__ __forceinline__ void from_planes(Bits* dy, const Bits* dx, const Image& image, unsigned out_channels) {
    unsigned area = image.height * image.width, n = out_channels * area;
    Part at = part(n, V * COUNT);
    if (at.first >= n) return;
    Pixels from = pixels_at(image, at.first, out_channels);
    dx += (unsigned long long)at.sample * image.channels * area + from.pixel;
    Lane<V, COUNT> lane;
#pragma unroll
    for (unsigned k = 0; k < COUNT; k++) {
        bool there = from.channel + k < image.channels;
        Lane<V, 1> run;
        if (there) run.whole = *(const typename Lane<V, 1>::Run*)(dx + (from.channel + k) * area);
#pragma unroll
        for (unsigned q = 0; q < V; q++) lane.elements[q * COUNT + k] = there ? run.elements[q] : (Bits)0;
    }
    typedef decltype(lane.whole) Whole;
    *(Whole*)(dy + (unsigned long long)at.sample * n + at.first) = lane.whole;
}

// run: neighbouring pixels of which a lane has the 16 bytes (1: some channels of one pixel); 0: elements one by one.
extern "C" __global__ void __launch_bounds__(128) unpatchify(
    floatX* __restrict__ x, const floatX* __restrict__ y, unsigned run, unsigned channels, unsigned out_channels, unsigned height,
    unsigned width, unsigned patch) {
    Image image = {channels, height, width, patch};
    Bits* to = (Bits*)x;
    const Bits* from = (const Bits*)y;
    if (run == 1) to_planes<1, EACH>(to, from, image, out_channels);
    else if (run == EACH / 4) to_planes<EACH / 4, 4>(to, from, image, out_channels);
    else if (run == EACH / 2) to_planes<EACH / 2, 2>(to, from, image, out_channels);
    else to_planes<1, 1>(to, from, image, out_channels);
}

extern "C" __global__ void __launch_bounds__(128) unpatchify_backward(
    floatX* __restrict__ dy, const floatX* __restrict__ dx, unsigned run, unsigned channels, unsigned out_channels,
    unsigned height, unsigned width, unsigned patch) {
    Image image = {channels, height, width, patch};
    Bits* to = (Bits*)dy;
    const Bits* from = (const Bits*)dx;
    if (run == 1) from_planes<1, EACH>(to, from, image, out_channels);
    else if (run == EACH / 4) from_planes<EACH / 4, 4>(to, from, image, out_channels);
    else if (run == EACH / 2) from_planes<EACH / 2, 2>(to, from, image, out_channels);
    else from_planes<1, 1>(to, from, image, out_channels);
}
