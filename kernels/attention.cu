// Multi-head self-attention, forward: s = q*k^T/sqrt(K), p = softmax of the rows of s, o = p*v; lse = log of the sum of e^s of each row.
//
// qkv (N, 3*H*K) with columns q of all heads, k, v; o (N, H*K), lse (N, H) f32; N = B*T, and rows see those of their own sample. s and p
// exist in registers alone: keys come tile by tile, and what was summed before is scaled down when a larger s appears (Milakov and
// Gimelshein 2018; Dao and others 2022). Sums go over keys in order: the same bits every time.
//
// 16-bit floats on tensor cores: a block has 64 or 128 (_tall) rows of one head, a warp 16 or 32 of them; the next tile of keys and values
// is on its way while one is multiplied. Kernels by the width to which K is filled up. Bytes moved: q and o once, k and v once for every
// block of rows; those come from the second-level cache, as blocks of a head run together. f32: attention_f32.cuh.
#include "attention.cuh"
#include "attention_f32.cuh"

static const float LN_2 = 0.69314718f;

#if FLOATX != 0

// Of 16 rows: the largest s so far and the sum of e^(s - that), for this thread's rows `lane/4` and that + 8.
struct RowSoftmax {
    float most[2] = {-infinity(), -infinity()}, total[2] = {0.0f, 0.0f};

    // Makes p of s, with s*factor in powers of two; returns what everything summed before is to be multiplied with.
    template <unsigned COLUMNS> __device__ __forceinline__ void take(float (&s)[COLUMNS][4], float (&fade)[2], float factor) {
#pragma unroll
        for (unsigned row = 0; row < 2; row++) {
            float largest = most[row];
#pragma unroll
            for (unsigned n = 0; n < COLUMNS; n++) largest = fmaxf(largest, fmaxf(s[n][row * 2], s[n][row * 2 + 1]));
            largest = fmaxf(largest, shuffle_xor(largest, 1));
            largest = fmaxf(largest, shuffle_xor(largest, 2));
            fade[row] = power_of_two((most[row] - largest) * factor);
            most[row] = largest;
            float offset = largest * -factor, sum = total[row] * fade[row];
#pragma unroll
            for (unsigned n = 0; n < COLUMNS; n++) {
#pragma unroll
                for (unsigned e = row * 2; e < row * 2 + 2; e++) {
                    s[n][e] = power_of_two(fmaf(s[n][e], factor, offset));
                    sum += s[n][e];
                }
            }
            total[row] = sum;
        }
    }
};

