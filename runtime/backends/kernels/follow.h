// The walk down a tree that all rules share: loop.walk.
#pragma once
#include "round.h"

struct Step {
    i64 token;
    int child;  // -1: the bonus token, and the walk ends
    int cause;
    bool finite;
};

// Follows `decide(node, depth)` from the root and writes path, tokens and the record; `decide.took` hears each cause.
// `writes` is true for one thread of the slot; the others go the same way with it. Entries of path and tokens behind the last repeat it, as the draft
// graph wants them; a slot that is not drawn, or not finite, has the root's path of one entry, and accepts nothing.
template <class Decide>
__device__ void follow(const Round& r, int p, bool writes, Decide& decide) {
    const i64 done = r.done[p], room = r.end[p] - done;
    i64* path = r.path + (i64)p * r.levels;
    i64* tokens = r.path_tokens + (i64)p * r.levels;
    i32* record = record_of(r, p);
    i32 *said = record + RECORD_HEAD, *causes = said + r.levels, *origins = causes + r.levels;
    int node = 0, count = 0;
    bool finite = true, on = room > 0;
    while (on) {
        const i64 must = r.plan_forced[done + count];
        Step step = {must, -1, FORCED, r.drawn[(i64)p * r.nodes + node] >= 0};
        if (step.finite) {
            if (must >= 0) step.child = child_with(r, p, node, must);
            else step = decide(node, count);
        }
        finite = step.finite;
        if (!finite) break;
        decide.took(step.cause);
        if (r.rule[p] == RULE_PLAIN) step.child = -1;
        if (writes) {
            path[count] = node;
            tokens[count] = said[count] = (i32)step.token;
            causes[count] = step.cause;
            origins[count] = step.child < 0 ? (i32)BY_TARGET : r.origins[(i64)p * r.nodes + step.child];
        }
        count++;
        on = step.child >= 0 && count < room && count < r.levels;
        node = step.child;
    }
    if (!writes) return;
    if (!finite) count = 0;
    record[RECORD_START] = (i32)done;
    record[RECORD_COUNT] = count;
    record[RECORD_FLAGS] = finite ? 0 : NOT_FINITE;
    r.count[p] = count ? count : 1;
    for (int i = count; i < r.levels; i++) {
        path[i] = count ? path[count - 1] : 0;
        tokens[i] = count ? tokens[count - 1] : 0;
        said[i] = causes[i] = origins[i] = 0;
    }
}
