// Philox4x64-10 (Salmon et al., 2011) as numpy's generator of this name runs it, and the numbers of runtime/noise.py.
#pragma once
#include "round.h"

// The four numbers at `counter`. numpy's stream begins with counter 1.
__device__ inline void philox(u64 counter, u64 key0, u64 key1, u64 out[4]) {
    u64 x0 = counter, x1 = 0, x2 = 0, x3 = 0;
#pragma unroll
    for (int i = 0; i < 10; i++) {
        const u64 high0 = __umul64hi(0xD2E7470EE14C6C93ull, x0), low0 = 0xD2E7470EE14C6C93ull * x0;
        const u64 high1 = __umul64hi(0xCA5A826395121157ull, x2), low1 = 0xCA5A826395121157ull * x2;
        x0 = high1 ^ x1 ^ key0;
        x1 = low1;
        x2 = high0 ^ x3 ^ key1;
        x3 = low0;
        key0 += 0x9E3779B97F4A7C15ull;
        key1 += 0xBB67AE8584CAA73Bull;
    }
    out[0] = x0, out[1] = x1, out[2] = x2, out[3] = x3;
}

__device__ inline u64 key_of(int stream, i64 position) { return (u64)stream << 32 | (u64)position; }

// Half `i` (0 .. 7) of a block as a number in (0, 1); the largest is 1 - 2^-24, as in float32 it would round to 1.
__device__ inline float uniform_of(const u64 block[4], int i) {
    const u32 bits = (u32)(block[i >> 1] >> (32 * (i & 1))) >> 8;
    return fminf(((float)bits + 0.5f) * 0x1p-24f, 1 - 0x1p-24f);
}

__device__ inline float gumbel_of(float uniform) { return -logf(-logf(uniform)); }
