// Multi-head self-attention, backward: with p = e^(s - lse) and delta = the sum of do*o of each row,
//     dv = p^T*do,  ds = p * (do*v^T - delta),  dk = ds^T*q/sqrt(K),  dq = ds*k/sqrt(K).
//
// do, o (N, H*K), lse (N, H) f32, qkv and dqkv (N, 3*H*K). s is computed again, tile by tile; nothing of T x T is in memory. One kernel
// goes over blocks of keys and sums dk and dv of theirs over all queries; another one goes over blocks of queries and sums their dq over
// all keys. So each result is summed by one thread in one order: the same bits every time, without atomics. That takes seven products
// where one kernel for all takes five, but dq would be summed by all its blocks of keys, in memory: T*T/64 sums to be kept for a fixed order.
//
// A kernel before these puts -lse (in powers of two) and delta side by side, (B, H, T rounded up to 64, 2): what is read together lies
// together, and rows behind the last have minus infinity and 0, so that their p and ds are 0 and no loop needs to ask for them.
//
// 16-bit floats on tensor cores: a block has 64 rows of one head, a warp 16. Its own rows are in registers, those that it goes over come
// through shared memory, the next tile while one is multiplied. Kernels by the width to which K is filled up. Bytes moved: a block's own
// rows and its results once, all others' rows of two operands once for every block. f32: attention_f32.cuh.
#include "attention.cuh"
#include "attention_f32.cuh"

// The row of (B, H, padded, 2) where those of a block's head begin.
__device__ __forceinline__ const float2* row_pairs(const float* rows, const HeadBlock& block, unsigned padded, unsigned heads) {
    return (const float2*)rows + ((unsigned long long)block.sample * heads + block.head) * padded;
}

