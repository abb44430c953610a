// What the rules that look at nodes read, and how the threads of a block work together.
#pragma once
#include "philox.h"

enum Children { CHILDREN_SAMPLED = 0, CHILDREN_TOPK = 1, CHILDREN_COUPLED = 2 };
enum Stream { STREAM_ACCEPT = 2, STREAM_RESIDUAL = 3 };
enum { MOST_THREADS = 256 };

// The settings of a slot's sampler and rule; NaN where a threshold is off.
struct RuleSetting {
    double top_p;
    double log_guard;  // log of max(guard, 1e-30)
    double tau_pos, tau_seq;
    double budget;     // lantern: delta; lantern++: lambda - 1
    i32 top_k;         // 1: greedy
    i32 children, cap, row_ends, near, unused;
};

struct Rules {
    i32 most;                     // K logits of a node
    i32 distributions;            // I of the drafter
    i32 near;                     // columns of the table of neighbours
    i32 q_stride;                 // 0, or N where every slot has sources of its own
    const RuleSetting* settings;  // [P]
    const u8* row_starts;         // [S]
    const float* logits;          // [P, N, K], the largest first
    const i64* ids;               // [P, N, K]
    const float* log_q;           // [P, I, V]
    const i64* q_rows;            // [N] or [P, N]: the row of log_q that a node was drafted from
    const float* similarity;      // [P, N, N]
    const i32* neighbours;        // [V, near]
    double* p;                    // [P, K], scratch
    double* q;                    // [P, K], scratch
    i32* places;                  // [P, V], scratch, -1 between two rounds
};

__device__ inline double block_sum(double x) {
    __shared__ double values[MOST_THREADS];
    const int t = threadIdx.x;
    __syncthreads();  // somebody may still read the sum before
    values[t] = x;
    for (int width = blockDim.x; width > 1;) {
        const int half = (width + 1) / 2;
        __syncthreads();
        if (t + half < width) values[t] += values[t + half];
        width = half;
    }
    __syncthreads();
    return values[0];
}

// The index of the largest value, the first of equals; a thread without values gives index -1.
__device__ inline int block_argmax(double x, int index, double* largest) {
    __shared__ double values[MOST_THREADS];
    __shared__ int indices[MOST_THREADS];
    const int t = threadIdx.x;
    __syncthreads();
    values[t] = x;
    indices[t] = index;
    for (int width = blockDim.x; width > 1;) {
        const int half = (width + 1) / 2;
        __syncthreads();
        if (t + half < width) {
            const double other = values[t + half];
            const int at = indices[t + half];
            if (at >= 0 && (indices[t] < 0 || other > values[t] || (other == values[t] && at < indices[t]))) {
                values[t] = other;
                indices[t] = at;
            }
        }
        width = half;
    }
    __syncthreads();
    *largest = values[0];
    return indices[0];
}

// The number in [0, 1] of a token: noise.uniform_of_token.
__device__ inline double uniform_of_token(u64 seed, i64 position, int stream, i64 token) {
    u64 numbers[4];
    philox((u64)token + 2, seed, key_of(stream, position), numbers);
    return (double)numbers[0] * 0x1p-64;
}

__device__ inline float gumbel_of_token(u64 seed, i64 position, int stream, i64 token) {
    u64 numbers[4];
    philox((u64)(token / 8) + 1, seed, key_of(stream, position), numbers);
    return gumbel_of(uniform_of(numbers, (int)(token % 8)));
}