// DOWN: tiles of 16 rows of a warp; KEYS: of a step.
template <unsigned WIDTH, unsigned DOWN, unsigned KEYS>
__device__ __forceinline__ void forward(
    floatX* o, float* lse, const floatX* qkv, float scale, unsigned tokens, unsigned heads, unsigned k) {
    const unsigned ROWS = 64 * DOWN, PAIRS = WIDTH / 16, ROW_BYTES = TileRow<WIDTH>::BYTES;
    const unsigned VALUES = KEYS * ROW_BYTES, STAGE = 2 * VALUES; // a stage: keys, then values
    const unsigned BESIDE = ROWS <= 2 * KEYS ? STAGE : 0;
    static_assert(ROWS <= 4 * KEYS && 64 <= 2 * KEYS, "queries come through both stages, results leave through one");
    __shared__ __align__(128) unsigned char memory[2 * STAGE];
    unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, start = shared_address(memory);
    HeadBlock block(ROWS, tokens, heads);
    HeadRows<const floatX> keys[2] = {part_of(qkv, 1, block, tokens, heads, k), part_of(qkv, 2, block, tokens, heads, k)};
    TileCopier<KEYS, WIDTH, 2> copy_keys(keys, 0, start);
    unsigned left = (tokens + KEYS - 1) / KEYS - 1; // tiles behind the first

    // Queries come through the other stage, or, where they need both, before everything else.
    HeadRows<const floatX> queries[1] = {part_of(qkv, 0, block, tokens, heads, k)};
    TileCopier<ROWS, WIDTH, 1> copy_queries(queries, block.first, start + BESIDE);
    copy_queries.copy(0, tokens - block.first <= ROWS);
    if (BESIDE) copy_keys.copy(0, left == 0);
    copies_commit();
    copies_wait<0>();
    __syncthreads();
    unsigned q[DOWN][PAIRS][4];
    TileReader<WIDTH, true> read_q(start + BESIDE + warp * DOWN * 16 * ROW_BYTES);
#pragma unroll
    for (unsigned i = 0; i < DOWN; i++) {
#pragma unroll
        for (unsigned pair = 0; pair < PAIRS; pair++) read_q.read(q[i][pair], pair, i * 16 * ROW_BYTES);
    }
    if (!BESIDE) {
        __syncthreads();
        copy_keys.copy(0, left == 0);
        copies_commit();
    }

    float sums[DOWN][WIDTH / 8][4] = {}, factor = scale * LOG2_E;
    RowSoftmax softmax[DOWN];
    TileReader<WIDTH, false> read_k(start);
    TileReader<WIDTH, true> read_v(start + VALUES);
    unsigned stage = 0;
    auto arrive = [&]() { // the next tile has come, for all threads, and all are done with the one before
        copies_wait<0>();
        __syncthreads();
    };
    auto step = [&](auto which) {
        float s[DOWN][KEYS / 8][4] = {};
#pragma unroll
        for (unsigned pair = 0; pair < PAIRS; pair++) {
#pragma unroll
            for (unsigned n = 0; n < KEYS / 16; n++) {
                unsigned b[4];
                read_k.read(b, pair, stage + n * 16 * ROW_BYTES);
#pragma unroll
                for (unsigned i = 0; i < DOWN; i++) multiply_pair(s[i][2 * n], s[i][2 * n + 1], q[i][pair], b);
            }
        }
        if (which.IS_LAST) { // keys that are not there
            unsigned there = (tokens - 1) % KEYS + 1;
#pragma unroll
            for (unsigned n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (unsigned e = 0; e < 4; e++) {
                    bool inside = n * 8 + lane % 4 * 2 + e % 2 < there;
#pragma unroll
                    for (unsigned i = 0; i < DOWN; i++) s[i][n][e] = inside ? s[i][n][e] : -infinity();
                }
            }
        }
#pragma unroll
        for (unsigned i = 0; i < DOWN; i++) {
            float fade[2];
            softmax[i].take(s[i], fade, factor);
#pragma unroll
            for (unsigned n = 0; n < WIDTH / 8; n++) {
#pragma unroll
                for (unsigned e = 0; e < 4; e++) sums[i][n][e] *= fade[e / 2];
            }
        }
#pragma unroll
        for (unsigned row = 0; row < KEYS / 16; row++) {
            unsigned p[DOWN][4];
#pragma unroll
            for (unsigned i = 0; i < DOWN; i++) to_fragment(p[i], s[i][2 * row], s[i][2 * row + 1]);
#pragma unroll
            for (unsigned pair = 0; pair < PAIRS; pair++) {
                unsigned b[4];
                read_v.read_transposed(b, pair, stage + row * 16 * ROW_BYTES);
#pragma unroll
                for (unsigned i = 0; i < DOWN; i++) multiply_pair(sums[i][2 * pair], sums[i][2 * pair + 1], p[i], b);
            }
        }
    };
#pragma unroll 1
    for (; left > 0; left--) {
        arrive();
        unsigned next = stage ^ STAGE;
        copy_keys.copy(next, left == 1);
        copies_commit();
        step(Inner());
        stage = next;
    }
    arrive();
    step(Last());

    // Through the other stage, which nobody reads any more.
    HeadRows<floatX> to = rows_of(o, block, tokens, heads, k);
    unsigned char* slab = memory + (stage ^ STAGE) + warp * 16 * ROW_BYTES;
#pragma unroll
    for (unsigned i = 0; i < DOWN; i++) {
        float total[2], offset[2];
#pragma unroll
        for (unsigned row = 0; row < 2; row++) {
            total[row] = softmax[i].total[row];
            total[row] += shuffle_xor(total[row], 1);
            total[row] += shuffle_xor(total[row], 2);
            offset[row] = softmax[i].most[row] * factor;
        }
        unsigned first = block.first + (warp * DOWN + i) * 16, row = first + lane / 4 + lane % 4 * 8;
        // The first two of each four threads write a row's: those of the second are 8 further down.
        if (lane % 4 < 2 && row < tokens) {
            float log2_sum = lane % 4 == 0 ? offset[0] + __log2f(total[0]) : offset[1] + __log2f(total[1]);
            lse[(block.start + row) * heads + block.head] = log2_sum * LN_2;
        }
        write_rows<WIDTH>(to, first, sums[i], reciprocal(total[0]), reciprocal(total[1]), slab);
    }
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_32(
    floatX* __restrict__ o, float* __restrict__ lse, const floatX* __restrict__ qkv, float scale, unsigned tokens, unsigned heads,
    unsigned k) {
    forward<32, 1, 64>(o, lse, qkv, scale, tokens, heads, k);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_64(
    floatX* __restrict__ o, float* __restrict__ lse, const floatX* __restrict__ qkv, float scale, unsigned tokens, unsigned heads,
    unsigned k) {
    forward<64, 1, 64>(o, lse, qkv, scale, tokens, heads, k);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_80(
    floatX* __restrict__ o, float* __restrict__ lse, const floatX* __restrict__ qkv, float scale, unsigned tokens, unsigned heads,
    unsigned k) {
    forward<80, 1, 64>(o, lse, qkv, scale, tokens, heads, k);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_96(
    floatX* __restrict__ o, float* __restrict__ lse, const floatX* __restrict__ qkv, float scale, unsigned tokens, unsigned heads,
    unsigned k) {
    forward<96, 1, 64>(o, lse, qkv, scale, tokens, heads, k);
}

extern "C" __global__ void __launch_bounds__(128, BLOCKS) attention_forward_128(
    floatX* __restrict__ o, float* __restrict__ lse, const floatX* __restrict__ qkv, float scale, unsigned tokens, unsigned heads,
    unsigned k) {
    forward<128, 1, 32>(o, lse, qkv, scale, tokens, heads, k);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_tall_32(
    floatX* __restrict__ o, float* __restrict__ lse, const floatX* __restrict__ qkv, float scale, unsigned tokens, unsigned heads,
    unsigned k) {
    forward<32, 2, 64>(o, lse, qkv, scale, tokens, heads, k);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_tall_64(
    floatX* __restrict__ o, float* __restrict__ lse, const floatX* __restrict__ qkv, float scale, unsigned tokens, unsigned heads,
    unsigned k) {
    forward<64, 2, 64>(o, lse, qkv, scale, tokens, heads, k);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_tall_80(
    floatX* __restrict__ o, float* __restrict__ lse, const floatX* __restrict__ qkv, float scale, unsigned tokens, unsigned heads,
    unsigned k) {
    forward<80, 2, 32>(o, lse, qkv, scale, tokens, heads, k);
}

#else

// 32 rows of one head; dynamic shared memory: three tiles and a turned product.
template <unsigned WIDTH>
__device__ __forceinline__ void forward_f32(
    float* o, float* lse, const float* qkv, float scale, unsigned tokens, unsigned heads, unsigned k) {
    extern __shared__ __align__(16) float memory[];
    float *q = memory, *keys = q + FloatTile<WIDTH>::WORDS, *values = keys + FloatTile<WIDTH>::WORDS;
    float* turned = values + FloatTile<WIDTH>::WORDS;
    HeadBlock block(FLOAT_ROWS, tokens, heads);
    copy_tile<WIDTH>(q, part_of(qkv, 0, block, tokens, heads, k), block.first);
    HeadRows<const float> from_k = part_of(qkv, 1, block, tokens, heads, k), from_v = part_of(qkv, 2, block, tokens, heads, k);

    float sums[4][WIDTH / 16] = {}, factor = scale * LOG2_E;
    float most[4] = {-infinity(), -infinity(), -infinity(), -infinity()}, total[4] = {};
#pragma unroll 1
    for (unsigned first = 0; first < tokens; first += FLOAT_ROWS) {
        copy_tile<WIDTH>(keys, from_k, first);
        copies_commit();
        copy_tile<WIDTH>(values, from_v, first);
        copies_commit();
        copies_wait<1>();
        __syncthreads();
        float s[4][2] = {};
        multiply_rows<WIDTH>(s, q, keys);
#pragma unroll
        for (unsigned j = 0; j < 2; j++) {
            bool inside = first + threadIdx.x % 16 + 16 * j < tokens;
#pragma unroll
            for (unsigned i = 0; i < 4; i++) s[i][j] = inside ? s[i][j] : -infinity();
        }
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            float largest = fmaxf(most[i], row_max(fmaxf(s[i][0], s[i][1]))), offset = largest * -factor;
            float fade = power_of_two((most[i] - largest) * factor);
            most[i] = largest;
#pragma unroll
            for (unsigned j = 0; j < 2; j++) s[i][j] = power_of_two(fmaf(s[i][j], factor, offset));
            total[i] = fmaf(total[i], fade, s[i][0] + s[i][1]);
#pragma unroll
            for (unsigned j = 0; j < WIDTH / 16; j++) sums[i][j] *= fade;
        }
        turn(turned, s);
        copies_wait<0>();
        __syncthreads();
        multiply_turned<WIDTH>(sums, turned, values);
        __syncthreads(); // all are done with this tile
    }

    float factors[4];
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        total[i] = row_sum(total[i]);
        factors[i] = reciprocal(total[i]);
        unsigned row = block.first + row_of_thread(i);
        if (threadIdx.x % 16 == 0 && row < tokens) {
            lse[(block.start + row) * heads + block.head] = fmaf(most[i], factor, __log2f(total[i])) * LN_2;
        }
    }
    write_rows<WIDTH>(rows_of(o, block, tokens, heads, k), block.first, sums, factors);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_forward_f32_32(
    float* __restrict__ o, float* __restrict__ lse, const float* __restrict__ qkv, float scale, unsigned tokens, unsigned heads,
    unsigned k) {
    forward_f32<32>(o, lse, qkv, scale, tokens, heads, k);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_forward_f32_64(
    float* __restrict__ o, float* __restrict__ lse, const float* __restrict__ qkv, float scale, unsigned tokens, unsigned heads,
    unsigned k) {
    forward_f32<64>(o, lse, qkv, scale, tokens, heads, k);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_forward_f32_96(
    float* __restrict__ o, float* __restrict__ lse, const float* __restrict__ qkv, float scale, unsigned tokens, unsigned heads,
    unsigned k) {
    forward_f32<96>(o, lse, qkv, scale, tokens, heads, k);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_forward_f32_128(
    float* __restrict__ o, float* __restrict__ lse, const float* __restrict__ qkv, float scale, unsigned tokens, unsigned heads,
    unsigned k) {
    forward_f32<128>(o, lse, qkv, scale, tokens, heads, k);
}
#endif
