// The end of a round: writes the new tokens, advances the length, keeps the draws behind the walk as guesses (loop.emit,
// drafting.jacobi.remember). An image that is not finite ends. One thread a slot; `commit` must have run.
#include "round.h"

extern "C" __global__ void advance(Round r) {
    const int p = slot_of_thread();
    if (p >= r.slots) return;
    const i32* record = record_of(r, p);
    if (record[RECORD_FLAGS] & NOT_FINITE) r.end[p] = 0;
    const int count = record[RECORD_COUNT];
    if (count == 0) return;
    i32* tokens = r.tokens + (i64)p * r.length;
    const i64 before = r.done[p], done = before + count, room = r.end[p] - done;
    for (int i = 0; i < count; i++) tokens[before + i] = record[RECORD_HEAD + i];
    r.done[p] = done;
    if (!r.continuations) return;
    i32* first = r.guesses + (i64)p * 2 * r.length + done;
    const i32* nodes = r.continuations + r.path[(i64)p * r.levels + count - 1] * (r.levels - 1);
    for (int k = 0; k < r.levels - 1 && k < room && nodes[k] >= 0; k++) {
        first[k] = (i32)r.drawn[(i64)p * r.nodes + nodes[k]];
        if (r.runner_up) first[r.length + k] = (i32)r.runner_up[(i64)p * r.nodes + nodes[k]];
    }
}
