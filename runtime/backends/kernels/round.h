// The state of a round on the device, and what the kernels share. docs/kernels.md has the table of all arrays;
// layout.py is the same struct for Python, and a test compares the two.
#pragma once

typedef long long i64;
typedef unsigned long long u64;
typedef int i32;
typedef unsigned int u32;
typedef signed char i8;
typedef unsigned char u8;

// P slots, G rows a slot, R = P G rows, N nodes, L = depth + 1 levels, V codes, S positions of the plan, D drafted nodes.
struct Round {
    i32 slots, rows, nodes, levels, vocab, length, prefix, pair_slots, drafted, tree_stride, mask_columns;
    // settings of a slot, written when it is filled
    const u64* seed;           // [P]
    const i32* stream;         // [P], -1: greedy, no noise
    const i32* rule;           // [P]
    i32* end;                  // [P] positions of the image; 0: no image. `advance` ends an image that is not finite
    const i64* first;          // [R] row of the rotary table of slot 0
    // the plan
    const i32* plan_forced;    // [S], -1: drawn
    const i32* plan_above;     // [S], -1: none
    const i32* plan_left;      // [S], -1: none
    // the tree
    const i64* parents;        // [N], or [P, N] where tree_stride is N; ascending, -1 for the root
    const i64* depths;         // [P, N]
    const i32* guessed;        // [N] whether a node's token is a guess
    const i32* continuations;  // [N, L - 1], or none: nothing is kept
    const i32* drafted_nodes;  // [D] nodes of the drafted part of a mixed tree, or none
    // the images
    i64* done;                 // [P]
    i32* tokens;               // [P, S]
    i32* guesses;              // [P, 2, S], -1: none
    i64* read;                 // [P] the next slot that the drafter writes
    // what the graphs read and write
    float* noise;              // [P, L, V]
    i64* forced;               // [P, L], or none
    const i64* drafted_tokens; // [P, D], or none
    i64* tree_tokens;          // [P, N]
    i8* origins;               // [P, N]
    i64* embed_ids;            // [R, N], or none
    i64* positions;            // [R, N]
    i64* write_index;          // [R]
    const u8* ancestors;       // [P, N, N] of trees that the draft graph chooses, or none
    u8* tree_mask;             // [R, N, mask_columns], where there are ancestors
    const i64* drawn;          // [P, N], -1: not finite
    const i64* runner_up;      // [P, N], or none
    // what a round has accepted
    i64* path;                 // [P, L]
    i64* path_tokens;          // [P, L]
    i64* count;                // [P], at least 1, as the draft graph wants it
    i32* record;               // [P, 3 + 3 L]: done before, accepted, flags; tokens, causes, origins
    // what the drafter reads of it
    i64* pair_positions;       // [R, L]
    i64* pair_write_index;     // [R]
    u8* pair_mask;             // [R, pair_slots]
};

enum RuleKind {
    RULE_PLAIN = 0, RULE_EXACT = 1, RULE_STRICT = 2, RULE_CASCADE = 3, RULE_LANTERN = 4, RULE_LANTERN_PLUS = 5
};
enum Cause { FORCED = -1, DRAWN = 0, STRICT = 1, INTERCHANGEABLE = 2, CONVERGED = 3, RELAXED = 4 };
enum Origin { BY_TARGET = 0, BY_EAGLE = 1, BY_JACOBI = 2, BY_NOBODY = 3 };
enum Flag { NOT_FINITE = 1 };
enum RecordPart { RECORD_START = 0, RECORD_COUNT = 1, RECORD_FLAGS = 2, RECORD_HEAD = 3 };

__device__ inline bool is_drawn(const Round& r, int p) { return r.done[p] < r.end[p]; }
__device__ inline i32* record_of(const Round& r, int p) { return r.record + (i64)p * (RECORD_HEAD + 3 * r.levels); }
__device__ inline const i64* parents_of(const Round& r, int p) { return r.parents + (i64)p * r.tree_stride; }
__device__ inline int slot_of_thread() { return blockIdx.x * blockDim.x + threadIdx.x; }

// The first child of `node` that carries `token`, or -1. Parents ascend, so the children lie together behind the node.
__device__ inline int child_with(const Round& r, int p, int node, i64 token) {
    const i64* parents = parents_of(r, p);
    const i64* tokens = r.tree_tokens + (i64)p * r.nodes;
    for (int n = node + 1; n < r.nodes && parents[n] <= node; n++)
        if (parents[n] == node && tokens[n] == token) return n;
    return -1;
}
