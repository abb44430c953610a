// The walk of `ar` and `exact`: on to the child that carries the target's own draw. One thread a slot.
#include "follow.h"

struct ByDraws {
    const Round& r;
    int p;

    __device__ Step operator()(int node, int) const {
        const i64 token = r.drawn[(i64)p * r.nodes + node];
        const int child = child_with(r, p, node, token);
        return {token, child, child < 0 ? DRAWN : STRICT, true};
    }

    __device__ void took(int) const {}
};

extern "C" __global__ void walk(Round r) {
    const int p = slot_of_thread();
    if (p >= r.slots) return;
    if (is_drawn(r, p) && r.rule[p] > RULE_EXACT) return;  // the other kernel's; without an image the record is emptied
    ByDraws decide = {r, p};
    follow(r, p, true, decide);
}