// A block takes 32 rows of 8 heads, a warp one head, 8 lanes a row: rows of lse are read in whole sectors, and 4 rows' pairs written.
extern "C" __global__ void __launch_bounds__(256) attention_backward_rows(
    float* __restrict__ rows, const floatX* __restrict__ d_o, const floatX* __restrict__ o, const float* __restrict__ lse,
    unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    __shared__ float of_rows[32][8];
    unsigned groups = (heads + 7) / 8, tiles = padded / 32, rest = blockIdx.x / groups, lane = threadIdx.x % 32;
    unsigned head = blockIdx.x % groups * 8, first = rest % tiles * 32;
    unsigned long long sample = rest / tiles, start = sample * tokens;
    unsigned row = threadIdx.x / 8, place = threadIdx.x % 8;
    bool inside = first + row < tokens && head + place < heads;
    of_rows[row][place] = inside ? lse[(start + first + row) * heads + (head + place)] * -LOG2_E : -infinity();
    __syncthreads();
    head += threadIdx.x / 32;
    bool packs = k % EACH == 0 && aligned(o) && aligned(d_o);
#pragma unroll 1
    for (unsigned four = 0; four < 32; four += 4) { // all lanes go round as often: they add up together
        unsigned i = four + lane / 8;
        float sum = 0.0f;
        if (head < heads && first + i < tokens) {
            unsigned long long at = ((start + first + i) * heads + head) * k;
            if (packs) {
                for (unsigned column = place * EACH; column < k; column += 8 * EACH) {
                    float x[EACH], y[EACH];
                    read(x, d_o + at + column);
                    read(y, o + at + column);
#pragma unroll
                    for (unsigned e = 0; e < EACH; e++) sum = fmaf(x[e], y[e], sum);
                }
            } else {
                for (unsigned column = place; column < k; column += 8) sum = fmaf(to_float(d_o[at + column]), to_float(o[at + column]), sum);
            }
        }
#pragma unroll
        for (int lanes = 4; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
        if (place == 0 && head < heads) {
            ((float2*)rows)[(sample * heads + head) * padded + first + i] = make_float2(of_rows[i][threadIdx.x / 32], sum);
        }
        __syncwarp(); // the next rows are read by all lanes together
    }
}

// s = q*k and dp = do*v become p and ds. `of`: what attention_backward_rows made of the query.
__device__ __forceinline__ void to_slope(float& s, float& dp, float factor, float2 of) {
    s = power_of_two(fmaf(s, factor, of.x));
    dp = s * (dp - of.y);
}

#if FLOATX != 0

// Two operands' 64 rows from `first` on into a warp's registers, through `memory`, which is free again when this returns.
template <unsigned WIDTH>
__device__ __forceinline__ void hold(
    unsigned (&a)[WIDTH / 16][4], unsigned (&b)[WIDTH / 16][4], const HeadRows<const floatX> (&from)[2], unsigned first,
    unsigned memory) {
    const unsigned ROW_BYTES = TileRow<WIDTH>::BYTES;
    TileCopier<64, WIDTH, 2> copier(from, first, memory);
    copier.copy(0, from[0].rows - first <= 64);
    copies_commit();
    copies_wait<0>();
    __syncthreads();
    TileReader<WIDTH, true> read(memory + threadIdx.x / 32 * 16 * ROW_BYTES);
#pragma unroll
    for (unsigned pair = 0; pair < WIDTH / 16; pair++) {
        read.read(a[pair], pair, 0);
        read.read(b[pair], pair, 64 * ROW_BYTES);
    }
    __syncthreads();
}

// dk and dv of 64 keys, over all queries, QUERIES at a time. Products are turned: rows are keys.
template <unsigned WIDTH, unsigned QUERIES>
__device__ __forceinline__ void backward_keys(
    floatX* dqkv, const floatX* d_o, const floatX* qkv, const float* rows, float scale, unsigned tokens, unsigned padded,
    unsigned heads, unsigned head_width) {
    const unsigned PAIRS = WIDTH / 16, ROW_BYTES = TileRow<WIDTH>::BYTES;
    const unsigned SLOPES = QUERIES * ROW_BYTES, NUMBERS = 2 * SLOPES, STAGE = NUMBERS + QUERIES * 8; // a stage: q, do, pairs
    static_assert(STAGE % 128 == 0 && 2 * STAGE >= 128 * ROW_BYTES, "whole rows of banks; room for two tiles of 64 rows");
    __shared__ __align__(128) unsigned char memory[2 * STAGE];
    unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, start = shared_address(memory);
    HeadBlock block(64, tokens, heads);
    unsigned k[PAIRS][4], v[PAIRS][4];
    HeadRows<const floatX> own[2] = {
        part_of(qkv, 1, block, tokens, heads, head_width), part_of(qkv, 2, block, tokens, heads, head_width)};
    HeadRows<const floatX> others[2] = {
        part_of(qkv, 0, block, tokens, heads, head_width), rows_of(d_o, block, tokens, heads, head_width)};
    hold<WIDTH>(k, v, own, block.first, start);

    TileCopier<QUERIES, WIDTH, 2> copy_queries(others, 0, start);
    const float2* pairs = row_pairs(rows, block, padded, heads) + threadIdx.x * 2;
    auto copy = [&](unsigned stage, bool is_last) {
        copy_queries.copy(stage, is_last);
        if (threadIdx.x < QUERIES / 2) copy_async<16>(start + stage + NUMBERS + threadIdx.x * 16, pairs, 1);
        pairs += QUERIES;
        copies_commit();
    };
    unsigned left = (tokens + QUERIES - 1) / QUERIES, stage = 0;
    copy(0, left == 1);

    float dk[WIDTH / 8][4] = {}, dv[WIDTH / 8][4] = {}, factor = scale * LOG2_E;
    TileReader<WIDTH, false> read_across(start);
    TileReader<WIDTH, true> read_down(start);
#pragma unroll 1
    for (; left > 0; left--) {
        copies_wait<0>();
        __syncthreads();
        if (left > 1) copy(stage ^ STAGE, left == 2);
#pragma unroll
        for (unsigned slice = 0; slice < QUERIES / 16; slice++) {
            unsigned from = stage + slice * 16 * ROW_BYTES, b[4], p[4], ds[4];
            float s[2][4] = {}, dp[2][4] = {};
#pragma unroll
            for (unsigned pair = 0; pair < PAIRS; pair++) {
                read_across.read(b, pair, from);
                multiply_pair(s[0], s[1], k[pair], b);
                read_across.read(b, pair, from + SLOPES);
                multiply_pair(dp[0], dp[1], v[pair], b);
            }
#pragma unroll
            for (unsigned n = 0; n < 2; n++) { // a thread's columns are two neighbouring queries
                float4 two = *(const float4*)(memory + stage + NUMBERS + (slice * 16 + n * 8 + lane % 4 * 2) * 8);
                float2 of[2] = {make_float2(two.x, two.y), make_float2(two.z, two.w)};
#pragma unroll
                for (unsigned e = 0; e < 4; e++) to_slope(s[n][e], dp[n][e], factor, of[e % 2]);
            }
            to_fragment(p, s[0], s[1]);
            to_fragment(ds, dp[0], dp[1]);
#pragma unroll
            for (unsigned pair = 0; pair < PAIRS; pair++) {
                read_down.read_transposed(b, pair, from + SLOPES);
                multiply_pair(dv[2 * pair], dv[2 * pair + 1], p, b);
                read_down.read_transposed(b, pair, from);
                multiply_pair(dk[2 * pair], dk[2 * pair + 1], ds, b);
            }
        }
        stage ^= STAGE;
    }

    __syncthreads(); // all are done with the last tile
    unsigned char* slab = memory + warp * 16 * ROW_BYTES;
    unsigned first = block.first + warp * 16;
    write_rows<WIDTH>(part_of(dqkv, 1, block, tokens, heads, head_width), first, dk, scale, scale, slab);
    write_rows<WIDTH>(part_of(dqkv, 2, block, tokens, heads, head_width), first, dv, 1.0f, 1.0f, slab);
}

// dq of 64 queries, over all keys, KEYS at a time.
template <unsigned WIDTH, unsigned KEYS>
__device__ __forceinline__ void backward_queries(
    floatX* dqkv, const floatX* d_o, const floatX* qkv, const float* rows, float scale, unsigned tokens, unsigned padded,
    unsigned heads, unsigned head_width) {
    const unsigned PAIRS = WIDTH / 16, ROW_BYTES = TileRow<WIDTH>::BYTES;
    const unsigned VALUES = KEYS * ROW_BYTES, STAGE = 2 * VALUES; // a stage: keys, then values
    static_assert(2 * STAGE >= 128 * ROW_BYTES, "room for two tiles of 64 rows");
    __shared__ __align__(128) unsigned char memory[2 * STAGE];
    unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, start = shared_address(memory);
    HeadBlock block(64, tokens, heads);
    unsigned q[PAIRS][4], slopes[PAIRS][4], first = block.first + warp * 16;
    HeadRows<const floatX> own[2] = {
        part_of(qkv, 0, block, tokens, heads, head_width), rows_of(d_o, block, tokens, heads, head_width)};
    HeadRows<const floatX> others[2] = {
        part_of(qkv, 1, block, tokens, heads, head_width), part_of(qkv, 2, block, tokens, heads, head_width)};
    hold<WIDTH>(q, slopes, own, block.first, start);
    const float2* pairs = row_pairs(rows, block, padded, heads) + first + lane / 4;
    float2 upper = pairs[0], lower = pairs[8];

    TileCopier<KEYS, WIDTH, 2> copy_keys(others, 0, start);
    unsigned left = (tokens + KEYS - 1) / KEYS, stage = 0;
    auto copy = [&](unsigned stage, bool is_last) {
        copy_keys.copy(stage, is_last);
        copies_commit();
    };
    copy(0, left == 1);

    float dq[WIDTH / 8][4] = {}, factor = scale * LOG2_E;
    TileReader<WIDTH, false> read_across(start);
    TileReader<WIDTH, true> read_down(start);
    auto step = [&](auto which) {
#pragma unroll 2 // not four: the compiler would interleave them all, and run out of registers
        for (unsigned slice = 0; slice < KEYS / 16; slice++) {
            unsigned from = stage + slice * 16 * ROW_BYTES, b[4], ds[4];
            float s[2][4] = {}, dp[2][4] = {};
#pragma unroll
            for (unsigned pair = 0; pair < PAIRS; pair++) {
                read_across.read(b, pair, from);
                multiply_pair(s[0], s[1], q[pair], b);
                read_across.read(b, pair, from + VALUES);
                multiply_pair(dp[0], dp[1], slopes[pair], b);
            }
#pragma unroll
            for (unsigned n = 0; n < 2; n++) {
#pragma unroll
                for (unsigned e = 0; e < 4; e++) {
                    float2 of = e < 2 ? upper : lower;
                    // Of keys that are not there s and dp are 0; but where e^-lse is infinite, p*delta*0 would be NaN.
                    bool inside = !which.IS_LAST || slice * 16 + n * 8 + lane % 4 * 2 + e % 2 < (tokens - 1) % KEYS + 1;
                    if (!inside) of.x = -infinity();
                    to_slope(s[n][e], dp[n][e], factor, of);
                }
            }
            to_fragment(ds, dp[0], dp[1]);
#pragma unroll
            for (unsigned pair = 0; pair < PAIRS; pair++) {
                read_down.read_transposed(b, pair, from);
                multiply_pair(dq[2 * pair], dq[2 * pair + 1], ds, b);
            }
        }
    };
    auto arrive = [&]() { // the next tile has come, for all threads, and all are done with the one before
        copies_wait<0>();
        __syncthreads();
    };
#pragma unroll 1
    for (; left > 1; left--) {
        arrive();
        copy(stage ^ STAGE, left == 2);
        step(Inner());
        stage ^= STAGE;
    }
    arrive();
    step(Last());

    __syncthreads(); // all are done with the last tile
    unsigned char* slab = memory + warp * 16 * ROW_BYTES;
    write_rows<WIDTH>(part_of(dqkv, 0, block, tokens, heads, head_width), first, dq, scale, scale, slab);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_keys_32(
    floatX* __restrict__ dqkv, const floatX* __restrict__ d_o, const floatX* __restrict__ qkv, const float* __restrict__ rows,
    float scale, unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    backward_keys<32, 64>(dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k);
}

extern "C" __global__ void __launch_bounds__(128) attention_backward_keys_64(
    floatX* __restrict__ dqkv, const floatX* __restrict__ d_o, const floatX* __restrict__ qkv, const float* __restrict__ rows,
    float scale, unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    backward_keys<64, 64>(dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k);
}

extern "C" __global__ void __launch_bounds__(128) attention_backward_keys_80(
    floatX* __restrict__ dqkv, const floatX* __restrict__ d_o, const floatX* __restrict__ qkv, const float* __restrict__ rows,
    float scale, unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    backward_keys<80, 64>(dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k);
}

extern "C" __global__ void __launch_bounds__(128) attention_backward_keys_96(
    floatX* __restrict__ dqkv, const floatX* __restrict__ d_o, const floatX* __restrict__ qkv, const float* __restrict__ rows,
    float scale, unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    backward_keys<96, 32>(dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k);
}

extern "C" __global__ void __launch_bounds__(128) attention_backward_keys_128(
    floatX* __restrict__ dqkv, const floatX* __restrict__ d_o, const floatX* __restrict__ qkv, const float* __restrict__ rows,
    float scale, unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    backward_keys<128, 32>(dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k);
}

extern "C" __global__ void __launch_bounds__(128) attention_backward_queries_32(
    floatX* __restrict__ dqkv, const floatX* __restrict__ d_o, const floatX* __restrict__ qkv, const float* __restrict__ rows,
    float scale, unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    backward_queries<32, 64>(dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_queries_64(
    floatX* __restrict__ dqkv, const floatX* __restrict__ d_o, const floatX* __restrict__ qkv, const float* __restrict__ rows,
    float scale, unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    backward_queries<64, 64>(dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k);
}

extern "C" __global__ void __launch_bounds__(128) attention_backward_queries_80(
    floatX* __restrict__ dqkv, const floatX* __restrict__ d_o, const floatX* __restrict__ qkv, const float* __restrict__ rows,
    float scale, unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    backward_queries<80, 64>(dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k);
}

extern "C" __global__ void __launch_bounds__(128) attention_backward_queries_96(
    floatX* __restrict__ dqkv, const floatX* __restrict__ d_o, const floatX* __restrict__ qkv, const float* __restrict__ rows,
    float scale, unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    backward_queries<96, 32>(dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k);
}

extern "C" __global__ void __launch_bounds__(128) attention_backward_queries_128(
    floatX* __restrict__ dqkv, const floatX* __restrict__ d_o, const floatX* __restrict__ qkv, const float* __restrict__ rows,
    float scale, unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    backward_queries<128, 32>(dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k);
}

#else

// Dynamic shared memory: four tiles and two turned products.
template <unsigned WIDTH> struct FloatMemory {
    float *own[2], *other[2], *turned[2];
    __device__ __forceinline__ FloatMemory(float* memory) {
        const unsigned WORDS = FloatTile<WIDTH>::WORDS;
#pragma unroll
        for (unsigned i = 0; i < 2; i++) {
            own[i] = memory + i * WORDS;
            other[i] = memory + (2 + i) * WORDS;
            turned[i] = memory + 4 * WORDS + i * TURNED_WORDS;
        }
    }
};

// dk and dv of 32 keys, over all queries. Products are turned: rows are keys.
template <unsigned WIDTH>
__device__ __forceinline__ void backward_keys_f32(
    float* dqkv, const float* d_o, const float* qkv, const float* rows, float scale, unsigned tokens, unsigned padded, unsigned heads,
    unsigned k) {
    extern __shared__ __align__(16) float memory[];
    FloatMemory<WIDTH> at(memory);
    HeadBlock block(FLOAT_ROWS, tokens, heads);
    copy_tile<WIDTH>(at.own[0], part_of(qkv, 1, block, tokens, heads, k), block.first);
    copy_tile<WIDTH>(at.own[1], part_of(qkv, 2, block, tokens, heads, k), block.first);
    HeadRows<const float> from_q = part_of(qkv, 0, block, tokens, heads, k), from_slopes = rows_of(d_o, block, tokens, heads, k);
    const float2* pairs = row_pairs(rows, block, padded, heads) + threadIdx.x % 16;
    float dk[4][WIDTH / 16] = {}, dv[4][WIDTH / 16] = {}, factor = scale * LOG2_E;
#pragma unroll 1
    for (unsigned first = 0; first < tokens; first += FLOAT_ROWS) {
        copy_tile<WIDTH>(at.other[0], from_q, first);
        copy_tile<WIDTH>(at.other[1], from_slopes, first);
        copies_commit();
        float2 of[2] = {pairs[first], pairs[first + 16]};
        copies_wait<0>();
        __syncthreads();
        float s[4][2] = {}, dp[4][2] = {};
        multiply_rows<WIDTH>(s, at.own[0], at.other[0]);
        multiply_rows<WIDTH>(dp, at.own[1], at.other[1]);
#pragma unroll
        for (unsigned i = 0; i < 8; i++) to_slope(s[i / 2][i % 2], dp[i / 2][i % 2], factor, of[i % 2]);
        turn(at.turned[0], s);
        turn(at.turned[1], dp);
        __syncwarp();
        multiply_turned<WIDTH>(dv, at.turned[0], at.other[1]);
        multiply_turned<WIDTH>(dk, at.turned[1], at.other[0]);
        __syncthreads(); // all are done with this tile
    }
    const float ones[4] = {1.0f, 1.0f, 1.0f, 1.0f}, scales[4] = {scale, scale, scale, scale};
    write_rows<WIDTH>(part_of(dqkv, 1, block, tokens, heads, k), block.first, dk, scales);
    write_rows<WIDTH>(part_of(dqkv, 2, block, tokens, heads, k), block.first, dv, ones);
}

// dq of 32 queries, over all keys.
template <unsigned WIDTH>
__device__ __forceinline__ void backward_queries_f32(
    float* dqkv, const float* d_o, const float* qkv, const float* rows, float scale, unsigned tokens, unsigned padded, unsigned heads,
    unsigned k) {
    extern __shared__ __align__(16) float memory[];
    FloatMemory<WIDTH> at(memory);
    HeadBlock block(FLOAT_ROWS, tokens, heads);
    copy_tile<WIDTH>(at.own[0], part_of(qkv, 0, block, tokens, heads, k), block.first);
    copy_tile<WIDTH>(at.own[1], rows_of(d_o, block, tokens, heads, k), block.first);
    HeadRows<const float> from_k = part_of(qkv, 1, block, tokens, heads, k), from_v = part_of(qkv, 2, block, tokens, heads, k);
    const float2* pairs = row_pairs(rows, block, padded, heads) + block.first;
    float2 of[4] = {pairs[row_of_thread(0)], pairs[row_of_thread(1)], pairs[row_of_thread(2)], pairs[row_of_thread(3)]};
    float dq[4][WIDTH / 16] = {}, factor = scale * LOG2_E;
#pragma unroll 1
    for (unsigned first = 0; first < tokens; first += FLOAT_ROWS) {
        copy_tile<WIDTH>(at.other[0], from_k, first);
        copy_tile<WIDTH>(at.other[1], from_v, first);
        copies_commit();
        copies_wait<0>();
        __syncthreads();
        float s[4][2] = {}, dp[4][2] = {};
        multiply_rows<WIDTH>(s, at.own[0], at.other[0]);
        multiply_rows<WIDTH>(dp, at.own[1], at.other[1]);
#pragma unroll
        for (unsigned j = 0; j < 2; j++) {
            bool inside = first + threadIdx.x % 16 + 16 * j < tokens; // else p might be infinite, as of 16-bit floats
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                to_slope(s[i][j], dp[i][j], factor, make_float2(inside ? of[i].x : -infinity(), of[i].y));
            }
        }
        turn(at.turned[0], dp);
        __syncwarp();
        multiply_turned<WIDTH>(dq, at.turned[0], at.other[0]);
        __syncthreads(); // all are done with this tile
    }
    const float scales[4] = {scale, scale, scale, scale};
    write_rows<WIDTH>(part_of(dqkv, 0, block, tokens, heads, k), block.first, dq, scales);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_keys_f32_32(
    float* __restrict__ dqkv, const float* __restrict__ d_o, const float* __restrict__ qkv, const float* __restrict__ rows,
    float scale, unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    backward_keys_f32<32>(dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_keys_f32_64(
    float* __restrict__ dqkv, const float* __restrict__ d_o, const float* __restrict__ qkv, const float* __restrict__ rows,
    float scale, unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    backward_keys_f32<64>(dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_keys_f32_96(
    float* __restrict__ dqkv, const float* __restrict__ d_o, const float* __restrict__ qkv, const float* __restrict__ rows,
    float scale, unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    backward_keys_f32<96>(dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_keys_f32_128(
    float* __restrict__ dqkv, const float* __restrict__ d_o, const float* __restrict__ qkv, const float* __restrict__ rows,
    float scale, unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    backward_keys_f32<128>(dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_queries_f32_32(
    float* __restrict__ dqkv, const float* __restrict__ d_o, const float* __restrict__ qkv, const float* __restrict__ rows,
    float scale, unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    backward_queries_f32<32>(dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_queries_f32_64(
    float* __restrict__ dqkv, const float* __restrict__ d_o, const float* __restrict__ qkv, const float* __restrict__ rows,
    float scale, unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    backward_queries_f32<64>(dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_queries_f32_96(
    float* __restrict__ dqkv, const float* __restrict__ d_o, const float* __restrict__ qkv, const float* __restrict__ rows,
    float scale, unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    backward_queries_f32<96>(dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_queries_f32_128(
    float* __restrict__ dqkv, const float* __restrict__ d_o, const float* __restrict__ qkv, const float* __restrict__ rows,
    float scale, unsigned tokens, unsigned padded, unsigned heads, unsigned k) {
    backward_queries_f32<128>(dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k);
}
#endif
