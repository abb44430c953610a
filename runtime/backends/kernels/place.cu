// What a target call reads of every slot: the root's token, guesses, ids to embed, positions, the first cache slot, and
// who sees whom in trees that the draft graph has chosen.
// drafting.jacobi.fill and new_place, drafting.mixed.guess, loop.place. Grid P, any number of threads.
#include "round.h"

// A token before `node`: decided, or that of a node's ancestor.
__device__ inline i64 token_at(const Round& r, int p, int node, i64 position) {
    const i64* parents = parents_of(r, p);
    const i64* depths = r.depths + (i64)p * r.nodes;
    const i64 depth = position - r.done[p] + 1;
    if (depth < 0) return r.tokens[(i64)p * r.length + position];
    while (depths[node] > depth) node = (int)parents[node];
    return r.tree_tokens[(i64)p * r.nodes + node];
}

// Whether a sibling that has its token before `node` carries `token`: elder ones, and younger ones that are drafted.
__device__ inline bool is_taken(const Round& r, int p, int node, i64 token) {
    const i64* parents = parents_of(r, p);
    const i64* tokens = r.tree_tokens + (i64)p * r.nodes;
    for (int n = node - 1; n > 0 && parents[n] == parents[node]; n--)
        if (tokens[n] == token) return true;
    for (int n = node + 1; n < r.nodes && parents[n] == parents[node]; n++)
        if (!r.guessed[n] && tokens[n] == token) return true;
    return false;
}

// For a place that no round has reached: the code above, else the one before.
__device__ inline i64 new_place(const Round& r, int p, int node, i64 position) {
    const i64 beside[2] = {r.plan_above[position], r.plan_left[position]};
    i64 found = -1;
    for (int i = 0; i < 2; i++) {
        if (beside[i] < 0) continue;
        const i64 token = token_at(r, p, node, beside[i]);
        if (!is_taken(r, p, node, token)) return token;
        if (found < 0) found = token;
    }
    return found < 0 ? 0 : found;
}

__device__ inline void guess(const Round& r, int p, int node) {
    i64* tokens = r.tree_tokens + (i64)p * r.nodes;
    const i64 depth = r.depths[(i64)p * r.nodes + node], position = r.done[p] + depth - 1;
    if (position >= r.end[p]) {  // behind the image's end: nobody looks
        tokens[node] = tokens[parents_of(r, p)[node]];
        return;
    }
    i8* origin = r.origins + (i64)p * r.nodes + node;
    *origin = BY_JACOBI;
    if (r.plan_forced[position] >= 0) {
        tokens[node] = r.plan_forced[position];
        return;
    }
    for (int row = 0; row < 2; row++) {
        const i64 token = r.guesses[((i64)p * 2 + row) * r.length + position];
        if (token >= 0 && !is_taken(r, p, node, token)) {
            tokens[node] = token;
            return;
        }
    }
    *origin = BY_NOBODY;
    tokens[node] = new_place(r, p, node, position);
}

// One thread of a slot: siblings and new places depend on the nodes before them.
__device__ inline void fill(const Round& r, int p) {
    i64* tokens = r.tree_tokens + (i64)p * r.nodes;
    for (int i = 0; i < r.drafted; i++) tokens[r.drafted_nodes[i]] = r.drafted_tokens[(i64)p * r.drafted + i];
    tokens[0] = r.tokens[(i64)p * r.length + r.done[p] - 1];
    if (r.guessed)
        for (int n = 1; n < r.nodes; n++)
            if (r.guessed[n]) guess(r, p, n);
    if (r.embed_ids)
        for (int row = 0; row < r.rows; row++)
            for (int n = 0; n < r.nodes; n++) r.embed_ids[((i64)p * r.rows + row) * r.nodes + n] = tokens[n];
}

extern "C" __global__ void place(Round r) {
    const int p = blockIdx.x;
    if (!is_drawn(r, p)) return;
    if (threadIdx.x == 0) fill(r, p);
    const i64 start = r.prefix + r.done[p] - 1;
    for (int i = threadIdx.x; i < r.rows * r.nodes; i += blockDim.x) {
        const i64 row = (i64)p * r.rows + i / r.nodes;
        const int node = i % r.nodes;
        if (node == 0) r.write_index[row] = start;
        r.positions[row * r.nodes + node] = r.first[row] + start + r.depths[(i64)p * r.nodes + node];
        if (!r.ancestors) continue;
        const u8* seen = r.ancestors + ((i64)p * r.nodes + node) * r.nodes;
        u8* mask = r.tree_mask + (row * r.nodes + node) * r.mask_columns;
        for (int m = 0; m < r.nodes; m++) mask[m] = seen[m];
    }
}
